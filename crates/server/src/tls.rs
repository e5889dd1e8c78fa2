//! TLS with the operator's own certificate, for clients that insist on it (the Python client's environment variables).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read or holds nothing of the kind.
    #[error("{path} holds no usable {what} in PEM form: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The two do not fit together.
    #[error("the certificate and the private key cannot be used together: {0}")]
    Mismatch(#[from] rustls::Error),
}

/// A certificate with its key, read.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// Reads a certificate chain, leaf first, and its private key.
    ///
    /// # Errors
    /// [`Error::File`] names the file, [`Error::Mismatch`] says why the pair is no pair.
    pub fn load(certificate: &Path, key: &Path) -> Result<Tls, Error> {
        let unusable = |path: &Path, what, source| Error::File { path: path.to_owned(), what, source };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .and_then(|chain: Vec<_>| {
                if chain.is_empty() { Err(rustls::pki_types::pem::Error::NoItemsFound) } else { Ok(chain) }
            })
            .map_err(|source| unusable(certificate, "certificate", source))?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|source| unusable(key, "private key", source))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)?;
        // HTTP/2 has no reason phrases, and the clients show those.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(config)))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.clone())
    }
}
