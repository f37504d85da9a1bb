//! The side that listens.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base::FieldError;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::pem::Pem;
use super::{Identity, TlsError, provider};

/// For a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How often is looked whether the files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// TLS of an address that is listened on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerTls {
    /// The server's certificate, and those between it and its authority, in PEM.
    pub cert_file: PathBuf,
    /// Its key, in PEM.
    pub key_file: PathBuf,
    /// Authorities of clients' certificates, in PEM; without it no client is asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether every client needs a certificate.
    #[serde(default)]
    pub client_certificate: ClientCertificate,
}

/// Whether clients need a certificate, where `clientCaFile` says whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientCertificate {
    /// Without one there is no connection.
    #[default]
    Required,
    /// One that is given must be right.
    Optional,
}

impl ServerTls {
    /// Checks what deserialisation cannot; reads no file.
    pub fn validate(&self) -> Result<(), FieldError> {
        let optional = self.client_certificate == ClientCertificate::Optional;
        if optional && self.client_ca_file.is_none() {
            let message = "has no meaning without clientCaFile";
            return Err(FieldError::at("clientCertificate", message));
        }
        Ok(())
    }

    /// Reads the files as they are now. `protocols` is what HTTP versions and the like are agreed on by (ALPN).
    pub fn config(&self, protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match &self.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let pem = Pem::of_file("clientCaFile", file)?;
                let roots = pem.authorities()?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match self.client_certificate {
                    ClientCertificate::Required => verifier,
                    ClientCertificate::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|error| pem.wrong(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = Pem::of_file("certFile", &self.cert_file)?.certificates()?;
        let key = Pem::of_file("keyFile", &self.key_file)?.private_key()?;
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// What changes when one of the files does.
    fn stamp(&self) -> Stamp {
        let files = [&self.cert_file, &self.key_file].into_iter();
        files
            .chain(&self.client_ca_file)
            .map(|file| stamp(file))
            .collect()
    }
}

type Stamp = Vec<Option<(SystemTime, u64)>>;

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// A connection with TLS.
#[derive(Debug)]
pub struct Accepted {
    /// What is said on it.
    pub stream: TlsStream<TcpStream>,
    /// Who the client is, when it has shown a certificate.
    pub peer: Option<Identity>,
}

/// Makes TLS of accepted connections, with the files as they are at that time.
pub struct Acceptor {
    tls: ServerTls,
    protocols: Vec<Vec<u8>>,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    stamp: Stamp,
    looked: Instant,
}

impl Acceptor {
    /// Reads the files a first time.
    pub fn new(tls: ServerTls, protocols: &[&[u8]]) -> Result<Acceptor, TlsError> {
        let stamp = tls.stamp();
        let config = Arc::new(tls.config(protocols)?);
        Ok(Acceptor {
            tls,
            protocols: protocols.iter().map(|name| name.to_vec()).collect(),
            current: Mutex::new(Current {
                config,
                stamp,
                looked: Instant::now(),
            }),
        })
    }

    /// Agrees on TLS with a client, within a bounded time.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, TlsError> {
        let accepting = TlsAcceptor::from(self.config()).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE_LIMIT, accepting)
            .await
            .map_err(|_| TlsError::Late(HANDSHAKE_LIMIT))?
            .map_err(TlsError::Handshake)?;
        let certificate = stream.get_ref().1.peer_certificates();
        let certificate = certificate.and_then(|chain| chain.first());
        let peer = certificate
            .map(|certificate| Identity::of(certificate))
            .transpose()
            .map_err(|reason| {
                TlsError::Rustls(rustls::Error::General(format!(
                    "the client's certificate: {reason}"
                )))
            })?;
        Ok(Accepted { stream, peer })
    }

    /// The present configuration; files that changed into something unusable change nothing.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK_INTERVAL {
            current.looked = Instant::now();
            let stamp = self.tls.stamp();
            if stamp != current.stamp {
                current.stamp = stamp;
                let protocols: Vec<&[u8]> = self.protocols.iter().map(Vec::as_slice).collect();
                match self.tls.config(&protocols) {
                    Ok(config) => current.config = Arc::new(config),
                    Err(error) => {
                        tracing::warn!(%error, "the certificate stays the former one");
                    }
                }
            }
        }
        current.config.clone()
    }
}
