//! The Istio documents of the tests.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use testkit::mesh::NAMESPACE;

/// A document of `networking.istio.io` with this specification (YAML, not indented).
pub(crate) fn document(kind: &str, name: &str, spec: &str) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata:\n  name: {name}\n  namespace: {NAMESPACE}\nspec:\n"
    );
    for line in spec.trim_matches('\n').lines() {
        let _ = writeln!(text, "  {line}");
    }
    text + "---\n"
}

/// A service port: the number that consumers call on their sidecar, and its protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServicePort {
    /// Number.
    pub(crate) number: u16,
    /// Name, also of the endpoint's port.
    pub(crate) name: &'static str,
    /// Istio's protocol.
    pub(crate) protocol: &'static str,
}

/// A service with one endpoint for each (address, port, version).
pub(crate) fn service_entry(
    host: &str,
    port: ServicePort,
    endpoints: &[(Ipv4Addr, u16, &str)],
) -> String {
    let ServicePort {
        number,
        name,
        protocol,
    } = port;
    let mut spec = format!(
        "hosts: [{host}]\nports:\n- {{number: {number}, name: {name}, protocol: {protocol}}}\n\
         location: MESH_INTERNAL\nresolution: STATIC\nendpoints:\n"
    );
    for (ip, ingress, version) in endpoints {
        let _ = writeln!(
            spec,
            "- {{address: {ip}, ports: {{{name}: {ingress}}}, labels: {{app: provider, version: {version}}}}}"
        );
    }
    document("ServiceEntry", "shop", &spec)
}

/// Subsets v1 and v2, and whatever else `policy` says (a `trafficPolicy:` or nothing).
pub(crate) fn destination_rule(host: &str, policy: &str) -> String {
    let spec = format!(
        "host: {host}\nsubsets:\n- {{name: v1, labels: {{version: v1}}}}\n\
         - {{name: v2, labels: {{version: v2}}}}\n{policy}"
    );
    document("DestinationRule", "shop", &spec)
}

/// A virtual service with these HTTP routes, a YAML list.
pub(crate) fn virtual_service(host: &str, routes: &str) -> String {
    let spec = format!("hosts: [{host}]\nhttp:\n{}", routes.trim_matches('\n'));
    document("VirtualService", "shop", &spec)
}

/// The sidecar of consumers: one port for calls.
pub(crate) fn egress(ip: Ipv4Addr, port: ServicePort) -> String {
    let ServicePort {
        number,
        name,
        protocol,
    } = port;
    let spec = format!(
        "workloadSelector: {{labels: {{app: consumer}}}}\negress:\n\
         - port: {{number: {number}, name: {name}, protocol: {protocol}}}\n  \
           bind: {ip}\n  captureMode: NONE\n  hosts: ['*/*']\n"
    );
    document("Sidecar", "consumer", &spec)
}

/// The sidecar of the providers of one version: one port that goes to the application.
pub(crate) fn ingress(
    version: &str,
    ip: Ipv4Addr,
    ingress: u16,
    port: ServicePort,
    app: u16,
) -> String {
    let ServicePort { name, protocol, .. } = port;
    let spec = format!(
        "workloadSelector: {{labels: {{app: provider, version: {version}}}}}\ningress:\n\
         - port: {{number: {ingress}, name: {name}, protocol: {protocol}}}\n  \
           bind: {ip}\n  captureMode: NONE\n  defaultEndpoint: 0.0.0.0:{app}\n\
         egress:\n- hosts: ['~/*']\n"
    );
    document("Sidecar", &format!("provider-{version}"), &spec)
}
