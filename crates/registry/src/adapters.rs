//! The registries that the hub can read and write, one module each.

mod application_level;
mod applications;
pub mod consul;
pub mod etcd;
pub mod eureka;
pub mod files;
pub mod kubernetes;
mod leases;
pub mod nacos;
pub mod sofaregistry;
pub mod zookeeper;

use base::FieldError;

use crate::source::Link;
use crate::tls::ClientTls;

/// The words of a `RegistrySource` for the kinds of registries.
pub(crate) const KINDS: [&str; 8] = [
    "consul",
    "etcd",
    "eureka",
    "files",
    "kubernetes",
    "nacos",
    "sofaregistry",
    "zookeeper",
];

/// Which registry a source is, and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// Consul.
    Consul(consul::Config),
    /// etcd.
    Etcd(etcd::Config),
    /// Eureka.
    Eureka(eureka::Config),
    /// A folder of YAML files.
    Files(files::Config),
    /// Kubernetes.
    Kubernetes(kubernetes::Config),
    /// Nacos.
    Nacos(nacos::Config),
    /// SOFARegistry.
    SofaRegistry(sofaregistry::Config),
    /// ZooKeeper.
    ZooKeeper(zookeeper::Config),
}

impl Config {
    /// The word of the configuration for this kind of registry.
    pub fn kind(&self) -> &'static str {
        match self {
            Config::Consul(_) => "consul",
            Config::Etcd(_) => "etcd",
            Config::Eureka(_) => "eureka",
            Config::Files(_) => "files",
            Config::Kubernetes(_) => "kubernetes",
            Config::Nacos(_) => "nacos",
            Config::SofaRegistry(_) => "sofaregistry",
            Config::ZooKeeper(_) => "zookeeper",
        }
    }

    /// Whether entries are named by all that they say, so that nobody can take the mark of a copy off one.
    pub(crate) fn marks_stay(&self) -> bool {
        match self {
            Config::Etcd(_) | Config::SofaRegistry(_) | Config::ZooKeeper(_) => true,
            Config::Consul(_)
            | Config::Eureka(_)
            | Config::Files(_)
            | Config::Kubernetes(_)
            | Config::Nacos(_) => false,
        }
    }

    fn tls(&self) -> Option<&ClientTls> {
        match self {
            Config::Consul(config) => config.tls.as_ref(),
            Config::Etcd(config) => config.tls.as_ref(),
            Config::Eureka(config) => config.tls.as_ref(),
            Config::Files(_) | Config::Kubernetes(_) | Config::SofaRegistry(_) => None,
            Config::Nacos(config) => config.tls.as_ref(),
            Config::ZooKeeper(config) => config.tls.as_ref(),
        }
    }

    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        match self {
            Config::Consul(config) => config.validate(),
            Config::Etcd(config) => config.validate(),
            Config::Eureka(config) => config.validate(),
            Config::Files(config) => config.validate(),
            Config::Kubernetes(config) => config.validate(),
            Config::Nacos(config) => config.validate(),
            Config::SofaRegistry(config) => config.validate(),
            Config::ZooKeeper(config) => config.validate(),
        }
    }
}

/// Reads and writes the registry until it is dropped.
pub(crate) async fn run(config: Config, link: Link) {
    if config.tls().is_some_and(|tls| tls.insecure_skip_verify) {
        tracing::warn!(
            registry = link.name(),
            "insecureSkipVerify: whoever is between here and the registry can read and change everything"
        );
    }
    match config {
        Config::Consul(config) => consul::run(config, link).await,
        Config::Etcd(config) => etcd::run(config, link).await,
        Config::Eureka(config) => eureka::run(config, link).await,
        Config::Files(config) => files::run(config, link).await,
        Config::Kubernetes(config) => kubernetes::run(config, link).await,
        Config::Nacos(config) => nacos::run(config, link).await,
        Config::SofaRegistry(config) => sofaregistry::run(config, link).await,
        Config::ZooKeeper(config) => zookeeper::run(config, link).await,
    }
}
