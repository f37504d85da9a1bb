//! Copies that are parts of applications of Dubbo as well: a consumer that finds a provider in an application asks for no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Place, Target, Writing, is_copy, same_address};
use crate::adapters::application_level::application_beside;
use crate::adapters::nacos::Failure;
use crate::adapters::nacos::read::tenant;
use crate::model::Instance;
use crate::nacos::{ConfigPublishRequest, DEFAULT_GROUP, Host, Request, namespace};
use crate::naming::dubbo_application::entry::Entry;
use crate::naming::nacos::in_application;
use crate::source::Wanted;

/// What became of the copies that are parts of applications.
type Said = BTreeMap<Arc<str>, Result<(), String>>;

/// Copies of one address, which are one instance of the application.
struct Part {
    ids: Vec<Arc<str>>,
    host: Host,
    entry: Entry,
    /// The numbers of their writings together.
    revision: u64,
}

impl Writing<'_> {
    /// Adds what has to be parts of applications.
    pub(super) async fn add_parts(
        &mut self,
        wanted: &Wanted,
        target: &mut Target,
    ) -> Result<Said, Failure> {
        let mut said = Said::new();
        let mut shown: HashMap<Place, Vec<Host>> = HashMap::new();
        for (place, part) in self.parts(wanted) {
            if !self.has(&place, &part.host) {
                if !shown.contains_key(&place) {
                    let now = self.batch(&place).shown().await?;
                    shown.insert(place.clone(), now);
                }
                let is_original = |is: &Host| !is_copy(is) && same_address(is, &part.host);
                // To Nacos it would be the application's own instance.
                if shown
                    .get(&place)
                    .is_some_and(|shown| shown.iter().any(is_original))
                {
                    continue;
                }
            }
            let published = self.publish(&part.entry).await?;
            if published.is_ok() {
                let (copies, revision) = target.entry(place).or_default();
                *revision = revision.wrapping_add(part.revision);
                let ids = part.ids.iter().cloned();
                copies.extend(ids.map(|id| (id, part.host.clone())));
            }
            said.extend(part.ids.into_iter().map(|id| (id, published.clone())));
        }
        Ok(said)
    }

    fn parts(&self, wanted: &Wanted) -> Vec<(Place, Part)> {
        let mut by_address: BTreeMap<_, Vec<(&Arc<str>, &Instance)>> = BTreeMap::new();
        for (id, instance) in &wanted.publish {
            if !instance.healthy {
                continue;
            }
            if let Some(application) = application_beside(&self.served, instance) {
                let address = (application, &*instance.address, instance.port);
                by_address.entry(address).or_default().push((id, instance));
            }
        }
        let space = self.config.namespaces.first().map_or("", String::as_str);
        let parts = by_address
            .into_iter()
            .filter_map(|((application, ..), copies)| {
                let instances: Vec<&Instance> =
                    copies.iter().map(|(_, instance)| *instance).collect();
                let (host, entry) = in_application(application, &instances)?;
                let revisions = instances.iter().map(|instance| instance.revision);
                let place = Place {
                    space: namespace(space).to_owned(),
                    group: DEFAULT_GROUP.to_owned(),
                    service: application.to_string(),
                };
                let part = Part {
                    ids: copies.iter().map(|(id, _)| Arc::clone(id)).collect(),
                    host,
                    entry,
                    revision: revisions.fold(0, u64::wrapping_add),
                };
                Some((place, part))
            });
        parts.collect()
    }

    /// Whether this connection has put in an instance of this address.
    fn has(&self, place: &Place, host: &Host) -> bool {
        let placed = self.placed.get(place);
        placed.is_some_and(|placed| placed.copies.values().any(|is| same_address(is, host)))
    }

    /// Puts in the configuration that says what a part serves. It stays, as those of applications do.
    async fn publish(&mut self, entry: &Entry) -> Result<Result<(), String>, Failure> {
        let key = (entry.application.clone(), entry.revision.clone());
        if self.published.contains(&key) {
            return Ok(Ok(()));
        }
        let request = Request::ConfigPublish(ConfigPublishRequest {
            data_id: entry.application.clone(),
            group: entry.revision.clone(),
            tenant: tenant(self.connection.namespace()).to_owned(),
            content: entry.info.clone(),
            ..ConfigPublishRequest::default()
        });
        let asked = self.connection.try_ask(self.config, self.login, &request);
        Ok(match asked.await? {
            Ok(_) => {
                self.published.insert(key);
                Ok(())
            }
            Err(refused) => Err(format!("the revision's configuration: {refused}")),
        })
    }
}
