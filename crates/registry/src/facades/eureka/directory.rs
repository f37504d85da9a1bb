//! The hub's services as Eureka's applications, and what has changed of them in the last minutes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::eureka::info::{Action, Info, Status};
use crate::eureka::{Format, applications, model};
use crate::model::{Instance, ServiceKey};
use crate::services::Services;

/// How long a change is told, as servers do it.
const REACH: Duration = Duration::from_secs(180);
/// Changes that are remembered at most; a client that missed one finds that by the hash.
const REMEMBERED: usize = 100_000;

/// Application and its instances in the order of their ids.
pub(super) type Apps = BTreeMap<String, Arc<[Arc<Instance>]>>;

/// A change of an instance.
#[derive(Clone)]
pub(super) struct Recent {
    at: Instant,
    pub(super) action: Action,
    pub(super) instance: Arc<Instance>,
}

struct State {
    services: Arc<Services>,
    apps: Arc<Apps>,
    /// The services of an application: one protocol's and another's can have the same name.
    keys: HashMap<String, BTreeSet<ServiceKey>>,
    recent: VecDeque<Recent>,
    statuses: BTreeMap<&'static str, usize>,
}

/// Everything that clients can be told.
pub(super) struct Directory {
    state: Mutex<State>,
    /// The whole list as it was written last, of both forms.
    written: Mutex<HashMap<&'static str, (Arc<Apps>, Bytes)>>,
}

impl Directory {
    pub(super) fn new(services: Arc<Services>) -> Directory {
        let mut state = State {
            services: Arc::default(),
            apps: Arc::default(),
            keys: HashMap::new(),
            recent: VecDeque::new(),
            statuses: BTreeMap::new(),
        };
        state.update(services);
        // Nobody has asked yet: nothing is a change.
        state.recent.clear();
        Directory {
            state: Mutex::new(state),
            written: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the hub's next picture.
    pub(super) fn update(&self, services: Arc<Services>) {
        self.state().update(services);
    }

    /// All applications and their hash.
    pub(super) fn apps(&self) -> (Arc<Apps>, String) {
        let state = self.state();
        (state.apps.clone(), state.hash())
    }

    /// What has changed, of each instance the last, and the hash of everything.
    pub(super) fn delta(&self) -> (Vec<Recent>, String) {
        let mut state = self.state();
        state.forget();
        let mut seen: HashSet<(&ServiceKey, &str)> = HashSet::new();
        let last = state.recent.iter().rev().filter(|recent| {
            let instance = &recent.instance;
            seen.insert((&instance.service, &instance.id))
        });
        let mut last: Vec<Recent> = last.cloned().collect();
        last.reverse();
        (last, state.hash())
    }

    /// All applications as they are written.
    pub(super) fn whole(&self, format: Format) -> Bytes {
        let (apps, hash) = self.apps();
        let kind = format.content_type();
        let known = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, bytes)) = known.get(kind)
            && Arc::ptr_eq(of, &apps)
        {
            return bytes.clone();
        }
        drop(known);
        let bytes = write(&apps, &hash, format);
        let mut known = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        // Holding the list also keeps its address from being used for the next one.
        known.insert(kind, (apps, bytes.clone()));
        bytes
    }
}

/// Applications as they are written.
pub(super) fn write(apps: &Apps, hash: &str, format: Format) -> Bytes {
    let infos: BTreeMap<String, Vec<Info>> = apps
        .iter()
        .map(|(app, instances)| {
            let infos = instances.iter().map(|instance| model::info(instance));
            (app.clone(), infos.collect())
        })
        .collect();
    let content = applications(&infos, hash, format);
    format.write("applications", content).into()
}

impl State {
    fn update(&mut self, services: Arc<Services>) {
        let mut changed: BTreeSet<String> = BTreeSet::new();
        for key in services.changed_since(&self.services) {
            if !model::is_shown(&key) {
                continue;
            }
            let app = model::app(&key);
            let keys = self.keys.entry(app.clone()).or_default();
            if services.get(&key).is_some() {
                keys.insert(key);
            } else {
                keys.remove(&key);
            }
            changed.insert(app);
        }
        self.services = services;
        for app in changed {
            self.update_app(&app);
        }
        self.forget();
    }

