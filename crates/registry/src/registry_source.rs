//! `RegistrySource`: a registry that the hub reads and writes, as people configure it.

use std::sync::Arc;
use std::time::Duration;

use base::FieldError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::adapters::{
    self, Config, consul, etcd, eureka, files, kubernetes, nacos, sofaregistry, zookeeper,
};
use crate::hub::{Protection, Settings, SourceSpec};
use crate::secret::{Secret, SecretKey};

/// The `spec` of a `RegistrySource`: exactly one registry, and how the hub treats it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistrySource {
    /// Of two sources with the same endpoint the one with the higher precedence describes it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precedence: i32,
    /// When instances may go.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protection: ProtectionSpec,
    /// After how long without a connection its instances go; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_timeout: Option<ConfigDuration>,
    /// Consul.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<consul::Config>,
    /// etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<etcd::Config>,
    /// Eureka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eureka: Option<eureka::Config>,
    /// A folder of YAML files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<files::Config>,
    /// Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<kubernetes::Config>,
    /// Nacos.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nacos: Option<nacos::Config>,
    /// SOFARegistry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sofaregistry: Option<sofaregistry::Config>,
    /// ZooKeeper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zookeeper: Option<zookeeper::Config>,
}

/// `protection`: a list with less than this share of its former instances is suspicious.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectionSpec {
    /// Per cent; 50 when absent, 0 trusts every list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold_percent: Option<u32>,
    /// How long what is missing stays; 120 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<ConfigDuration>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl RegistrySource {
    /// Puts the words of Secrets in the place of the references to them; an error says which one has none.
    pub fn resolve(
        &mut self,
        word: impl Fn(&SecretKey) -> Result<Secret, String>,
    ) -> Result<(), FieldError> {
        if let Some(consul) = &mut self.consul
            && let Some(key) = &consul.token_secret
        {
            if consul.token.is_some() || consul.token_file.is_some() {
                let message = "only one of token, tokenFile and tokenSecret can be given";
                return Err(FieldError::at("token", message).in_field("consul"));
            }
            let in_place = |e| {
                FieldError::new(e)
                    .in_field("tokenSecret")
                    .in_field("consul")
            };
            consul.token = Some(word(key).map_err(in_place)?);
            consul.token_secret = None;
        }
        let logins = [
            ("etcd", "login", self.etcd.as_mut().map(|c| &mut c.login)),
            (
                "eureka",
                "basicAuth",
                self.eureka.as_mut().map(|c| &mut c.basic_auth),
            ),
            ("nacos", "login", self.nacos.as_mut().map(|c| &mut c.login)),
            (
                "zookeeper",
                "digest",
                self.zookeeper.as_mut().map(|c| &mut c.digest),
            ),
        ];
        for (registry, field, login) in logins {
            if let Some(Some(login)) = login {
                login
                    .resolve(&word)
                    .map_err(|e| e.in_field(field).in_field(registry))?;
            }
        }
        let tls = [
            ("consul", self.consul.as_mut().map(|c| &mut c.tls)),
            ("etcd", self.etcd.as_mut().map(|c| &mut c.tls)),
            ("eureka", self.eureka.as_mut().map(|c| &mut c.tls)),
            ("nacos", self.nacos.as_mut().map(|c| &mut c.tls)),
            ("zookeeper", self.zookeeper.as_mut().map(|c| &mut c.tls)),
        ];
        for (registry, tls) in tls {
            if let Some(Some(tls)) = tls {
                tls.resolve(&word)
                    .map_err(|e| e.in_field("tls").in_field(registry))?;
            }
        }
        Ok(())
    }

    /// The source under its name.
    pub fn compile(&self, name: &str) -> Result<SourceSpec, FieldError> {
        let adapters = [
            self.consul.clone().map(Config::Consul),
            self.etcd.clone().map(Config::Etcd),
            self.eureka.clone().map(Config::Eureka),
            self.files.clone().map(Config::Files),
            self.kubernetes.clone().map(Config::Kubernetes),
            self.nacos.clone().map(Config::Nacos),
            self.sofaregistry.clone().map(Config::SofaRegistry),
            self.zookeeper.clone().map(Config::ZooKeeper),
        ];
        let mut given = adapters.into_iter().flatten();
        let adapter = given.next().ok_or_else(|| {
            let known = adapters::KINDS.join(", ");
            FieldError::new(format!("must name one registry: {known}"))
        })?;
        if let Some(second) = given.next() {
            let message = format!(
                "must name one registry, names {} and {}",
                adapter.kind(),
                second.kind()
            );
            return Err(FieldError::new(message));
        }
        adapter.validate().map_err(|e| e.in_field(adapter.kind()))?;
        let defaults = Protection::default();
        let threshold_percent = self.protection.threshold_percent;
        if let Some(percent) = threshold_percent
            && percent > 100
        {
            let message = format!("must be 0 to 100, is {percent}");
            return Err(FieldError::at("thresholdPercent", message).in_field("protection"));
        }
        let protection = Protection {
            threshold_percent: threshold_percent.unwrap_or(defaults.threshold_percent),
            hold: self.protection.hold.map_or(defaults.hold, |hold| hold.0),
        };
        Ok(SourceSpec {
            name: Arc::from(name),
            settings: Settings {
                precedence: self.precedence,
                protection,
                stale_timeout: self.stale_timeout.map(|timeout| timeout.0),
                marks_stay: adapter.marks_stay(),
            },
            adapter,
        })
    }
}

/// A duration as Kubernetes writes it: a number with `ms`, `s`, `m` or `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigDuration(pub Duration);

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(ConfigDuration).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "must be a number with ms, s, m or h, as 30s, is {text:?}"
            ))
        })
    }
}

impl Serialize for ConfigDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    // Longer ones would overflow the clock.
    (ms <= 365 * 24 * 3_600_000).then(|| Duration::from_millis(ms))
}
