//! Whom to trust and who we are, from files.

use super::{EtcdError, EtcdOptions};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::Path;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// TLS 1.2 or 1.3, which is all that rustls has. Trust is checked as soon as a URL is https, with or without a certificate
/// of our own.
pub fn config(options: &EtcdOptions) -> Result<TlsConfig, EtcdError> {
    // Fails if there is a provider already, which is then this one.
    let _ = ring::default_provider().install_default();
    let roots = match &options.ca_file {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let certificates = certificates("--etcd-cafile", path)?;
            RootCerts::new_with_certs(
                &certificates.iter().map(|der| Certificate::from_der(der).to_owned()).collect::<Vec<_>>(),
            )
        }
    };
    let client = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => Some(identity(cert, key)?),
        (None, None) => None,
        _ => return Err(EtcdError::Options("--etcd-certfile and --etcd-keyfile go together; one is missing".into())),
    };
    Ok(TlsConfig::builder().root_certs(roots).client_cert(client).build())
}

fn identity(cert_path: &Path, key_path: &Path) -> Result<ClientCert, EtcdError> {
    let chain = certificates("--etcd-certfile", cert_path)?;
    let pem = read("--etcd-keyfile", key_path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        EtcdError::Options(format!("--etcd-keyfile {} holds no private key in PEM", key_path.display()))
    })?;
    let certs: Vec<Certificate<'static>> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    // ureq takes for granted what is checked here.
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        let (cert, key) = (cert_path.display(), key_path.display());
        EtcdError::Options(format!("--etcd-certfile {cert} and --etcd-keyfile {key} do not go together: {error}"))
    })?;
    let key = PrivateKey::from_pem(&pem).map_err(|_| {
        EtcdError::Options(format!("--etcd-keyfile {} holds no private key in PEM", key_path.display()))
    })?;
    Ok(ClientCert::new_with_certs(&certs, key))
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, EtcdError> {
    let pem = read(flag, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(EtcdError::Options(format!("{flag} {} holds no certificate in PEM", path.display()))),
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|error| EtcdError::Options(format!("{flag} {}: {error}", path.display())))
}