    fn update_app(&mut self, app: &str) {
        let keys = self.keys.get(app).into_iter().flatten();
        let mut after: BTreeMap<&str, &Arc<Instance>> = BTreeMap::new();
        let mut endpoints = HashSet::new();
        // Of the two protocols Spring Cloud's is the last, and says more of an endpoint.
        for key in keys.rev() {
            let service = self.services.get(key);
            for instance in service.iter().flat_map(|service| service.instances.iter()) {
                if endpoints.insert((&instance.address, instance.port)) {
                    after.entry(&instance.id).or_insert(instance);
                }
            }
        }
        let list: Arc<[Arc<Instance>]> = after.into_values().cloned().collect();
        if list.is_empty() {
            self.keys.remove(app);
        }
        let apps = Arc::make_mut(&mut self.apps);
        let before = if list.is_empty() {
            apps.remove(app)
        } else {
            apps.insert(app.to_owned(), list.clone())
        };
        self.remember(before.as_deref().unwrap_or_default(), &list);
    }

    fn remember(&mut self, before: &[Arc<Instance>], after: &[Arc<Instance>]) {
        let find = |list: &[Arc<Instance>], id: &str| {
            let at = list.binary_search_by(|instance| instance.id.as_ref().cmp(id));
            at.ok().and_then(|at| list.get(at)).cloned()
        };
        let at = Instant::now();
        let mut push = |action, instance: &Arc<Instance>| {
            let instance = instance.clone();
            self.recent.push_back(Recent {
                at,
                action,
                instance,
            });
        };
        let mut counted: Vec<(Status, bool)> = Vec::new();
        for gone in before.iter().filter(|gone| find(after, &gone.id).is_none()) {
            push(Action::Deleted, gone);
            counted.push((model::status(gone), false));
        }
        for instance in after {
            match find(before, &instance.id) {
                Some(known) if Arc::ptr_eq(&known, instance) => continue,
                Some(known) => {
                    push(Action::Modified, instance);
                    counted.push((model::status(&known), false));
                }
                None => push(Action::Added, instance),
            }
            counted.push((model::status(instance), true));
        }
        for (status, is_new) in counted {
            let count = self.statuses.entry(status.name()).or_default();
            *count = if is_new {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        }
    }

    fn forget(&mut self) {
        let now = Instant::now();
        let is_old = |recent: &Recent| now.saturating_duration_since(recent.at) > REACH;
        while self.recent.len() > REMEMBERED || self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
    }

    fn hash(&self) -> String {
        let present = self.statuses.iter().filter(|(_, count)| **count > 0);
        present
            .map(|(status, count)| format!("{status}_{count}_"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(protocol: &str, id: &str, port: u16, healthy: bool) -> Arc<Instance> {
        let mut instance = Instance::new(ServiceKey::new(protocol, "shop"), "10.0.0.1", port);
        instance.id = id.into();
        instance.healthy = healthy;
        Arc::new(instance)
    }

    fn services(before: &Services, protocol: &str, instances: &[Arc<Instance>]) -> Arc<Services> {
        let key = ServiceKey::new(protocol, "shop");
        let service = (!instances.is_empty()).then(|| {
            Arc::new(crate::services::Service {
                key: key.clone(),
                instances: instances.into(),
            })
        });
        Arc::new(before.with(before.revision + 1, vec![(key, service)]))
    }

    fn told(directory: &Directory) -> (Vec<(String, Action)>, String) {
        let (recent, hash) = directory.delta();
        let told = recent.iter().map(|r| (r.instance.id.to_string(), r.action));
        (told.collect(), hash)
    }

    #[test]
    fn changes_are_told_once_an_instance_and_the_hash_is_of_all() {
        let (a, b) = (
            instance("springcloud", "a", 1, true),
            instance("springcloud", "b", 2, true),
        );
        let first = services(
            &Services::default(),
            "springcloud",
            std::slice::from_ref(&a),
        );
        let directory = Directory::new(first.clone());
        assert_eq!(told(&directory), (vec![], "UP_1_".to_owned()));

        let second = services(&first, "springcloud", &[a.clone(), b]);
        directory.update(second.clone());
        let down = instance("springcloud", "b", 2, false);
        let third = services(&second, "springcloud", &[a.clone(), down]);
        directory.update(third.clone());
        let changes = vec![("b".to_owned(), Action::Modified)];
        assert_eq!(told(&directory), (changes, "DOWN_1_UP_1_".to_owned()));

        // The same endpoint under another protocol is not there twice.
        let fourth = services(&third, "http", &[instance("http", "c", 1, true)]);
        directory.update(fourth.clone());
        assert_eq!(directory.apps().1, "DOWN_1_UP_1_");
        let fifth = services(&fourth, "springcloud", &[]);
        directory.update(fifth);
        let (changes, hash) = told(&directory);
        let expected = [
            ("a", Action::Deleted),
            ("b", Action::Deleted),
            ("c", Action::Added),
        ];
        let expected = expected.map(|(id, action)| (id.to_owned(), action));
        assert_eq!(
            (changes.as_slice(), hash.as_str()),
            (&expected[..], "UP_1_")
        );
    }
}
