//! The demo mesh: who is in it, and at which loopback address. Each application has an address of its own, which it
//! shares with its sidecar only, as containers of a Pod do.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use clap::ValueEnum;

/// Namespace of all demo applications.
pub(crate) const NAMESPACE: &str = "demo";
/// Pilot's ports, at the first address.
pub(crate) const PILOT_GRPC: u16 = 15010;
pub(crate) const PILOT_HTTP: u16 = 8080;
pub(crate) const PILOT_MONITORING: u16 = 15014;
/// Each sidecar's admin interface.
pub(crate) const ADMIN: u16 = 15000;
/// Each sidecar's registry for SOFARPC applications.
pub(crate) const MESH_REGISTRY: u16 = 13330;

/// What a demo application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1, as Spring applications speak it
    Http,
    /// SOFARPC on Bolt
    Bolt,
    /// Dubbo 2
    Dubbo,
}

/// All of them, in the order of tables.
pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Http, Protocol::Bolt, Protocol::Dubbo];

impl Protocol {
    /// Where the applications of this protocol call their sidecar.
    pub(crate) fn egress_port(self) -> u16 {
        match self {
            Protocol::Http => 8080,
            Protocol::Bolt => 12220,
            Protocol::Dubbo => 30880,
        }
    }

    /// Where other sidecars call the provider's sidecar.
    pub(crate) fn ingress_port(self) -> u16 {
        match self {
            Protocol::Http => 10080,
            Protocol::Bolt => 12200,
            Protocol::Dubbo => 30800,
        }
    }

    /// Where the provider itself listens.
    pub(crate) fn application_port(self) -> u16 {
        match self {
            Protocol::Http => 9080,
            Protocol::Bolt => 12199,
            Protocol::Dubbo => 20880,
        }
    }

    /// The host, or interface, that is called.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Protocol::Http => "stock.demo",
            Protocol::Bolt => "demo.PriceService",
            Protocol::Dubbo => "demo.OrderService",
        }
    }

    /// The word for `protocol:` in Istio's documents and in the registry.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Bolt => "bolt",
            Protocol::Dubbo => "dubbo",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Http => "HTTP",
            Protocol::Bolt => "Bolt",
            Protocol::Dubbo => "Dubbo",
        })
    }
}

/// Whether an application calls or is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Consumer,
    Provider,
}

/// A demo application and its sidecar.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    /// Its label `app`.
    pub(crate) app: &'static str,
    /// Its label `version`.
    pub(crate) version: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) role: Role,
    pub(crate) address: Ipv4Addr,
}

impl Application {
    /// `app-version`: the name of the process, of its files, and of its sidecar.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.app, self.version)
    }

    /// A port at its address.
    pub(crate) fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }
}

/// The whole cast.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The address of pilot.
    pub(crate) pilot: Ipv4Addr,
    pub(crate) applications: Vec<Application>,
}

impl Plan {
    /// The demo mesh on `network.1` to `network.32`.
    pub(crate) fn new(network: [u8; 3]) -> Self {
        let address = |last| Ipv4Addr::new(network[0], network[1], network[2], last);
        let mut applications = Vec::new();
        let cast = [
            (Protocol::Http, "web", "stock", 10),
            (Protocol::Bolt, "cart", "pricing", 20),
            (Protocol::Dubbo, "checkout", "orders", 30),
        ];
        for (protocol, consumer, provider, first) in cast {
            let members = [
                (consumer, "v1", Role::Consumer),
                (provider, "v1", Role::Provider),
                (provider, "v2", Role::Provider),
            ];
            for ((app, version, role), offset) in members.into_iter().zip(0..) {
                applications.push(Application {
                    app,
                    version,
                    protocol,
                    role,
                    address: address(first + offset),
                });
            }
        }
        Self {
            pilot: address(1),
            applications,
        }
    }

    /// A port of pilot.
    pub(crate) fn pilot_at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.pilot, port)
    }

    /// Those of one role.
    pub(crate) fn of_role(&self, role: Role) -> impl Iterator<Item = &Application> {
        self.applications.iter().filter(move |app| app.role == role)
    }

    /// The consumer of a protocol; the cast has one for each.
    pub(crate) fn consumer(&self, protocol: Protocol) -> Option<&Application> {
        self.of_role(Role::Consumer)
            .find(|app| app.protocol == protocol)
    }
}
