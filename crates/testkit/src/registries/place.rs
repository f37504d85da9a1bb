//! Where a server runs: on loopback addresses, or in a network namespace of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;

use crate::net::Loopback;
use crate::netns::Site;

#[derive(Debug)]
pub(super) enum Place {
    Loopback(Loopback),
    Site(Arc<Site>),
}

impl Place {
    pub(super) fn loopback() -> Result<Place> {
        Loopback::claim().map(Place::Loopback)
    }

    pub(super) fn ip(&self) -> Ipv4Addr {
        match self {
            Place::Loopback(loopback) => loopback.ip(1),
            Place::Site(site) => site.inside(),
        }
    }

    pub(super) fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip(), port))
    }

    /// The command that starts a program here.
    pub(super) fn command(&self, program: Command) -> Command {
        match self {
            Place::Loopback(_) => program,
            Place::Site(site) => site.enter(&program),
        }
    }
}
