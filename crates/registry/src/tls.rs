//! TLS of adapters and of faces: keys and certificates are files, as Kubernetes mounts them, and are read again when they may
//! have changed.

mod client;
mod http;
mod identity;
mod server;
mod stream;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use client::ClientTls;
pub(crate) use client::check_url;
pub(crate) use http::{http1_connector, http2_connector};
pub use identity::Identity;
pub use server::{Accepted, Acceptor, ClientCertificate, ServerTls};
pub(crate) use stream::{Stream, connect};

/// Bytes of a file with certificates: a bundle of all public authorities has 300 KB.
const FILE_BYTES: u64 = 8 << 20;

/// Why TLS cannot be set up, or was not agreed on.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    #[error("{field} {}: {message}", path.display())]
    File {
        /// The field of the configuration that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong; nothing of its content.
        message: String,
    },
    /// The system has no certificate authorities.
    #[error("the system's certificate authorities cannot be read: {0}; caFile can name others")]
    NoRoots(String),
    /// Certificates and keys do not fit together, or the other side was not accepted.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// The other side did not agree on TLS.
    #[error("TLS handshake: {0}")]
    Handshake(std::io::Error),
    /// The other side said nothing for too long.
    #[error("TLS handshake: not within {0:?}")]
    Late(std::time::Duration),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|error| wrong(field, path, &error))?;
    Ok(bytes)
}

fn wrong(field: &'static str, path: &Path, message: &(impl ToString + ?Sized)) -> TlsError {
    TlsError::File {
        field,
        path: path.to_owned(),
        message: message.to_string(),
    }
}

/// The certificates of a file, at least one.
fn certificates(
    field: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(field, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| wrong(field, path, &error))?;
    if found.is_empty() {
        return Err(wrong(field, path, "has no certificate in PEM"));
    }
    Ok(found)
}

fn private_key(field: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(field, path)?;
    // The library's words could have something of the key in them.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        wrong(
            field,
            path,
            "has no private key in PEM (PKCS#8, PKCS#1 or SEC1)",
        )
    })
}

/// The authorities of a file.
fn authorities(field: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(field, path)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(field, path, &error))?;
    }
    Ok(roots)
}
