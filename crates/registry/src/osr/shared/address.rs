//! Where the shared etcd is.

use crate::adapters::etcd::client::{Client, Failure};
use crate::secret::Credentials;
use crate::tls::ClientTls;

/// The etcd that several registries share.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdStore {
    /// `host:port` of each server.
    pub servers: Vec<String>,
    /// What all keys begin with; begins with `/` and does not end with it.
    pub prefix: String,
    /// Who logs in, where the servers want it.
    pub login: Option<Credentials>,
    /// How the servers are reached by TLS.
    pub tls: Option<ClientTls>,
}

impl EtcdStore {
    /// Keys of an address that names none.
    pub const PREFIX: &str = "/mesh/registry";

    /// Reads `etcd://host:port,host:port/prefix`, or `etcds://…` for TLS.
    pub fn parse(url: &str) -> Result<EtcdStore, String> {
        let wrong =
            |why: &str| format!("`{url}` is not etcd://<host>:<port>[,...][/prefix]: {why}");
        let (rest, tls) = match (url.strip_prefix("etcd://"), url.strip_prefix("etcds://")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => return Err(wrong("it does not begin with etcd://")),
        };
        let (servers, prefix) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, EtcdStore::PREFIX),
        };
        let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
        for server in &servers {
            crate::naming::host_port(server).map_err(|e| wrong(&e.to_string()))?;
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.is_empty() || prefix.contains("//") {
            return Err(wrong("the prefix is none"));
        }
        Ok(EtcdStore {
            servers,
            prefix: prefix.to_owned(),
            login: None,
            tls: tls.then(ClientTls::default),
        })
    }

    /// Connects to one of the servers: another one for each number.
    pub(crate) async fn connect(&self, number: usize) -> Result<Client, Failure> {
        let server = self.servers.get(number % self.servers.len().max(1));
        let server = server.map(String::as_str).unwrap_or_default();
        Client::connect(server, self.login.as_ref(), self.tls.as_ref()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let store = EtcdStore::parse("etcd://a:2379,[::1]:2379/one/two/").expect("an address");
        assert_eq!(store.servers, ["a:2379", "[::1]:2379"]);
        assert_eq!(store.prefix, "/one/two");
        let store = EtcdStore::parse("etcd://a:1").expect("an address");
        assert_eq!(store.prefix, EtcdStore::PREFIX);
        for wrong in [
            "",
            "redis://a:1",
            "etcd://",
            "etcd://a",
            "etcd://a:1/",
            "etcd://a:1,/x",
        ] {
            assert!(EtcdStore::parse(wrong).is_err(), "{wrong}");
        }
    }
}
