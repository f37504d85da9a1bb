//! `RegistrySync`: what is copied from which registry to which, as people configure it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Serialize};

use crate::model::OWN_ORIGIN;
use crate::namespace::{DEFAULT_NAMESPACE, Namespace};
use crate::registry_source::ConfigDuration;
use crate::source::ORIGIN_MARK;
use crate::sync::pattern::Pattern;
use crate::sync::rule::{Leg, Meant, MetadataChange, Renaming, Sources, SyncRule, Weight};

/// Word for every source.
const ALL: &str = "*";
pub(crate) const ORPHAN_HOLD: Duration = Duration::from_secs(120);
pub(crate) const WRITES_PER_SECOND: u32 = 1000;
const WEIGHT_MAX: u32 = 65_535;
const PERCENT_MAX: u32 = 100_000;

/// The `spec` of a `RegistrySync`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistrySync {
    /// Names of the sources that are copied from; `osr` is the embedded registry, `*` is all.
    pub from: SourceNames,
    /// Names of the sources that are copied to.
    pub to: SourceNames,
    /// One way when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub direction: Direction,
    /// Which services; all when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub services: ServicesSpec,
    /// New names of services; the first entry that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub naming_map: Vec<NamingSpec>,
    /// Changes of metadata.
    #[serde(default, skip_serializing_if = "is_default")]
    pub metadata_map: MetadataSpec,
    /// Weights of copies; those of the originals when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weight: WeightSpec,
    /// What becomes of instances that are down.
    #[serde(default, skip_serializing_if = "is_default")]
    pub health: HealthPolicy,
    /// How long copies stay whose origin is not known (any longer) for another reason than that it was taken out: the rule
    /// has gone, or it was not there when the hub started; 120 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan_hold: Option<ConfigDuration>,
    /// Copies that are made, changed or taken out in a second, in each registry; 1,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_per_second: Option<u32>,
    /// Nothing is written; `/debug/registries` shows what would be.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// One name, or a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SourceNames {
    /// One.
    One(String),
    /// Several.
    List(Vec<String>),
}

/// `direction`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// From `from` to `to`.
    #[default]
    OneWay,
    /// And back, with the naming map read from right to left.
    Both,
}

/// `services`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicesSpec {
    /// Instances that one of these matches; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<MatchSpec>,
    /// But none that one of these matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<MatchSpec>,
}

/// Patterns that all have to match; `*` stands for any characters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MatchSpec {
    /// The namespace. Without it `include` means the default one, `exclude` and the naming map mean all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The version; empty for those that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The group; empty for those that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Metadata by their keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// An entry of `namingMap`. What it does not name stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamingSpec {
    /// Which instances.
    #[serde(rename = "match")]
    pub matches: MatchSpec,
    /// The new namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The new name; `*` in it stands for what the only `*` of the matching name stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The new protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The new version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The new group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// `metadataMap`: first what is dropped, then what is renamed, then what is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetadataSpec {
    /// Patterns of keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
    /// New keys by the old ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    /// Values by their keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
}

/// `weight`: one of the two, or neither.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightSpec {
    /// Per cent of the original's; never 0 for one that takes calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_percent: Option<u32>,
    /// The same for all that take calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<u32>,
}

