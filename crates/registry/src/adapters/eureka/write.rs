//! Copies as Eureka takes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::peer::Peer;
use crate::adapters::leases::LeaseServer;
use crate::eureka::info::Info;
use crate::eureka::model;
use crate::model::Instance;
use crate::naming::path_word;

/// A peer, and how long its leases are.
pub(super) struct Writer<'a> {
    pub(super) peer: &'a Peer,
    pub(super) lease: Duration,
}

impl LeaseServer for Writer<'_> {
    type Entry = Info;

    fn entry(&self, id: &str, instance: &Instance) -> Result<Info, String> {
        if !model::is_shown(&instance.service) {
            let protocol = &instance.service.protocol;
            return Err(format!("Eureka has no form for protocol {protocol}"));
        }
        let mut info = model::info(instance);
        info.id = path_word(id);
        // Clients call by this name: that of the original may be known elsewhere only.
        info.host_name = instance.address.to_string();
        info.lease.duration_secs = self.lease.as_secs();
        info.lease.renewal_secs = (self.lease / 3).as_secs().max(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0));
        info.last_dirty_ms = now;
        info.last_updated_ms = now;
        Ok(info)
    }

    fn name(info: &Info) -> String {
        format!("{}/{}", info.app, info.id)
    }

    async fn register(&self, info: &Info) -> Result<(), String> {
        self.peer.register(info).await
    }

    async fn renew(&self, info: &Info) -> Result<bool, String> {
        self.peer
            .renew(&info.app, &info.id, info.status, info.last_dirty_ms)
            .await
    }

    async fn cancel(&self, info: &Info) -> Result<(), String> {
        self.peer.cancel(&info.app, &info.id).await
    }
}
