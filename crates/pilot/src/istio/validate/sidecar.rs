//! Rules of `Sidecar`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use base::FieldError;

use super::destination_rule::connection_pool;
use super::{Check, each, label, labels, optional, port, wildcard_host, wrong};
use crate::istio::sidecar::{EgressListener, IngressListener, Sidecar};
use crate::protocol::Protocol;

/// Checks a Sidecar.
pub fn sidecar(spec: &Sidecar, warnings: &mut Vec<String>) -> Check {
    optional(
        "workloadSelector",
        spec.workload_selector.as_ref(),
        |selector| labels(&selector.labels).map_err(|e| e.in_field("labels")),
    )?;
    if spec.ingress.is_empty()
        && spec.egress.is_empty()
        && spec.outbound_traffic_policy.is_none()
        && spec.inbound_connection_pool.is_none()
    {
        return Err(wrong("sidecar: empty configuration provided"));
    }
    optional(
        "inboundConnectionPool",
        spec.inbound_connection_pool.as_ref(),
        |pool| connection_pool(pool, warnings),
    )?;
    optional(
        "outboundTrafficPolicy",
        spec.outbound_traffic_policy.as_ref(),
        |policy| match policy.egress_proxy {
            Some(_) => Err(wrong("is not implemented").in_field("egressProxy")),
            None => Ok(()),
        },
    )?;
    let mut listeners = BTreeSet::new();
    each("ingress", &spec.ingress, |item| {
        ingress(item, warnings)?;
        let number = item.port.as_ref().map_or(0, |port| port.number);
        if !listeners.insert(number) {
            return Err(wrong("ports of ingress listeners must be unique").in_field("port"));
        }
        Ok(())
    })?;

    let mut listeners = BTreeSet::new();
    let last = spec.egress.len().saturating_sub(1);
    for (index, item) in spec.egress.iter().enumerate() {
        let at = |error: FieldError| error.in_index(index).in_field("egress");
        egress(item).map_err(at)?;
        if item
            .port
            .as_ref()
            .is_some_and(|port| port.protocol() == Protocol::Tri)
        {
            warnings.push(format!(
                "spec.egress[{index}].port: tri is not served yet, there is no listener"
            ));
        }
        match &item.port {
            None if index != last => {
                return Err(at(wrong(
                    "an egress listener without port must be the last",
                )));
            }
            None => {}
            Some(port) if !listeners.insert((&item.bind, port.number)) => {
                return Err(at(
                    wrong("ports of egress listeners must be unique").in_field("port")
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn bind(text: &str) -> Check {
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        Ok(())
    } else if text.starts_with("unix://") {
        Err(wrong("unix sockets are not implemented").in_field("bind"))
    } else {
        Err(wrong(format!("`{text}` is not an IP address")).in_field("bind"))
    }
}

fn ingress(item: &IngressListener, warnings: &mut Vec<String>) -> Check {
    bind(&item.bind)?;
    let Some(listener_port) = &item.port else {
        return Err(wrong("is required").in_field("port"));
    };
    port(listener_port).map_err(|e| e.in_field("port"))?;
    if listener_port.protocol() == Protocol::Udp {
        return Err(wrong("UDP is not implemented")
            .in_field("protocol")
            .in_field("port"));
    }
    if item.tls.is_some() {
        return Err(wrong("is not implemented").in_field("tls"));
    }
    optional("connectionPool", item.connection_pool.as_ref(), |pool| {
        connection_pool(pool, warnings)
    })?;
    default_endpoint(&item.default_endpoint).map_err(|e| e.in_field("defaultEndpoint"))
}

/// Empty, `unix:///path`, or a port on the loopback or on the proxy's own address.
fn default_endpoint(text: &str) -> Check {
    if text.is_empty() {
        return Ok(());
    }
    if let Some(path) = text.strip_prefix("unix://") {
        return if path.starts_with('/') || path.starts_with('@') {
            Ok(())
        } else {
            Err(wrong(format!("`{path}` is not an absolute path")))
        };
    }
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err(wrong(format!("`{text}` is not <ip>:<port>")));
    };
    if address.port() == 0 {
        return Err(wrong("port number 0 is not in 1 to 65535"));
    }
    // Istio takes only 127.0.0.1, 0.0.0.0, ::1 and ::. Several workloads of one machine live on
    // several loopback addresses, so all of 127.0.0.0/8 is taken here.
    let ip = address.ip();
    if ip.is_loopback() || ip.is_unspecified() {
        Ok(())
    } else {
        Err(wrong(format!("`{ip}` is neither loopback nor 0.0.0.0")))
    }
}

fn egress(item: &EgressListener) -> Check {
    bind(&item.bind)?;
    match &item.port {
        Some(listener_port) => {
            port(listener_port).map_err(|e| e.in_field("port"))?;
            if listener_port.protocol() == Protocol::Udp {
                return Err(wrong("UDP is not implemented")
                    .in_field("protocol")
                    .in_field("port"));
            }
        }
        None if !item.bind.is_empty() => {
            return Err(wrong("needs a port").in_field("bind"));
        }
        None => {}
    }
    if item.hosts.is_empty() {
        return Err(wrong("egress listener must contain at least one host").in_field("hosts"));
    }
    each("hosts", &item.hosts, |import| {
        let Some((namespace, name)) = import.split_once('/') else {
            return Err(wrong(format!("`{import}` is not namespace/host")));
        };
        match namespace {
            "*" | "." | "~" => {}
            namespace => label(namespace)?,
        }
        wildcard_host(name)
    })
}
