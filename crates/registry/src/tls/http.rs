//! Connections for HTTP clients.

use std::time::Duration;

use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::{ClientTls, TlsError, provider};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that is out of reach is noticed, also by a question that it may answer late, when so many signs of life in a row,
/// asked for so often, do not come.
const KEEPALIVE: (u32, Duration) = (3, Duration::from_secs(5));

/// Connections for HTTP/1.1; `tls` is what an `https` URL has, and `None` where all URLs are `http`.
pub(crate) fn http1_connector(
    tls: Option<&ClientTls>,
) -> Result<HttpsConnector<HttpConnector>, TlsError> {
    let connector = builder(tls)?.enable_http1();
    Ok(connector.wrap_connector(tcp()))
}

/// The same for HTTP/2.
pub(crate) fn http2_connector(
    tls: Option<&ClientTls>,
) -> Result<HttpsConnector<HttpConnector>, TlsError> {
    let connector = builder(tls)?.enable_http2();
    Ok(connector.wrap_connector(tcp()))
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    let (retries, interval) = KEEPALIVE;
    tcp.set_keepalive(Some(interval));
    tcp.set_keepalive_interval(Some(interval));
    tcp.set_keepalive_retries(Some(retries));
    tcp
}

fn builder(tls: Option<&ClientTls>) -> Result<HttpsConnectorBuilder<WantsProtocols1>, TlsError> {
    let Some(tls) = tls else {
        // No certificate would do.
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let builder = HttpsConnectorBuilder::new().with_tls_config(config);
        return Ok(builder.https_or_http());
    };
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls.config()?)
        .https_only();
    Ok(match &tls.server_name {
        None => builder,
        Some(name) => {
            let name = ServerName::try_from(name.clone())
                .map_err(|e| TlsError::Rustls(rustls::Error::General(e.to_string())))?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
    })
}
