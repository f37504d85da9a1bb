//! Rules of `ServiceEntry` and `WorkloadEntry`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base::FieldError;

use super::{
    Check, each, export_to, host, label, labels, optional, port, port_number, subnet,
    wildcard_host, wrong,
};
use crate::istio::service_entry::{Resolution, ServiceEntry, WorkloadEntry};
use crate::protocol::Protocol;

/// Checks a ServiceEntry.
pub fn service_entry(spec: &ServiceEntry, warnings: &mut Vec<String>) -> Check {
    if spec.hosts.is_empty() {
        return Err(FieldError::at(
            "hosts",
            "service entry must have at least one host",
        ));
    }
    each("hosts", &spec.hosts, |name| match name.as_str() {
        "*" => Err(wrong("`*` alone is not a host of a service")),
        name => wildcard_host(name),
    })?;
    each("addresses", &spec.addresses, |address| subnet(address))?;
    if spec.addresses.iter().any(|address| address.contains('/'))
        && !matches!(spec.resolution, Resolution::None | Resolution::Static)
    {
        return Err(FieldError::at(
            "addresses",
            "CIDR addresses are allowed only for resolution NONE and STATIC",
        ));
    }
    ports(spec, warnings)?;
    optional(
        "workloadSelector",
        spec.workload_selector.as_ref(),
        |selector| {
            labels(&selector.labels).map_err(|e| e.in_field("labels"))?;
            if !spec.endpoints.is_empty() {
                return Err(wrong(
                    "only one of workloadSelector and endpoints is allowed",
                ));
            }
            if selector.labels.is_empty() {
                return Err(FieldError::at("labels", "is empty"));
            }
            Ok(())
        },
    )?;
    resolution(spec)?;
    if spec
        .endpoints
        .iter()
        .any(|endpoint| endpoint.address.starts_with("unix://"))
    {
        warnings.push(
            "spec.endpoints: unix sockets have no effect in mosn yet, only in Envoy".to_owned(),
        );
    }
    export_to(&spec.export_to)?;
    if !spec.subject_alt_names.is_empty() {
        warnings.push(
            "spec.subjectAltNames: has no effect: there is no TLS between proxies yet".to_owned(),
        );
    }
    if let Some(endpoint) = spec
        .endpoints
        .iter()
        .find(|endpoint| !endpoint.network.is_empty())
    {
        warnings.push(format!(
            "spec.endpoints: network `{}` has no effect: all networks are taken as one",
            endpoint.network
        ));
    }
    Ok(())
}

fn ports(spec: &ServiceEntry, warnings: &mut Vec<String>) -> Check {
    if spec.ports.is_empty() {
        return Err(FieldError::at(
            "ports",
            "service entry must have at least one port",
        ));
    }
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    each("ports", &spec.ports, |item| {
        port(item)?;
        label(&item.name).map_err(|e| e.in_field("name"))?;
        if !numbers.insert(item.number) {
            return Err(
                wrong(format!("port {} is already defined", item.number)).in_field("number")
            );
        }
        if !names.insert(&item.name) {
            return Err(
                wrong(format!("port name `{}` is already defined", item.name)).in_field("name"),
            );
        }
        match item.protocol() {
            Protocol::Udp => warnings.push(format!("spec.ports: {}: UDP is not served", item.name)),
            Protocol::Unknown => warnings.push(format!(
                "spec.ports: {}: without protocol the port is served as TCP, nothing is sniffed",
                item.name
            )),
            _ => {}
        }
        Ok(())
    })
}

fn resolution(spec: &ServiceEntry) -> Check {
    let port_names: BTreeSet<&str> = spec.ports.iter().map(|port| port.name.as_str()).collect();
    let endpoint_ports = |endpoint: &WorkloadEntry| {
        for (name, number) in &endpoint.ports {
            let named = |e: FieldError| e.in_field(name).in_field("ports");
            port_number(*number).map_err(named)?;
            if !port_names.contains(name.as_str()) {
                return Err(named(wrong(format!(
                    "endpoint port `{name}` is not defined by the service entry"
                ))));
            }
        }
        labels(&endpoint.labels).map_err(|e| e.in_field("labels"))
    };
    match spec.resolution {
        Resolution::None if !spec.endpoints.is_empty() => Err(FieldError::at(
            "endpoints",
            "no endpoints should be provided for resolution NONE",
        )),
        Resolution::None => Ok(()),
        Resolution::Static => each("endpoints", &spec.endpoints, |endpoint| {
            endpoint_ports(endpoint)?;
            if let Some(path) = endpoint.address.strip_prefix("unix://") {
                unix_path(path).map_err(|e| e.in_field("address"))?;
                if spec.ports.len() != 1 {
                    return Err(
                        wrong("exactly 1 service port is required for unix endpoints")
                            .in_field("address"),
                    );
                }
                return Ok(());
            }
            if endpoint.address.parse::<IpAddr>().is_err() {
                return Err(
                    wrong(format!("`{}` is not a valid IP address", endpoint.address))
                        .in_field("address"),
                );
            }
            Ok(())
        }),
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if spec.endpoints.is_empty() && spec.workload_selector.is_none() {
                each("hosts", &spec.hosts, |name| {
                    host(name).map_err(|e| {
                        wrong(format!(
                            "{}; hosts must be names without wildcard if no endpoints are given",
                            e.message
                        ))
                    })
                })?;
            }
            if spec.resolution == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
                return Err(FieldError::at(
                    "endpoints",
                    "there must be at most 1 endpoint for resolution DNS_ROUND_ROBIN",
                ));
            }
            each("endpoints", &spec.endpoints, |endpoint| {
                endpoint_ports(endpoint)?;
                if endpoint.address.parse::<IpAddr>().is_ok() {
                    return Ok(());
                }
                host(&endpoint.address).map_err(|e| e.in_field("address"))
            })
        }
        Resolution::DynamicDns => Err(FieldError::at(
            "resolution",
            "DYNAMIC_DNS is not implemented",
        )),
    }
}

fn unix_path(path: &str) -> Check {
    if path.starts_with('/') || path.starts_with('@') {
        Ok(())
    } else {
        Err(wrong(format!("`{path}` is not an absolute path")))
    }
}

/// Checks a WorkloadEntry that is an object of its own.
pub fn workload_entry(spec: &WorkloadEntry) -> Check {
    if spec.address.is_empty() {
        return Err(FieldError::at("address", "is required"));
    }
    if let Some(path) = spec.address.strip_prefix("unix://") {
        unix_path(path).map_err(|e| e.in_field("address"))?;
    } else if spec.address.parse::<IpAddr>().is_err() {
        host(&spec.address).map_err(|e| e.in_field("address"))?;
    }
    for (name, number) in &spec.ports {
        port_number(*number).map_err(|e| e.in_field(name).in_field("ports"))?;
    }
    labels(&spec.labels).map_err(|e| e.in_field("labels"))
}
