//! CDS and EDS: clusters, their warming, and the endpoints that come for them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use api::envoy::config::cluster::v3::Cluster;
use api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use api::google::protobuf::Any;
use base::FieldError;
use prost::Message;
use tokio::task::AbortHandle;

use super::{Compiled, Manager, Origin, Rejected, Source};
use crate::cluster::{ClusterConfig, Discovery, HostsConfig, config::ClusterUse, dns};
use crate::config;
use crate::server::Event;
use crate::worker::Command;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LOAD_ASSIGNMENT: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";

/// A cluster: what serves, and what will once its hosts are known.
#[derive(Default)]
pub struct ClusterEntry {
    /// What the workers have.
    pub active: Option<Compiled<ClusterConfig>>,
    /// Hosts of the active cluster.
    pub hosts: Arc<HostsConfig>,
    /// What waits for its hosts.
    pub warming: Option<Warming>,
    resolver: Option<DnsTask>,
}

/// A cluster that waits for its hosts.
pub struct Warming {
    /// The cluster.
    pub cluster: Compiled<ClusterConfig>,
    generation: u64,
}

/// Ends the resolver when the cluster goes.
struct DnsTask(AbortHandle);

impl Drop for DnsTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A load assignment that came by EDS.
pub struct EndpointsEntry {
    /// What came.
    pub source: Source,
    /// Its hosts.
    pub hosts: Arc<HostsConfig>,
}

impl Manager {
    /// Adds a cluster of the bootstrap.
    pub fn add_static_cluster(&mut self, cluster: &Cluster) -> Result<(), FieldError> {
        let usage = if self.control_clusters.contains(&cluster.name) {
            ClusterUse::Control
        } else {
            ClusterUse::Traffic
        };
        let compiled = ClusterConfig::compile(cluster, usage, &self.context())?;
        if self.clusters.contains_key(&cluster.name) {
            return Err(FieldError::at(
                "name",
                format!("{:?} is there twice", cluster.name),
            ));
        }
        let resource = Any {
            type_url: format!("type.googleapis.com/{CLUSTER}"),
            value: cluster.encode_to_vec(),
        };
        let source = Source {
            origin: Origin::Static,
            resource,
            version: String::new(),
            updated: SystemTime::now(),
        };
        self.set_cluster(
            cluster.name.clone(),
            Compiled {
                config: Arc::new(compiled),
                source,
            },
        );
        Ok(())
    }

    /// Takes a CDS response whole, or refuses it whole.
    pub fn apply_clusters(&mut self, version: &str, resources: &[Any]) -> Result<(), Rejected> {
        let mut names = BTreeSet::new();
        let mut changed = Vec::new();
        for (i, any) in resources.iter().enumerate() {
            let fallback = |error| Rejected {
                resource: format!("resources[{i}]"),
                error,
            };
            let cluster: Cluster = config::unpack(any, CLUSTER).map_err(fallback)?;
            let name = cluster.name.clone();
            let refused = |error| Rejected {
                resource: name.clone(),
                error,
            };
            if !names.insert(name.clone()) {
                return Err(refused(FieldError::at(
                    "name",
                    "is there twice in one response",
                )));
            }
            if let Some(entry) = self.clusters.get(&name) {
                let current = entry
                    .warming
                    .as_ref()
                    .map(|w| &w.cluster)
                    .or(entry.active.as_ref());
                match current {
                    // Envoy: a cluster of the bootstrap is not changed by CDS
                    Some(c) if c.source.origin == Origin::Static => continue,
                    Some(c) if c.source.resource.value == any.value => continue,
                    _ => {}
                }
            }
            api::validate::message::<Cluster>(&any.value).map_err(refused)?;
            let compiled = ClusterConfig::compile(&cluster, ClusterUse::Traffic, &self.context())
                .map_err(refused)?;
            changed.push((name.clone(), compiled, any.clone()));
        }
        for (name, compiled, resource) in changed {
            let source = Source {
                origin: Origin::Dynamic,
                resource,
                version: version.to_owned(),
                updated: SystemTime::now(),
            };
            self.set_cluster(
                name,
                Compiled {
                    config: Arc::new(compiled),
                    source,
                },
            );
        }
        let gone: Vec<String> = self
            .clusters
            .iter()
            .filter(|(n, e)| e.is_dynamic() && !names.contains(*n))
            .map(|(n, _)| n.clone())
            .collect();
        for name in gone {
            self.remove_cluster(&name);
        }
        self.drop_unwanted_endpoints();
        self.update_gauges();
        Ok(())
    }

