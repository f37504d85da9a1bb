//! Clusters of one worker: hosts, load balancing, circuit breakers and the connections to them.

pub mod circuit_breaker;
pub mod config;
pub mod dns;
pub mod host;
pub mod hosts;
pub mod load_balancer;
pub mod stats;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

pub use circuit_breaker::{CircuitBreaker, Permit, Priority};
pub use config::{ClusterConfig, Discovery, LbPolicy};
pub use host::{Host, HostStatus};
pub use hosts::{Health, HostConfig, HostsConfig, MetadataMatch, RpcInstance};
pub use load_balancer::Balancer;
pub use stats::ClusterStats;

/// What a choice of host depends on.
#[derive(Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// Labels that the route asks for (`metadata_match`).
    pub metadata_match: Option<&'a MetadataMatch>,
    /// Version and group of an RPC call.
    pub rpc: Option<RpcInstance<'a>>,
    /// Hosts that failed this request already.
    pub avoid: &'a [Rc<Host>],
}

/// A cluster on one worker.
pub struct Cluster {
    /// Its configuration, shared by all workers.
    pub config: Arc<ClusterConfig>,
    hosts: RefCell<HostSet>,
}

/// Hosts of a cluster with their balancers.
struct HostSet {
    /// By priority; the index is the priority.
    priorities: Vec<Level>,
    /// Balancers over part of the hosts, made when first asked for.
    subsets: HashMap<Vec<u8>, Rc<Balancer>>,
    /// Whether any host says for which version or group it is.
    has_rpc_instances: bool,
}

struct Level {
    all: Vec<Rc<Host>>,
    balancer: Rc<Balancer>,
}

impl Cluster {
    /// A cluster; hosts that `previous` had too keep their connections.
    pub fn new(
        config: Arc<ClusterConfig>,
        hosts: &HostsConfig,
        previous: Option<&Cluster>,
    ) -> Cluster {
        let known = previous.map(|p| p.known_hosts()).unwrap_or_default();
        let set = HostSet::build(&config, hosts, known);
        Cluster {
            config,
            hosts: RefCell::new(set),
        }
    }

    /// Takes a new list of hosts.
    pub fn set_hosts(&self, hosts: &HostsConfig) {
        let known = self.known_hosts();
        let set = HostSet::build(&self.config, hosts, known);
        *self.hosts.borrow_mut() = set;
    }

    fn known_hosts(&self) -> HashMap<std::net::SocketAddr, Rc<Host>> {
        let hosts = self.hosts.borrow();
        hosts
            .priorities
            .iter()
            .flat_map(|l| &l.all)
            .map(|h| (h.address, h.clone()))
            .collect()
    }

    /// Statistics of this cluster.
    pub fn stats(&self) -> &ClusterStats {
        &self.config.stats
    }

    /// The circuit breaker of a priority.
    pub fn breaker(&self, priority: Priority) -> &Arc<CircuitBreaker> {
        self.config.breaker(priority)
    }

    /// Chooses a host, or `None` when none is healthy (or none fits the context).
    pub fn pick(&self, context: &LbContext) -> Option<Rc<Host>> {
        let balancer = {
            let mut hosts = self.hosts.borrow_mut();
            hosts.balancer(&self.config, context)?
        };
        let mut picked = balancer.pick()?;
        if context.avoid.is_empty() {
            return Some(picked);
        }
        // Envoy's host_selection_retry_max_attempts: look elsewhere a few times, then take what there is
        for _ in 0..8 {
            if !context.avoid.iter().any(|a| Rc::ptr_eq(a, &picked)) {
                return Some(picked);
            }
            picked = balancer.pick()?;
        }
        let other = balancer
            .hosts()
            .iter()
            .find(|h| !context.avoid.iter().any(|a| Rc::ptr_eq(a, h)))
            .cloned();
        Some(other.unwrap_or(picked))
    }

    /// Number of hosts, whatever their health.
    pub fn host_count(&self) -> usize {
        self.hosts
            .borrow()
            .priorities
            .iter()
            .map(|l| l.all.len())
            .sum()
    }

    /// Closes connections that carry nothing; those in use close when they are done.
    pub fn close_idle(&self) {
        for host in self.hosts.borrow().priorities.iter().flat_map(|l| &l.all) {
            host.remove();
        }
    }

