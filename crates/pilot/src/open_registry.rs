//! The Open Service Registry's interfaces as pilot serves them: who may use them on which address.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail};
use registry::tls::{ClientCertificate, ServerTls};
use registry::{Access, Api, Audit, AuditOptions, Registry};
use tokio::net::TcpListener;

use crate::args::OpenRegistryArgs;

/// Older audit logs that are kept.
const KEPT_LOGS: u32 = 5;
/// What is said to those who ask on an address that others reach too.
const CLOSED: &str =
    "pilot listens beyond the loopback, and --registryAuth does not say who may use the registry";

/// The registry's interfaces under the rules of the command line.
pub(crate) struct OpenRegistry {
    api: Api,
    has_rules: bool,
    tls: Option<(TcpListener, ServerTls)>,
}

impl OpenRegistry {
    /// Reads the rules, opens the log and binds the address with TLS.
    pub(crate) async fn bind(args: &OpenRegistryArgs, registry: &Registry) -> Result<OpenRegistry> {
        let access = match &args.auth {
            Some(file) => {
                Access::read(file, registry).map_err(|e| anyhow!("--registryAuth {e}"))?
            }
            None => Access::closed(CLOSED),
        };
        let audit = match &args.audit {
            Some(file) => Audit::open(AuditOptions {
                file: file.clone(),
                max_bytes: args.audit_max_bytes,
                keep: KEPT_LOGS,
            })
            .with_context(|| format!("--registryAudit {}", file.display()))?,
            None => Audit::none(),
        };
        let tls = match (args.tls_addr, &args.tls_cert, &args.tls_key) {
            (Some(address), Some(certificate), Some(key)) => {
                if args.auth.is_none() && !address.ip().is_loopback() {
                    bail!("--registryTlsAddr {address}: {CLOSED}");
                }
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("--registryTlsAddr {address}: cannot listen"))?;
                let tls = ServerTls {
                    cert_file: certificate.clone(),
                    key_file: key.clone(),
                    client_ca_file: args.tls_client_ca.clone(),
                    client_certificate: match args.tls_client_ca {
                        Some(_) => ClientCertificate::Optional,
                        None => ClientCertificate::default(),
                    },
                };
                Some((listener, tls))
            }
            _ => None,
        };
        Ok(OpenRegistry {
            api: registry.api(access, audit),
            has_rules: args.auth.is_some(),
            tls,
        })
    }

    /// What is served on an address: without rules everything on the loopback, and nothing elsewhere.
    pub(crate) fn on(&self, address: SocketAddr) -> Api {
        match !self.has_rules && address.ip().is_loopback() {
            true => self.api.under(Access::open()),
            false => self.api.clone(),
        }
    }

    /// Where it is served with TLS.
    pub(crate) fn tls_addr(&self) -> Result<Option<SocketAddr>> {
        let listener = self.tls.as_ref().map(|(listener, _)| listener);
        Ok(listener.map(TcpListener::local_addr).transpose()?)
    }

    /// Serves the address with TLS, if there is one; ends only with an error.
    pub(crate) async fn run(self) -> Result<()> {
        let Some(address) = self.tls_addr()? else {
            return std::future::pending().await;
        };
        let api = self.on(address);
        match self.tls {
            Some((listener, tls)) => registry::serve_tls(listener, &api, tls)
                .await
                .context("--registryTlsAddr"),
            None => std::future::pending().await,
        }
    }
}
