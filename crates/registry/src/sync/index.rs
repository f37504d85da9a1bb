//! Which endpoints a registry already has, by whom.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hub::SourceView;
use crate::model::{Instance, ServiceKey};
use crate::naming::path_word;
use crate::services::{Service, Services};
use crate::source::ORIGIN_MARK;
use crate::sync::endpoint::{Endpoint, ServiceId};

/// What a registry has at one endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct There {
    /// An application's entry.
    pub(crate) others: bool,
    /// A copy of this mesh that lost its mark.
    pub(crate) lost: bool,
    /// An entry without a mark, and nothing else says which of the two it is.
    pub(crate) unmarked: bool,
    /// There was one, and it is held back from going.
    pub(crate) held: bool,
    /// A copy of another mesh, and its mark.
    pub(crate) foreign: Option<Box<str>>,
    /// A copy with this mesh's mark.
    pub(crate) copy: Option<Arc<Instance>>,
}

/// Whose an entry without a mark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// An application's.
    Others,
    /// This mesh's: it lost its mark.
    Lost,
    /// One of the two.
    Unknown,
}

impl Whose {
    /// Ids tell, where the hub did not make them up.
    pub(crate) fn of(
        instance: &Instance,
        service: &ServiceId,
        mesh: &str,
        view: &SourceView,
    ) -> Whose {
        let id = &*instance.id;
        // Those of copies have one, and those that the hub makes up.
        if view.marks_stay || !id.contains('@') {
            return Whose::Others;
        }
        let copy_id = service.endpoint(instance).copy_id(mesh);
        if *id == *copy_id || *id == path_word(&copy_id) {
            return Whose::Lost;
        }
        let made_up = id.strip_suffix(&*instance.origin);
        match made_up.is_some_and(|rest| rest.ends_with('@')) {
            true => Whose::Unknown,
            false => Whose::Others,
        }
    }
}

impl There {
    /// Whether there is an entry without a mark.
    pub(crate) fn is_unmarked(&self) -> bool {
        self.others || self.lost || self.unmarked
    }

    /// Whether a copy of another mesh stays beside this mesh's: of two the first in their order does.
    pub(crate) fn comes_first(&self, mesh: &str) -> bool {
        let foreign = self.foreign.as_deref();
        foreign.is_some_and(|mark| mark.split('/').next() < Some(mesh))
    }
}

/// The endpoints of one registry. Only services that changed since the last time are read anew.
#[derive(Debug, Default)]
pub(crate) struct Index {
    own: Services,
    held: Services,
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

    pub(crate) fn update(&mut self, mesh: &str, view: &SourceView) {
        let mut changed = view.own.changed_since(&self.own);
        changed.extend(view.held.changed_since(&self.held));
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
                    None => match Whose::of(instance, &id, mesh, view) {
                        Whose::Others => there.others = true,
                        Whose::Lost => there.lost = true,
                        Whose::Unknown => there.unmarked = true,
                    },
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
        self.held = view.held.clone();
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