    /// Takes an EDS response whole, or refuses it whole.
    pub fn apply_endpoints(&mut self, version: &str, resources: &[Any]) -> Result<(), Rejected> {
        let wanted = self.eds_names();
        let mut compiled = Vec::new();
        for (i, any) in resources.iter().enumerate() {
            let fallback = |error| Rejected {
                resource: format!("resources[{i}]"),
                error,
            };
            let assignment: ClusterLoadAssignment =
                config::unpack(any, LOAD_ASSIGNMENT).map_err(fallback)?;
            let name = assignment.cluster_name.clone();
            let refused = |error| Rejected {
                resource: name.clone(),
                error,
            };
            api::validate::message::<ClusterLoadAssignment>(&any.value).map_err(refused)?;
            let hosts = HostsConfig::compile(&assignment).map_err(refused)?;
            if wanted.contains(&name) {
                compiled.push((name, hosts, any.clone()));
            }
        }
        for (name, hosts, resource) in compiled {
            let hosts = Arc::new(hosts);
            let source = Source {
                origin: Origin::Dynamic,
                resource,
                version: version.to_owned(),
                updated: SystemTime::now(),
            };
            self.endpoints.insert(
                name.clone(),
                EndpointsEntry {
                    source,
                    hosts: hosts.clone(),
                },
            );
            let clusters: Vec<String> = self
                .clusters
                .iter()
                .filter(|(_, e)| e.eds_name() == Some(&name))
                .map(|(n, _)| n.clone())
                .collect();
            for cluster in clusters {
                self.set_hosts(&cluster, hosts.clone());
            }
        }
        self.update_gauges();
        Ok(())
    }

    /// Service names for which EDS is asked.
    pub fn eds_names(&self) -> BTreeSet<String> {
        self.clusters
            .values()
            .filter_map(|e| e.eds_name().cloned())
            .collect()
    }

    /// Hosts from DNS, unless the cluster has changed since.
    pub fn dns_resolved(&mut self, cluster: &str, config: &Arc<ClusterConfig>, hosts: HostsConfig) {
        let current = self.clusters.get(cluster).is_some_and(|entry| {
            let newest = entry
                .warming
                .as_ref()
                .map(|w| &w.cluster)
                .or(entry.active.as_ref());
            newest.is_some_and(|c| Arc::ptr_eq(&c.config, config))
        });
        if current {
            self.set_hosts(cluster, Arc::new(hosts));
            self.update_gauges();
        }
    }

    /// Warming has lasted its `initial_fetch_timeout`: the cluster goes on without hosts, as in Envoy.
    pub fn cluster_warming_timed_out(&mut self, cluster: &str, generation: u64) {
        let waiting = self.clusters.get(cluster).and_then(|e| e.warming.as_ref());
        if waiting.is_some_and(|w| w.generation == generation) {
            tracing::warn!(cluster, "no endpoints within initial_fetch_timeout");
            self.set_hosts(cluster, Arc::default());
            self.update_gauges();
        }
    }

