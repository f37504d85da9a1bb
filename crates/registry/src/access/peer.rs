//! The other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::ConnectInfo;
use http::Extensions;
use tonic::transport::server::TcpConnectInfo;

use crate::tls::Identity;

/// Where a connection comes from, and the names of the client certificate that was verified on it. Servers put it into the
/// extensions of each request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Its names; none without a certificate.
    pub names: Vec<Arc<str>>,
}

impl Peer {
    /// A peer without a certificate.
    pub fn at(address: SocketAddr) -> Peer {
        Peer {
            address: Some(address),
            names: Vec::new(),
        }
    }

    /// A peer whose certificate was verified: its SPIFFE ids, else its DNS names, else its common name. A certificate that names
    /// nobody is an error.
    pub fn certified(address: SocketAddr, identity: &Identity) -> Result<Peer, String> {
        let ids = identity
            .uris
            .iter()
            .filter(|uri| uri.starts_with("spiffe://"));
        let ids: Vec<Arc<str>> = ids.map(|uri| uri.as_str().into()).collect();
        let dns = identity.dns_names.iter();
        let dns: Vec<Arc<str>> = dns
            .map(|name| format!("dns:{}", name.to_ascii_lowercase()).into())
            .collect();
        let common = identity.common_name.iter().filter(|name| !name.is_empty());
        let names = match (ids.is_empty(), dns.is_empty()) {
            (false, _) => ids,
            (true, false) => dns,
            (true, true) => common.map(|name| format!("cn:{name}").into()).collect(),
        };
        if names.is_empty() {
            return Err("the client certificate names nobody".to_owned());
        }
        Ok(Peer {
            address: Some(address),
            names,
        })
    }

    /// The peer of a request, as far as its server knows it.
    pub(crate) fn of(extensions: &Extensions) -> Peer {
        if let Some(peer) = extensions.get::<Peer>() {
            return peer.clone();
        }
        let address = extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map(|info| info.0);
        let tonic = || extensions.get::<TcpConnectInfo>()?.remote_addr();
        Peer {
            address: address.or_else(tonic),
            names: Vec::new(),
        }
    }
}
