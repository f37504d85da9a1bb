//! An immutable picture of all services. The next picture shares everything with this one that did not change.

use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

use foldhash::fast::RandomState;
use foldhash::{HashMap, HashMapExt};

use crate::model::{Instance, InstanceRef, Selector, ServiceKey};

/// A change copies one shard: with a million services that is a thousand pointers.
const SHARDS: usize = 1024;

/// One service with all its instances; there is none without instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub key: ServiceKey,
    /// In the order of their ids.
    pub instances: Arc<[Arc<Instance>]>,
}

impl Service {
    /// The instance of this id.
    pub fn instance(&self, id: &str) -> Option<&Arc<Instance>> {
        let at = self.position(id).ok()?;
        self.instances.get(at)
    }

    fn position(&self, id: &str) -> Result<usize, usize> {
        self.instances
            .binary_search_by(|instance| instance.id.as_ref().cmp(id))
    }
}

/// Services in the order of their keys' hashes: to copy it costs one count a service, and a search compares numbers.
#[derive(Clone, Debug, Default)]
struct Shard(Vec<(u64, Arc<Service>)>);

impl Shard {
    /// Where the service is, or would be.
    fn find(&self, hash: u64, key: &ServiceKey) -> Result<usize, usize> {
        let first = self.0.partition_point(|(other, _)| *other < hash);
        let same = self.0.iter().skip(first);
        let mut same = same.take_while(|(other, _)| *other == hash);
        match same.position(|(_, service)| service.key == *key) {
            Some(at) => Ok(first + at),
            None => Err(first),
        }
    }

    fn get(&self, hash: u64, key: &ServiceKey) -> Option<&Arc<Service>> {
        let at = self.find(hash, key).ok()?;
        self.0.get(at).map(|(_, service)| service)
    }

    /// Puts it in, and gives what was in its place.
    fn insert(&mut self, hash: u64, service: Arc<Service>) -> Option<Arc<Service>> {
        match self.find(hash, &service.key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, service)),
            Err(at) => {
                self.0.insert(at, (hash, service));
                None
            }
        }
    }

    fn remove(&mut self, hash: u64, key: &ServiceKey) -> Option<Arc<Service>> {
        let at = self.find(hash, key).ok()?;
        Some(self.0.remove(at).1)
    }
}

/// Pictures of nothing share one.
static EMPTY: LazyLock<Arc<[Arc<Shard>]>> =
    LazyLock::new(|| std::iter::repeat_n(Arc::new(Shard::default()), SHARDS).collect());

/// All services at one revision.
#[derive(Clone, Debug)]
pub struct Services {
    /// The registry's revision of which this is the picture.
    pub revision: u64,
    shards: Arc<[Arc<Shard>]>,
    /// A bit for each shard that is not empty.
    occupied: [u64; SHARDS / 64],
    services: usize,
    instances: usize,
}

impl Default for Services {
    fn default() -> Services {
        Services {
            revision: 0,
            shards: EMPTY.clone(),
            occupied: [0; SHARDS / 64],
            services: 0,
            instances: 0,
        }
    }
}

impl Services {
    /// How many services there are.
    pub fn len(&self) -> usize {
        self.services
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services == 0
    }

    /// How many instances there are.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// The service of this name. Two pictures hold the same `Arc` if it did not change between them.
    pub fn get(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        let hash = hash_of(key);
        self.shards.get(shard_of(hash))?.get(hash, key)
    }

    /// The instance of this name.
    pub fn instance(&self, reference: &InstanceRef) -> Option<&Arc<Instance>> {
        self.get(&reference.service)?.instance(&reference.id)
    }

