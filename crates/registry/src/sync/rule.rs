//! A `RegistrySync` as it is applied: which instances are meant, and what becomes of them on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Instance, ServiceKey};
use crate::namespace::Namespace;
use crate::source::ORIGIN_MARK;
use crate::sync::pattern::Pattern;

/// Highest weight of a copy, as of any instance.
const WEIGHT_MAX: u64 = 65_535;

/// A `RegistrySync`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncRule {
    /// Its name, unique in the mesh.
    pub name: Arc<str>,
    pub(crate) legs: Vec<Leg>,
    pub(crate) include: Vec<Meant>,
    pub(crate) exclude: Vec<Meant>,
    pub(crate) metadata: MetadataChange,
    pub(crate) weight: Weight,
    pub(crate) only_healthy: bool,
    pub(crate) orphan_hold: Duration,
    pub(crate) writes_per_second: u32,
    pub(crate) dry_run: bool,
}

/// One direction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Leg {
    pub(crate) from: Sources,
    pub(crate) to: Sources,
    pub(crate) names: Vec<Renaming>,
}

/// Sources by their names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sources {
    All,
    These(Vec<Arc<str>>),
}

impl Sources {
    /// Those that are named one by one.
    pub(crate) fn names(&self) -> &[Arc<str>] {
        match self {
            Sources::All => &[],
            Sources::These(names) => names,
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Sources::All => true,
            Sources::These(names) => names.iter().any(|known| **known == *name),
        }
    }
}

/// Which instances are meant; `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Meant {
    pub(crate) namespace: Option<Pattern>,
    pub(crate) name: Option<Pattern>,
    pub(crate) protocol: Option<Pattern>,
    pub(crate) version: Option<Pattern>,
    pub(crate) group: Option<Pattern>,
    pub(crate) labels: Vec<(Box<str>, Pattern)>,
}

impl Meant {
    fn matches_service(&self, key: &ServiceKey) -> bool {
        let fits = |pattern: &Option<Pattern>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(text))
        };
        fits(&self.namespace, key.namespace.as_str())
            && fits(&self.name, &key.name)
            && fits(&self.protocol, &key.protocol)
    }

    /// The same as something that is included: without a pattern only what is in the default namespace.
    fn includes_service(&self, key: &ServiceKey) -> bool {
        (self.namespace.is_some() || key.namespace.is_default()) && self.matches_service(key)
    }

    fn matches(&self, instance: &Instance) -> bool {
        let fits = |pattern: &Option<Pattern>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(text))
        };
        self.matches_service(&instance.service)
            && fits(&self.version, &instance.version)
            && fits(&self.group, &instance.group)
            && self.labels.iter().all(|(key, pattern)| {
                let value = instance.metadata.get(key);
                value.is_some_and(|value| pattern.matches(value))
            })
    }
}

/// One step of the naming map: what is meant, and the new names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Renaming {
    pub(crate) meant: Meant,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) name: Option<Pattern>,
    pub(crate) protocol: Option<Arc<str>>,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) group: Option<Arc<str>>,
}

impl Renaming {
    /// An instance under its new names, if it is meant.
    fn apply(&self, instance: &Instance) -> Option<Instance> {
        if !self.meant.matches(instance) {
            return None;
        }
        let known = &instance.service.name;
        let name = match &self.name {
            None => known.clone(),
            Some(name) => {
                let star = self.meant.name.as_ref().map(|meant| meant.star(known));
                name.fill(star.flatten().unwrap_or(known)).into()
            }
        };
        let namespace = self.namespace.as_ref();
        let protocol = self.protocol.as_ref();
        let version = self.version.as_ref().unwrap_or(&instance.version);
        let group = self.group.as_ref().unwrap_or(&instance.group);
        Some(Instance {
            service: ServiceKey {
                namespace: namespace.unwrap_or(&instance.service.namespace).clone(),
                protocol: protocol.unwrap_or(&instance.service.protocol).clone(),
                name,
            },
            version: version.clone(),
            group: group.clone(),
            ..instance.clone()
        })
    }
}

/// What becomes of metadata; the mark of the origin is out of its reach.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MetadataChange {
    pub(crate) set: Vec<(Box<str>, Box<str>)>,
    pub(crate) rename: BTreeMap<Box<str>, Box<str>>,
    pub(crate) drop: Vec<Pattern>,
}

/// What becomes of weights; what takes no calls takes none afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Keep,
    ScalePercent(u32),
    Fixed(u32),
}