    /// For `/clusters`.
    pub fn status(&self) -> ClusterStatus {
        let hosts = self.hosts.borrow();
        let all = hosts.priorities.iter().flat_map(|l| &l.all);
        ClusterStatus {
            config: self.config.clone(),
            hosts: all.map(|h| h.status()).collect(),
        }
    }
}

/// State of a cluster on one worker, for the admin.
pub struct ClusterStatus {
    /// Its configuration.
    pub config: Arc<ClusterConfig>,
    /// Its hosts.
    pub hosts: Vec<HostStatus>,
}

impl HostSet {
    fn build(
        config: &Arc<ClusterConfig>,
        hosts: &HostsConfig,
        mut known: HashMap<std::net::SocketAddr, Rc<Host>>,
    ) -> HostSet {
        let highest = hosts.hosts.iter().map(|h| h.priority).max().unwrap_or(0);
        let mut levels: Vec<Vec<Rc<Host>>> = vec![Vec::new(); highest as usize + 1];
        let mut has_rpc_instances = false;
        for new in &hosts.hosts {
            has_rpc_instances |=
                new.metadata.rpc_version.is_some() || new.metadata.rpc_group.is_some();
            let host = match known.remove(&new.address) {
                Some(host) => {
                    host.update(new);
                    host
                }
                None => Rc::new(Host::new(new)),
            };
            if let Some(level) = levels.get_mut(new.priority as usize) {
                level.push(host);
            }
        }
        for gone in known.values() {
            gone.remove();
        }
        let priorities = levels
            .into_iter()
            .map(|all| Level {
                balancer: Rc::new(Balancer::new(config, usable(config, &all))),
                all,
            })
            .collect();
        HostSet {
            priorities,
            subsets: HashMap::new(),
            has_rpc_instances,
        }
    }

    fn balancer(
        &mut self,
        config: &Arc<ClusterConfig>,
        context: &LbContext,
    ) -> Option<Rc<Balancer>> {
        let rpc = context.rpc.filter(|_| self.has_rpc_instances);
        let subset = config.subset_lb.as_ref();
        let wanted = match (context.metadata_match, subset) {
            (Some(wanted), Some(subset)) if subset.selects(wanted) => Some(wanted),
            // labels that no selector has: Envoy's fallback policy decides
            (Some(_), Some(subset)) if !subset.fallback_any => return None,
            _ => None,
        };
        if rpc.is_none() && wanted.is_none() {
            return self
                .priorities
                .iter()
                .map(|l| &l.balancer)
                .find(|b| !b.hosts().is_empty())
                .cloned();
        }
        let mut key = Vec::with_capacity(64);
        if let Some(rpc) = &rpc {
            rpc.write_key(&mut key);
        }
        if let Some(wanted) = wanted {
            key.push(0xff);
            key.extend_from_slice(wanted.key());
        }
        if let Some(balancer) = self.subsets.get(&key) {
            return Some(balancer.clone());
        }
        // callers choose version and group freely: what they make up must not grow this map without end
        if self.subsets.len() >= 1024 {
            self.subsets.clear();
        }
        let fits = |host: &Rc<Host>| {
            let metadata = host.metadata();
            rpc.as_ref().is_none_or(|r| metadata.serves(r))
                && wanted.is_none_or(|w| w.matches(&metadata))
        };
        let chosen = self.priorities.iter().find_map(|level| {
            let part: Vec<_> = level.all.iter().filter(|h| fits(h)).cloned().collect();
            let part = usable(config, &part);
            (!part.is_empty()).then_some(part)
        });
        let chosen = match chosen {
            None if rpc.is_none() && subset.is_some_and(|s| s.fallback_any) => self
                .priorities
                .iter()
                .map(|l| usable(config, &l.all))
                .find(|p| !p.is_empty()),
            other => other,
        };
        let balancer = Rc::new(Balancer::new(config, chosen.unwrap_or_default()));
        self.subsets.insert(key, balancer.clone());
        Some(balancer)
    }
}

/// The healthy hosts, or all of them when fewer than the panic threshold are healthy.
fn usable(config: &ClusterConfig, all: &[Rc<Host>]) -> Vec<Rc<Host>> {
    let healthy: Vec<_> = all
        .iter()
        .filter(|h| h.health() == Health::Healthy)
        .cloned()
        .collect();
    let percent = |n: usize| n as f64 * 100.0 / all.len().max(1) as f64;
    if !all.is_empty() && percent(healthy.len()) < config.panic_threshold_percent {
        return all.to_vec();
    }
    healthy
}
