//! Dubbo's metadata centre in ZooKeeper.

use wire::jute::{Reader, op};

use super::read::Folder;
use super::session::Client;
use crate::adapters::applications::Centre;
use crate::naming::dubbo_application::{MetadataInfo, Provider};

/// The centres of a session.
pub(super) struct Centres<'a> {
    pub(super) client: &'a Client,
    /// Below each of these is one.
    pub(super) roots: Vec<String>,
}

impl Centre<Folder> for Centres<'_> {
    async fn info(&self, _: &Folder, provider: &Provider) -> Result<MetadataInfo, String> {
        let mut failure = "there is no metadata centre".to_owned();
        for root in &self.roots {
            let (application, revision) = (&provider.application, &provider.revision);
            let path = format!("{root}/metadata/{application}/{revision}");
            let reply = self
                .client
                .call(op::GET_DATA, |writer| {
                    writer.buffer(path.as_bytes()).bool(false);
                })
                .await;
            let data = match &reply {
                Some(Ok(body)) => Reader::new(body).buffer().ok(),
                _ => None,
            };
            match data.map(MetadataInfo::from_json) {
                Some(Ok(info)) => return Ok(info),
                Some(Err(error)) => failure = format!("{path}: {error}"),
                None => failure = format!("{path} cannot be read"),
            }
        }
        Err(failure)
    }
}
