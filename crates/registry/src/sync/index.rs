//! Which endpoints a registry already has, by whom.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hub::SourceView;
use crate::model::{Instance, ServiceKey};
use crate::services::{Service, Services};
use crate::source::ORIGIN_MARK;
use crate::sync::endpoint::{Endpoint, ServiceId};

/// What a registry has at one endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct There {
    /// An entry without a mark: an application's, or a copy that lost it.
    pub(crate) unmarked: bool,
    /// There was one, and it is held back from going.
    pub(crate) held: bool,
    /// A copy of another mesh, and its mark.
    pub(crate) foreign: Option<Box<str>>,
    /// A copy with this mesh's mark.
    pub(crate) copy: Option<Arc<Instance>>,
}

/// The endpoints of one registry. Only services that changed since the last time are read anew.
#[derive(Debug, Default)]
pub(crate) struct Index {
    own: Services,
    copies: Services,
    services: HashMap<ServiceId, Vec<ServiceKey>>,
    endpoints: HashMap<Endpoint, There>,
}

impl Index {
    pub(crate) fn get(&self, endpoint: &Endpoint) -> Option<&There> {
        self.endpoints.get(endpoint)
    }

    /// The endpoints with this mesh's mark.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (&Endpoint, &There, &Arc<Instance>)> {
        self.endpoints
            .iter()
            .filter_map(|(endpoint, there)| Some((endpoint, there, there.copy.as_ref()?)))
    }

    pub(crate) fn update(&mut self, view: &SourceView) {
        let mut changed = view.own.changed_since(&self.own);
        changed.extend(view.copies.changed_since(&self.copies));
        if changed.is_empty() {
            return;
        }
        // A service that is spelt in two ways is read as a whole.
        let mut ids: Vec<ServiceId> = Vec::new();
        for key in changed {
            let id = ServiceId::of(&key);
            let keys = self.services.entry(id.clone()).or_default();
            if !keys.contains(&key) {
                keys.push(key);
            }
            ids.push(id);
        }
        ids.sort();
        ids.dedup();
        for id in ids {
            let keys = self.services.get(&id).cloned().unwrap_or_default();
            for services in [&self.own, &self.copies] {
                for instance in instances(services, &keys) {
                    self.endpoints.remove(&id.endpoint(instance));
                }
            }
            for instance in instances(&view.own, &keys) {
                let there = self.endpoints.entry(id.endpoint(instance)).or_default();
                let held = view.held.get(&instance.service);
                if held.is_some_and(|held| held.instance(&instance.id).is_some()) {
                    there.held = true;
                    continue;
                }
                match instance.metadata.get(ORIGIN_MARK) {
                    None => there.unmarked = true,
                    // Of several the first in the order of meshes: it is who stays.
                    Some(mark) => {
                        if there.foreign.as_deref().is_none_or(|known| mark < known) {
                            there.foreign = Some(mark.into());
                        }
                    }
                }
            }
            for instance in instances(&view.copies, &keys) {
                let there = self.endpoints.entry(id.endpoint(instance)).or_default();
                there.copy = Some(instance.clone());
            }
            let gone =
                |key: &ServiceKey| view.own.get(key).is_none() && view.copies.get(key).is_none();
            if keys.iter().all(gone) {
                self.services.remove(&id);
            }
        }
        self.own = view.own.clone();
        self.copies = view.copies.clone();
    }
}

fn instances<'a>(
    services: &'a Services,
    keys: &'a [ServiceKey],
) -> impl Iterator<Item = &'a Arc<Instance>> {
    let services = keys.iter().filter_map(|key| services.get(key));
    services.flat_map(|service: &Arc<Service>| service.instances.iter())
}