    /// All services, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        let words = self.occupied.iter().enumerate();
        let bits = words.flat_map(|(at, word)| {
            let first = (*word != 0).then_some(*word);
            let words = std::iter::successors(first, |left| {
                let rest = left & (left - 1);
                (rest != 0).then_some(rest)
            });
            words.map(move |left| at * 64 + left.trailing_zeros() as usize)
        });
        let shards = bits.filter_map(|shard| self.shards.get(shard));
        shards.flat_map(|shard| shard.0.iter().map(|(_, service)| service))
    }

    /// The picture in which these services are as given; `None` has no instances.
    pub(crate) fn with(
        &self,
        revision: u64,
        services: Vec<(ServiceKey, Option<Arc<Service>>)>,
    ) -> Services {
        let mut next = self.clone();
        next.revision = revision;
        let is_new = |key: &ServiceKey, service: &Option<Arc<Service>>| {
            service.is_some() || self.get(key).is_some()
        };
        if !services.iter().any(|(key, service)| is_new(key, service)) {
            return next;
        }
        let mut shards = next.shards.to_vec();
        for (key, service) in services {
            let hash = hash_of(&key);
            let at = shard_of(hash);
            let Some(shard) = shards.get_mut(at) else {
                continue;
            };
            let new = service.as_ref().map_or(0, |s| s.instances.len());
            let exists = service.is_some();
            let before = match service {
                Some(service) => Arc::make_mut(shard).insert(hash, service),
                None if shard.get(hash, &key).is_some() => Arc::make_mut(shard).remove(hash, &key),
                None => None,
            };
            note(&mut next.occupied, at, shard);
            let old = before.as_ref().map_or(0, |s| s.instances.len());
            next.instances = next.instances + new - old;
            next.services = next.services + usize::from(exists) - usize::from(before.is_some());
        }
        next.shards = shards.into();
        next
    }

    /// The services that differ from those of an earlier picture; what both share costs nothing.
    pub(crate) fn changed_since(&self, before: &Services) -> Vec<ServiceKey> {
        let mut changed = Vec::new();
        if Arc::ptr_eq(&self.shards, &before.shards) {
            return changed;
        }
        let shards = self.shards.iter().zip(before.shards.iter());
        for (now, then) in shards.filter(|(now, then)| !Arc::ptr_eq(now, then)) {
            let is_new = |(hash, service): &&(u64, Arc<Service>)| {
                let before = then.get(*hash, &service.key);
                before.is_none_or(|before| !Arc::ptr_eq(before, service))
            };
            let is_gone =
                |(hash, service): &&(u64, Arc<Service>)| now.get(*hash, &service.key).is_none();
            let new = now.0.iter().filter(is_new);
            let services = new.chain(then.0.iter().filter(is_gone));
            changed.extend(services.map(|(_, service)| service.key.clone()));
        }
        changed
    }

    /// The services that can hold what a selector means, in the order of their names.
    pub fn select(&self, selector: &Selector) -> Vec<&Arc<Service>> {
        if let Some(key) = selector.key() {
            let found = self.get(&key).into_iter();
            return found.filter(|s| selector.matches_service(&s.key)).collect();
        }
        let mut services: Vec<_> = self
            .iter()
            .filter(|s| selector.matches_service(&s.key))
            .collect();
        services.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        services
    }
}

fn hash_of(key: &ServiceKey) -> u64 {
    // Drawn anew by each process: nobody can know names that meet in one shard.
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::default);
    STATE.hash_one(key)
}

fn shard_of(hash: u64) -> usize {
    usize::try_from(hash % SHARDS as u64).unwrap_or(0)
}

/// Notes whether a shard is empty.
fn note(occupied: &mut [u64; SHARDS / 64], at: usize, shard: &Shard) {
    if let Some(word) = occupied.get_mut(at / 64) {
        let bit = 1 << (at % 64);
        *word = if shard.0.is_empty() {
            *word & !bit
        } else {
            *word | bit
        };
    }
}

/// The next picture while it is drawn: shards and services are copied when they are first touched.
pub(crate) struct Draft {
    services: Services,
    touched: HashMap<ServiceKey, Vec<Arc<Instance>>>,
}

impl Draft {
    pub(crate) fn of(services: &Services) -> Draft {
        Draft {
            services: services.clone(),
            touched: HashMap::new(),
        }
    }

    /// Instances of all services.
    pub(crate) fn instances(&self) -> usize {
        self.services.instances
    }

