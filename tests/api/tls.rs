//! TLS with the operator's own certificate, beside the plain listener.

use crate::support::Api;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A certificate for `localhost` and its key, as files.
fn certificate(folder: &std::path::Path) -> (PathBuf, PathBuf, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (chain, key, made.cert.pem())
}

#[tokio::test]
async fn the_same_routes_are_served_over_tls_with_https_addresses() {
    let api = Api::new().await;
    let (chain, key, pem) = certificate(api.folder.path());
    let tls = server::tls::Tls::load(&chain, &key).unwrap();
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (plain_at, secure_at) = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = {
        let (app, stop) = (api.app.clone(), stop.clone());
        tokio::spawn(async move {
            server::serve_with_tls(plain, Some((secure, tls)), app, stop.cancelled()).await.unwrap();
        })
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes()).unwrap()])
        .build()
        .unwrap();
    for (scheme, port) in [("https", secure_at.port()), ("http", plain_at.port())] {
        let base = format!("{scheme}://localhost:{port}");
        let reply = client
            .post(format!("{base}/queue/fal-ai/ltx23-trainer-v2/t2v"))
            .header("authorization", &api.key)
            .body(crate::support::input().to_string())
            .send()
            .await
            .unwrap();
        assert_eq!((reply.status().as_u16(), reply.version()), (200, http::Version::HTTP_11));
        let answer: serde_json::Value = reply.json().await.unwrap();
        let url = answer["status_url"].as_str().unwrap();
        assert!(url.starts_with(&base), "{url}");
    }
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn only_http_1_is_spoken() {
    let api = Api::new().await;
    let (chain, key, pem) = certificate(api.folder.path());
    let tls = server::tls::Tls::load(&chain, &key).unwrap();
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = secure.local_addr().unwrap();
    let app = api.app.clone();
    let serving = tokio::spawn(async move {
        server::serve_with_tls(plain, Some((secure, tls)), app, std::future::pending()).await.unwrap();
    });
    let mut roots = rustls::RootCertStore::empty();
    let der = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(
        pem.as_bytes(),
    )
    .unwrap();
    roots.add(der).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    serving.abort();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key, _) = certificate(folder.path());
    let other = tempfile::tempdir().unwrap();
    let (_, other_key, _) = certificate(other.path());
    let why = |chain: &std::path::Path, key: &std::path::Path| {
        server::tls::Tls::load(chain, key).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let missing = folder.path().join("missing.pem");
    assert!(why(&missing, &key).contains("missing.pem"), "{}", why(&missing, &key));
    assert!(why(&key, &key).contains("key.pem holds no usable certificate"), "{}", why(&key, &key));
    assert!(why(&chain, &chain).contains("chain.pem holds no usable private key"), "{}", why(&chain, &chain));
    assert!(why(&chain, &other_key).contains("cannot be used together"), "{}", why(&chain, &other_key));
}
