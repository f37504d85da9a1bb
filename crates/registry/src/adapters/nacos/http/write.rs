//! Copies over HTTP: ephemeral instances that live as long as their beats come.

use std::time::Duration;

use super::{Registered, Server, Told, What};
use crate::adapters::leases::{self, LeaseServer};
use crate::adapters::nacos::place;
use crate::model::Instance;
use crate::source::Link;

/// Servers say after 15 s without one that an instance is ill, and after 30 s that it is gone.
pub(super) const BEAT: Duration = Duration::from_secs(5);

/// The copies, as the servers have them; those of a cluster tell each other.
pub(in crate::adapters::nacos) type Copies = leases::Written<Registered>;

/// Writes until the hub ends.
pub(super) async fn run(server: &Server<'_>, link: &Link, copies: &mut Copies) {
    leases::run(server, link, BEAT, copies).await;
}

impl LeaseServer for Server<'_> {
    type Entry = Registered;

    fn entry(&self, _: &str, instance: &Instance) -> Result<Registered, String> {
        let (space, registration) = place(self.config, instance)?;
        Ok(Registered {
            space: space.to_owned(),
            group: registration.group,
            service: registration.service,
            host: registration.host,
        })
    }

    fn name(entry: &Registered) -> String {
        let Registered {
            space,
            group,
            service,
            host,
        } = entry;
        let (ip, port, cluster) = (&host.ip, host.port, &host.cluster_name);
        format!("{space}/{group}@@{service}/{ip}:{port}#{cluster}")
    }

    async fn register(&self, entry: &Registered) -> Result<(), String> {
        self.tell(What::Register, entry).await.map(|_| ())
    }

    async fn renew(&self, entry: &Registered) -> Result<bool, String> {
        let told = self.tell(What::Beat, entry).await?;
        Ok(told == Told::Done)
    }

    async fn cancel(&self, entry: &Registered) -> Result<(), String> {
        self.tell(What::Deregister, entry).await.map(|_| ())
    }
}