impl SyncRule {
    /// Whether it may mean instances of a service: of the default namespace, where none is named.
    pub(crate) fn means_service(&self, key: &ServiceKey) -> bool {
        match self.include.is_empty() {
            true => key.namespace.is_default(),
            false => self.include.iter().any(|meant| meant.includes_service(key)),
        }
    }

    /// Whether it means an instance in its present state.
    pub(crate) fn means(&self, instance: &Instance) -> bool {
        if !instance.healthy && (self.only_healthy || !can_be_down(&instance.service.protocol)) {
            return false;
        }
        let service = &instance.service;
        let mut include = self.include.iter();
        let included = match self.include.is_empty() {
            true => service.namespace.is_default(),
            false => {
                include.any(|meant| meant.includes_service(service) && meant.matches(instance))
            }
        };
        included && !self.exclude.iter().any(|meant| meant.matches(instance))
    }

    /// The copy of an instance; its id is for the caller to set.
    pub(crate) fn copy(&self, leg: &Leg, instance: &Instance, mark: &str) -> Instance {
        let named = leg.names.iter().find_map(|naming| naming.apply(instance));
        let named = named.unwrap_or_else(|| instance.clone());
        let kept = instance.metadata.iter().filter_map(|(key, value)| {
            let dropped = self
                .metadata
                .drop
                .iter()
                .any(|pattern| pattern.matches(key));
            let key = self
                .metadata
                .rename
                .get(key)
                .map_or(key, |key| key.as_ref());
            (!dropped).then_some((key, value))
        });
        let set = self.metadata.set.iter();
        let set = set.map(|(key, value)| (key.as_ref(), value.as_ref()));
        // Of a key that comes twice the last counts: the mark.
        let metadata = kept.chain(set).chain([(ORIGIN_MARK, mark)]).collect();
        Instance {
            id: "".into(),
            weight: self.weight.of(instance.weight),
            metadata,
            ttl: None,
            revision: 0,
            ..named
        }
    }
}

impl Weight {
    fn of(self, weight: u32) -> u32 {
        if weight == 0 {
            return 0;
        }
        match self {
            Weight::Keep => weight,
            Weight::Fixed(fixed) => fixed,
            Weight::ScalePercent(percent) => {
                let scaled = u64::from(weight) * u64::from(percent) / 100;
                u32::try_from(scaled.clamp(1, WEIGHT_MAX)).unwrap_or(weight)
            }
        }
    }
}

/// Whether what registries hold of a protocol can say that an instance is down: what cannot must not be there then.
fn can_be_down(protocol: &str) -> bool {
    protocol != "bolt"
}

#[cfg(test)]
mod tests {
    use crate::model::{Instance, ServiceKey};
    use crate::namespace::Namespace;
    use crate::sync::config::RegistrySync;
    use serde_json::{Value, json};

    fn names(services: &Value, naming_map: &Value, namespace: &str) -> Option<String> {
        let spec =
            json!({"from": "osr", "to": "zk", "services": services, "namingMap": naming_map});
        let spec: RegistrySync = serde_json::from_value(spec).unwrap();
        let rule = spec.compile("one").unwrap();
        let key = ServiceKey::within(Namespace::new(namespace), "dubbo", "com.foo.Bar");
        let instance = Instance::new(key.clone(), "10.0.0.1", 20880);
        assert!(rule.means_service(&key) || !rule.means(&instance));
        let copy = rule.copy(&rule.legs[0], &instance, "mesh/osr");
        rule.means(&instance).then(|| copy.service.to_string())
    }

    #[test]
    fn namespaces_are_meant_when_they_are_named() {
        let all = json!({"include": [{"namespace": "*"}]});
        let teams =
            json!({"include": [{"namespace": "team-*"}], "exclude": [{"namespace": "team-b"}]});
        let none = json!([]);
        let to_default = json!([{"match": {"namespace": "team-*"}, "namespace": "default"}]);
        for (services, naming_map, namespace, expected) in [
            (&json!({}), &none, "default", Some("dubbo/com.foo.Bar")),
            (&json!({}), &none, "team-a", None),
            (&json!({"include": [{"name": "*"}]}), &none, "team-a", None),
            (&all, &none, "team-a", Some("team-a:dubbo/com.foo.Bar")),
            (&all, &to_default, "team-a", Some("dubbo/com.foo.Bar")),
            (&teams, &to_default, "team-a", Some("dubbo/com.foo.Bar")),
            (&teams, &to_default, "team-b", None),
            (&teams, &to_default, "default", None),
        ] {
            let found = names(services, naming_map, namespace);
            assert_eq!(found.as_deref(), expected, "{services} {namespace}");
        }
    }
}
