//! Protocols of service ports: Istio's, and the RPC protocols that Istio does not know.

use std::fmt;

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1, and what upgrades from it.
    Http,
    /// HTTP/2 without TLS, gRPC and gRPC-Web among it.
    Http2,
    /// TLS that is passed through.
    Tls,
    /// Any byte stream.
    Tcp,
    /// Datagrams: no listener is made for them.
    Udp,
    /// Dubbo2.
    Dubbo,
    /// SOFARPC on Bolt v1 or v2.
    Bolt,
    /// Triple (Dubbo 3 on HTTP/2).
    Tri,
    /// Not said: Istio would sniff it.
    Unknown,
}

impl Protocol {
    /// Parses the `protocol` of a port, without case. `None` for a word that is no protocol.
    pub fn parse(word: &str) -> Option<Protocol> {
        Some(match word.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" => Protocol::Http,
            "http2" | "grpc" | "grpc-web" => Protocol::Http2,
            "https" | "tls" => Protocol::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "dubbo" => Protocol::Dubbo,
            "bolt" | "sofarpc" => Protocol::Bolt,
            "tri" => Protocol::Tri,
            _ => return None,
        })
    }

    /// Istio's rule for a port without protocol: the word before the first `-` of its name.
    pub fn from_port_name(name: &str) -> Protocol {
        if name.to_ascii_lowercase().starts_with("grpc-web") {
            return Protocol::Http2;
        }
        let word = name.split('-').next().unwrap_or_default();
        Protocol::parse(word).unwrap_or(Protocol::Unknown)
    }

    /// Whether calls are routed as RPC: one virtual host for each interface.
    pub fn is_rpc(self) -> bool {
        matches!(self, Protocol::Dubbo | Protocol::Bolt | Protocol::Tri)
    }

    /// Whether HTTP routes apply.
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2)
    }

    /// The service port that an RPC service from a registry gets: what the usual egress listener
    /// of the protocol serves. HTTP services of a registry get 80.
    pub fn registry_port(self) -> u16 {
        match self {
            Protocol::Bolt => 12220,
            Protocol::Dubbo => 30880,
            Protocol::Tri => 50051,
            _ => 80,
        }
    }

    /// The word users write.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Tls => "tls",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Dubbo => "dubbo",
            Protocol::Bolt => "bolt",
            Protocol::Tri => "tri",
            Protocol::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_protocols_and_port_names() {
        for (word, expected) in [
            ("HTTP", Some(Protocol::Http)),
            ("GRPC-Web", Some(Protocol::Http2)),
            ("SofaRPC", Some(Protocol::Bolt)),
            ("dubbo", Some(Protocol::Dubbo)),
            ("carrier-pigeon", None),
            ("", None),
        ] {
            assert_eq!(Protocol::parse(word), expected, "{word}");
        }
        for (name, expected) in [
            ("http-web", Protocol::Http),
            ("dubbo", Protocol::Dubbo),
            ("grpc-web-1", Protocol::Http2),
            ("admin", Protocol::Unknown),
        ] {
            assert_eq!(Protocol::from_port_name(name), expected, "{name}");
        }
    }
}