/// `health`. An instance that is down is never up in another registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthPolicy {
    /// Copies are as healthy as their originals; where a registry cannot say so, there is no copy meanwhile.
    #[default]
    Keep,
    /// There are no copies of instances that are down.
    OnlyHealthy,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl RegistrySync {
    /// The rule under its name.
    pub fn compile(&self, name: &str) -> Result<SyncRule, FieldError> {
        let from = sources(&self.from).map_err(|e| e.in_field("from"))?;
        let to = sources(&self.to).map_err(|e| e.in_field("to"))?;
        let names = self.naming_map.iter().enumerate().map(|(index, spec)| {
            spec.compile()
                .map_err(|e| e.in_index(index).in_field("namingMap"))
        });
        let names: Vec<Renaming> = names.collect::<Result<_, _>>()?;
        let mut legs = vec![Leg {
            from: from.clone(),
            to: to.clone(),
            names,
        }];
        writable(&legs[0].to).map_err(|e| e.in_field("to"))?;
        if self.direction == Direction::Both {
            writable(&from).map_err(|e| e.in_field("from"))?;
            let names = self.naming_map.iter().enumerate().map(|(index, spec)| {
                spec.reversed()
                    .and_then(|spec| spec.compile())
                    .map_err(|e| e.in_index(index).in_field("namingMap"))
            });
            let names: Vec<Renaming> = names.collect::<Result<_, _>>()?;
            legs.push(Leg {
                from: to,
                to: from,
                names,
            });
        }
        let include = self.services.include.iter().map(MatchSpec::compile);
        let exclude = self.services.exclude.iter().map(MatchSpec::compile);
        let rate = self.writes_per_second.unwrap_or(WRITES_PER_SECOND);
        if rate == 0 {
            return Err(FieldError::at("writesPerSecond", "must be at least 1"));
        }
        Ok(SyncRule {
            name: name.into(),
            legs,
            include: include.collect(),
            exclude: exclude.collect(),
            metadata: self
                .metadata_map
                .compile()
                .map_err(|e| e.in_field("metadataMap"))?,
            weight: self.weight.compile().map_err(|e| e.in_field("weight"))?,
            only_healthy: self.health == HealthPolicy::OnlyHealthy,
            orphan_hold: self.orphan_hold.map_or(ORPHAN_HOLD, |hold| hold.0),
            writes_per_second: rate,
            dry_run: self.dry_run,
        })
    }
}

fn sources(names: &SourceNames) -> Result<Sources, FieldError> {
    let names: Vec<&str> = match names {
        SourceNames::One(name) => vec![name],
        SourceNames::List(names) => names.iter().map(String::as_str).collect(),
    };
    if names.is_empty() || names.contains(&"") {
        return Err(FieldError::new("must name a source"));
    }
    if names.contains(&ALL) {
        return match names.len() {
            1 => Ok(Sources::All),
            _ => Err(FieldError::new("`*` is all sources: it stands alone")),
        };
    }
    Ok(Sources::These(names.into_iter().map(Arc::from).collect()))
}

/// Pilot's faces tell of all registries already.
fn writable(to: &Sources) -> Result<(), FieldError> {
    match to {
        Sources::These(names) if names.iter().any(|name| **name == *OWN_ORIGIN) => {
            Err(FieldError::new(
                "the embedded registry takes no copies: pilot's faces tell of all registries already",
            ))
        }
        _ => Ok(()),
    }
}

impl MatchSpec {
    fn compile(&self) -> Meant {
        let pattern = |text: &Option<String>| text.as_deref().map(Pattern::new);
        let labels = self.labels.iter();
        let labels = labels.map(|(key, value)| (key.as_str().into(), Pattern::new(value)));
        Meant {
            namespace: pattern(&self.namespace),
            name: pattern(&self.name),
            protocol: pattern(&self.protocol),
            version: pattern(&self.version),
            group: pattern(&self.group),
            labels: labels.collect(),
        }
    }
}

impl NamingSpec {
    fn compile(&self) -> Result<Renaming, FieldError> {
        let meant = self.matches.compile();
        let name = self.name.as_deref().map(Pattern::new);
        if let Some(new) = &name
            && new.stars() > 0
        {
            let known = meant.name.as_ref().map_or(1, Pattern::stars);
            if known != 1 || new.stars() > 1 {
                let message = "has a `*`, so that match.name must have just one too";
                return Err(FieldError::at("name", message));
            }
        }
        if name
            .as_ref()
            .is_some_and(|name| name.fill("").is_empty() && name.stars() == 0)
        {
            return Err(FieldError::at("name", "must not be empty"));
        }
        for (field, word) in [
            ("protocol", &self.protocol),
            ("version", &self.version),
            ("group", &self.group),
        ] {
            if word.as_ref().is_some_and(|word| word.contains('*')) {
                return Err(FieldError::at(field, "must be a word without `*`"));
            }
        }
        let namespace = self.namespace.as_deref();
        if namespace.is_some_and(|name| name.is_empty() || name.contains('*')) {
            let message = format!("must be a word without `*`, as {DEFAULT_NAMESPACE}");
            return Err(FieldError::at("namespace", message));
        }
        if self.protocol.as_deref() == Some("") {
            return Err(FieldError::at("protocol", "must not be empty"));
        }
        Ok(Renaming {
            meant,
            namespace: namespace.map(Namespace::new),
            name,
            protocol: self.protocol.as_deref().map(Arc::from),
            version: self.version.as_deref().map(Arc::from),
            group: self.group.as_deref().map(Arc::from),
        })
    }

