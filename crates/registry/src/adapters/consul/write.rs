//! Copies as an agent takes them.

use std::time::Duration;

use serde_json::Value;

use super::agent::Agent;
use super::entry::registration;
use crate::adapters::leases::LeaseServer;
use crate::model::Instance;
use crate::naming::path_word;

/// An agent, and how long it waits for a sign.
pub(super) struct Writer<'a> {
    pub(super) agent: &'a Agent,
    pub(super) ttl: Duration,
}

/// A service of the agent.
pub(super) struct Registration {
    id: String,
    is_available: bool,
    body: Value,
}

impl LeaseServer for Writer<'_> {
    type Entry = Registration;

    fn entry(&self, id: &str, instance: &Instance) -> Result<Registration, String> {
        let id = path_word(id);
        Ok(Registration {
            body: registration(&id, instance, self.ttl)?,
            is_available: instance.is_available(),
            id,
        })
    }

    fn name(entry: &Registration) -> String {
        entry.id.clone()
    }

    async fn register(&self, entry: &Registration) -> Result<(), String> {
        self.agent.register(&entry.body).await
    }

    async fn renew(&self, entry: &Registration) -> Result<bool, String> {
        self.agent.renew(&entry.id, entry.is_available).await
    }

    async fn cancel(&self, entry: &Registration) -> Result<(), String> {
        self.agent.deregister(&entry.id).await
    }
}