    pub(crate) fn get(&self, reference: &InstanceRef) -> Option<&Arc<Instance>> {
        match self.touched.get(&reference.service) {
            None => self.services.instance(reference),
            Some(instances) => {
                let at = position(instances, &reference.id).ok()?;
                instances.get(at)
            }
        }
    }

    /// Instances of all services, and of this one.
    pub(crate) fn count(&self, key: &ServiceKey) -> (usize, usize) {
        let of_service = match self.touched.get(key) {
            Some(instances) => instances.len(),
            None => self
                .services
                .get(key)
                .map_or(0, |service| service.instances.len()),
        };
        (self.services.instances, of_service)
    }

    pub(crate) fn put(&mut self, instance: Arc<Instance>) {
        let instances = self.touch(&instance.service);
        match position(instances, &instance.id) {
            Ok(at) => instances[at] = instance,
            Err(at) => {
                instances.insert(at, instance);
                self.services.instances += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, reference: &InstanceRef) {
        let instances = self.touch(&reference.service);
        if let Ok(at) = position(instances, &reference.id) {
            instances.remove(at);
            self.services.instances -= 1;
        }
    }

    fn touch(&mut self, key: &ServiceKey) -> &mut Vec<Arc<Instance>> {
        let services = &self.services;
        self.touched.entry(key.clone()).or_insert_with(|| {
            services
                .get(key)
                .map_or_else(Vec::new, |s| s.instances.to_vec())
        })
    }

    /// The picture at `revision`.
    pub(crate) fn finish(self, revision: u64) -> Services {
        let Draft {
            mut services,
            touched,
        } = self;
        services.revision = revision;
        if touched.is_empty() {
            return services;
        }
        let mut shards = services.shards.to_vec();
        for (key, instances) in touched {
            let hash = hash_of(&key);
            let at = shard_of(hash);
            let Some(shard) = shards.get_mut(at) else {
                continue;
            };
            let shard = Arc::make_mut(shard);
            if instances.is_empty() {
                let removed = shard.remove(hash, &key).is_some();
                services.services -= usize::from(removed);
            } else {
                let instances = instances.into();
                let service = Service { key, instances };
                let was_there = shard.insert(hash, Arc::new(service)).is_some();
                services.services += usize::from(!was_there);
            }
            note(&mut services.occupied, at, shard);
        }
        services.shards = shards.into();
        services
    }
}

fn position(instances: &[Arc<Instance>], id: &str) -> Result<usize, usize> {
    instances.binary_search_by(|instance| instance.id.as_ref().cmp(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str, id: &str) -> Arc<Instance> {
        let mut instance = Instance::new(ServiceKey::new("bolt", name), "10.0.0.1", 12200);
        instance.id = id.into();
        Arc::new(instance)
    }

    #[test]
    fn shares_what_did_not_change() {
        let mut draft = Draft::of(&Services::default());
        draft.put(instance("a", "2"));
        draft.put(instance("a", "1"));
        draft.put(instance("b", "1"));
        let first = draft.finish(3);
        let mut draft = Draft::of(&first);
        draft.remove(&InstanceRef::new("bolt", "b", "1"));
        let second = draft.finish(4);
        let a = ServiceKey::new("bolt", "a");
        let (Some(before), Some(after)) = (first.get(&a), second.get(&a)) else {
            panic!("service a is gone");
        };
        assert!(Arc::ptr_eq(before, after));
        assert_eq!(
            before
                .instances
                .iter()
                .map(|i| i.id.as_ref())
                .collect::<Vec<_>>(),
            ["1", "2"]
        );
        assert_eq!((first.len(), first.instances()), (2, 3));
        assert_eq!((second.len(), second.instances()), (1, 2));
        assert!(second.get(&ServiceKey::new("bolt", "b")).is_none());
        let names = |services: &Services| {
            let mut names: Vec<_> = services.iter().map(|s| s.key.name.to_string()).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!((names(&first), names(&second)), ("a b".into(), "a".into()));
        assert_eq!(second.changed_since(&first), [ServiceKey::new("bolt", "b")]);
    }
}