    /// The same from right to left; an error says why that is not one thing.
    fn reversed(&self) -> Result<NamingSpec, FieldError> {
        let one_way = |field: &str, why: &str| {
            FieldError::at(field, format!("cannot be read backwards: {why}"))
        };
        let mut spec = NamingSpec {
            matches: self.matches.clone(),
            ..NamingSpec::default()
        };
        if let Some(new) = &self.name {
            let known = self.matches.name.as_deref().unwrap_or(ALL);
            if Pattern::new(new).stars() != Pattern::new(known).stars() {
                return Err(one_way("name", "it has not as many `*` as match.name"));
            }
            spec.matches.name = Some(new.clone());
            spec.name = Some(known.to_owned());
        }
        for (field, new, known, matches, back) in [
            (
                "namespace",
                &self.namespace,
                &self.matches.namespace,
                &mut spec.matches.namespace,
                &mut spec.namespace,
            ),
            (
                "protocol",
                &self.protocol,
                &self.matches.protocol,
                &mut spec.matches.protocol,
                &mut spec.protocol,
            ),
            (
                "version",
                &self.version,
                &self.matches.version,
                &mut spec.matches.version,
                &mut spec.version,
            ),
            (
                "group",
                &self.group,
                &self.matches.group,
                &mut spec.matches.group,
                &mut spec.group,
            ),
        ] {
            let Some(new) = new else {
                continue;
            };
            match known {
                Some(known) if !known.contains('*') => {
                    *matches = Some(new.clone());
                    *back = Some(known.clone());
                }
                _ => {
                    let why = format!("match.{field} is not one word");
                    return Err(one_way(field, &why));
                }
            }
        }
        Ok(spec)
    }
}

impl MetadataSpec {
    fn compile(&self) -> Result<MetadataChange, FieldError> {
        let marked = || FieldError::new(format!("{ORIGIN_MARK} is for the hub alone"));
        let of_mark = |key: &str| key == ORIGIN_MARK;
        if self.set.keys().any(|key| of_mark(key) || key.is_empty()) {
            return Err(marked().in_field("set"));
        }
        let renamed = self.rename.iter();
        let mut renamed = renamed.flat_map(|(old, new)| [old, new]);
        if renamed.any(|key| of_mark(key) || key.is_empty()) {
            return Err(marked().in_field("rename"));
        }
        let set = self.set.iter();
        let rename = self.rename.iter();
        Ok(MetadataChange {
            set: set
                .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
                .collect(),
            rename: rename
                .map(|(old, new)| (old.as_str().into(), new.as_str().into()))
                .collect(),
            drop: self.drop.iter().map(|key| Pattern::new(key)).collect(),
        })
    }
}

impl WeightSpec {
    fn compile(&self) -> Result<Weight, FieldError> {
        match (self.scale_percent, self.fixed) {
            (None, None) => Ok(Weight::Keep),
            (Some(percent), None) if (1..=PERCENT_MAX).contains(&percent) => {
                Ok(Weight::ScalePercent(percent))
            }
            (Some(percent), None) => {
                let message = format!("must be 1 to {PERCENT_MAX}, is {percent}");
                Err(FieldError::at("scalePercent", message))
            }
            (None, Some(fixed)) if (1..=WEIGHT_MAX).contains(&fixed) => Ok(Weight::Fixed(fixed)),
            (None, Some(fixed)) => {
                let message = format!("must be 1 to {WEIGHT_MAX}, is {fixed}");
                Err(FieldError::at("fixed", message))
            }
            (Some(_), Some(_)) => Err(FieldError::new("has scalePercent and fixed: which?")),
        }
    }
}
