//! TLS of adapters and of faces: keys and certificates are files, as Kubernetes mounts them, and are read again when they may
//! have changed; those of adapters can be words of Secrets, too.

mod client;
mod http;
mod identity;
mod pem;
mod server;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::ClientTls;
pub(crate) use client::check_url;
pub(crate) use http::{http1_connector, http2_connector};
pub use identity::Identity;
pub use server::{Accepted, Acceptor, ClientCertificate, ServerTls};
pub(crate) use stream::{Stream, connect};

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
    /// What a Secret has is not what it should be.
    #[error("{field}: {message}")]
    Word {
        /// The field of the configuration that names it.
        field: &'static str,
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
