//! A certificate authority of the test's own, and a certificate for this machine's loopback address.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};

/// Files in PEM form.
pub(crate) struct Certificate {
    /// The authority's own certificate: what a client must trust.
    pub(crate) authority: PathBuf,
    /// The server's certificate, for 127.0.0.1 and localhost.
    pub(crate) chain: PathBuf,
    /// The server's private key.
    pub(crate) key: PathBuf,
}

/// Makes both, as strict clients want them.
pub(crate) fn make(folder: &Path) -> Result<Certificate> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the test's authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);

    let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;

    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        anyhow::Ok(path)
    };
    Ok(Certificate {
        authority: file("authority.pem", authority.pem())?,
        chain: file("chain.pem", certificate.pem())?,
        key: file("key.pem", key.serialize_pem())?,
    })
}