    fn set_cluster(&mut self, name: String, compiled: Compiled<ClusterConfig>) {
        let generation = self.next_generation();
        let known = match &compiled.config.discovery {
            Discovery::Static(hosts) => Some(Arc::new(hosts.clone())),
            // the endpoints are subscribed to and did not change with the cluster: no need to wait for them again
            Discovery::Eds { service_name, .. } => {
                self.endpoints.get(service_name).map(|e| e.hosts.clone())
            }
            Discovery::Dns { .. } => None,
        };
        let is_new = !self.clusters.contains_key(&name);
        if is_new {
            self.manager_stats.cluster_added.inc();
        } else {
            self.manager_stats.cluster_modified.inc();
        }
        let config = compiled.config.clone();
        let entry = self.clusters.entry(name.clone()).or_default();
        entry.resolver = None;
        entry.warming = Some(Warming {
            cluster: compiled,
            generation,
        });
        match (&config.discovery, known) {
            (_, Some(hosts)) => self.set_hosts(&name, hosts),
            (
                Discovery::Eds {
                    initial_fetch_timeout,
                    ..
                },
                None,
            ) => {
                if let Some(limit) = initial_fetch_timeout {
                    self.later(
                        *limit,
                        Event::ClusterWarmingTimeout {
                            cluster: name,
                            generation,
                        },
                    );
                }
            }
            (Discovery::Dns { names, options }, None) => {
                let events = self.events.clone();
                let reported = config.clone();
                let report = move |hosts| {
                    let _ = events.send(Event::DnsResolved {
                        cluster: name.clone(),
                        config: reported.clone(),
                        hosts,
                    });
                };
                let cluster = config.name.to_string();
                let task = tokio::spawn(dns::run(config.clone(), names.clone(), *options, report));
                if let Some(entry) = self.clusters.get_mut(&cluster) {
                    entry.resolver = Some(DnsTask(task.abort_handle()));
                }
            }
            (Discovery::Static(_), None) => {}
        }
        self.update_gauges();
    }

    fn set_hosts(&mut self, name: &str, hosts: Arc<HostsConfig>) {
        let Some(entry) = self.clusters.get_mut(name) else {
            return;
        };
        let command: Box<dyn Fn() -> Command> = match entry.warming.take() {
            Some(warming) => {
                let config = warming.cluster.config.clone();
                entry.active = Some(warming.cluster);
                let hosts = hosts.clone();
                Box::new(move || Command::SetCluster(config.clone(), hosts.clone()))
            }
            None if entry.hosts == hosts => return,
            None => {
                let name: Arc<str> = name.into();
                let hosts = hosts.clone();
                Box::new(move || Command::SetHosts(name.clone(), hosts.clone()))
            }
        };
        entry.hosts = hosts;
        if let Some(active) = &entry.active {
            let stats = &active.config.stats;
            let healthy = entry
                .hosts
                .hosts
                .iter()
                .filter(|h| h.health == crate::cluster::Health::Healthy)
                .count();
            stats.membership_change.inc();
            stats.membership_total.set(entry.hosts.hosts.len() as u64);
            stats.membership_healthy.set(healthy as u64);
        }
        self.tell(command);
    }

    fn remove_cluster(&mut self, name: &str) {
        self.clusters.remove(name);
        self.manager_stats.cluster_removed.inc();
        let name: Arc<str> = name.into();
        self.tell(|| Command::RemoveCluster(name.clone()));
    }

    fn drop_unwanted_endpoints(&mut self) {
        let wanted = self.eds_names();
        self.endpoints.retain(|name, _| wanted.contains(name));
    }
}

impl ClusterEntry {
    fn newest(&self) -> Option<&Compiled<ClusterConfig>> {
        self.warming
            .as_ref()
            .map(|w| &w.cluster)
            .or(self.active.as_ref())
    }

    fn is_dynamic(&self) -> bool {
        self.newest()
            .is_some_and(|c| c.source.origin == Origin::Dynamic)
    }

    fn eds_name(&self) -> Option<&String> {
        match &self.newest()?.config.discovery {
            Discovery::Eds { service_name, .. } => Some(service_name),
            Discovery::Static(_) | Discovery::Dns { .. } => None,
        }
    }
}
