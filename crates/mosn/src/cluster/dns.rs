//! DNS discovery, on the main thread: resolves the names of a cluster again and again and reports the hosts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

use super::config::{ClusterConfig, DnsFamily, DnsOptions};
use super::hosts::{HostConfig, HostsConfig, Named};

/// Resolves until dropped; `report` gets the hosts whenever they changed, and once after the first round whatever came.
pub async fn run(
    config: Arc<ClusterConfig>,
    names: Vec<Named>,
    options: DnsOptions,
    mut report: impl FnMut(HostsConfig),
) {
    let resolver = match resolver(options.family) {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::error!(cluster = %config.name, error, "cannot read the system's DNS configuration");
            report(HostsConfig::default());
            return;
        }
    };
    let mut last: Option<HostsConfig> = None;
    loop {
        let mut hosts = HostsConfig::default();
        let mut wait = options.refresh;
        let mut failed = false;
        for named in &names {
            config.stats.update_attempt.inc();
            match resolve(&resolver, &named.name).await {
                Ok((addresses, ttl)) => {
                    config.stats.update_success.inc();
                    if options.respect_ttl {
                        wait = wait
                            .max(Duration::from_millis(100))
                            .min(ttl.max(Duration::from_secs(1)));
                    }
                    let take = if options.first_only {
                        1
                    } else {
                        addresses.len()
                    };
                    for ip in addresses.into_iter().take(take) {
                        add(
                            &mut hosts,
                            HostConfig {
                                address: SocketAddr::new(ip, named.port),
                                ..named.template.clone()
                            },
                        );
                    }
                }
                Err(error) => {
                    config.stats.update_failure.inc();
                    failed = true;
                    tracing::debug!(cluster = %config.name, name = named.name, error, "DNS lookup failed");
                    // a name that does not resolve keeps the addresses it had
                    for host in last
                        .iter()
                        .flat_map(|l| &l.hosts)
                        .filter(|h| h.hostname == named.template.hostname)
                    {
                        add(&mut hosts, host.clone());
                    }
                }
            }
        }
        if last.as_ref() != Some(&hosts) {
            report(hosts.clone());
            last = Some(hosts);
        } else if !failed {
            config.stats.update_no_rebuild.inc();
        }
        tokio::time::sleep(wait).await;
    }
}

fn add(hosts: &mut HostsConfig, host: HostConfig) {
    if !hosts.hosts.iter().any(|h| h.address == host.address) {
        hosts.hosts.push(host);
    }
}

fn resolver(family: DnsFamily) -> Result<TokioResolver, String> {
    let mut builder = TokioResolver::builder_tokio().map_err(|e| e.to_string())?;
    let options = builder.options_mut();
    options.ip_strategy = match family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    options.timeout = Duration::from_secs(5);
    builder.build().map_err(|e| e.to_string())
}

async fn resolve(resolver: &TokioResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), String> {
    if let Ok(ip) = name.parse() {
        return Ok((vec![ip], Duration::from_secs(3600)));
    }
    let found = resolver.lookup_ip(name).await.map_err(|e| e.to_string())?;
    let ttl = found
        .valid_until()
        .saturating_duration_since(Instant::now());
    let mut addresses: Vec<IpAddr> = found.iter().collect();
    // resolvers rotate: an order of our own keeps "nothing changed" true
    addresses.sort_unstable();
    Ok((addresses, ttl))
}
