//! The configuration that `up` writes: Istio's documents for pilot, and a bootstrap for each sidecar. All of it is as a
//! person would write it, and the documents are there to be edited while the mesh runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::plan::{ADMIN, Application, MESH_REGISTRY, NAMESPACE, PILOT_GRPC, Plan, Protocol, Role};

/// The folders and files of one `up`.
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
}

impl Files {
    /// Makes the folders.
    pub(crate) fn create(dir: &Path) -> anyhow::Result<Self> {
        let files = Self {
            dir: dir.to_path_buf(),
        };
        for folder in [
            &files.config(),
            &files.logs(),
            &files.sidecars(),
            &files.registry(),
        ] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(files)
    }

    /// Istio's documents; pilot watches it.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// What the processes print.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The registry's store.
    pub(crate) fn registry(&self) -> PathBuf {
        self.dir.join("registry")
    }

    fn sidecars(&self) -> PathBuf {
        self.dir.join("sidecars")
    }

    /// The mesh configuration.
    pub(crate) fn mesh_config(&self) -> PathBuf {
        self.dir.join("mesh.yaml")
    }

    /// The bootstrap of an application's sidecar.
    pub(crate) fn bootstrap(&self, app: &Application) -> PathBuf {
        self.sidecars().join(format!("{}.yaml", app.name()))
    }

    /// The document with the split of a protocol's calls.
    pub(crate) fn split(&self, protocol: Protocol) -> PathBuf {
        self.config()
            .join(format!("{}-routes.yaml", protocol.word()))
    }

    /// Writes everything. Routes that are there from an earlier run hold no addresses and may have been edited: they
    /// stay, unless `fresh` says otherwise.
    pub(crate) fn write(&self, plan: &Plan, fresh: bool) -> anyhow::Result<()> {
        write(&self.mesh_config(), MESH_CONFIG)?;
        write(
            &self.config().join("http-service.yaml"),
            &service_entry(plan),
        )?;
        write(&self.config().join("sidecars.yaml"), &sidecars(plan))?;
        for protocol in super::plan::PROTOCOLS {
            let path = self.split(protocol);
            if fresh || !path.is_file() {
                write(&path, &routes(protocol, 20))?;
            }
        }
        for app in &plan.applications {
            write(&self.bootstrap(app), &bootstrap(plan, app)?)?;
        }
        Ok(())
    }
}

/// Writes to a new file and moves it into place: whoever watches the folder never sees half a document.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

const MESH_CONFIG: &str = "\
# The mesh configuration of pilot, in the form of Istio's MeshConfig.
rootNamespace: istio-system
trustDomain: cluster.local
";

/// VirtualService and DestinationRule of a protocol's service, with this share of the calls to v2.
pub(crate) fn routes(protocol: Protocol, percent_v2: u32) -> String {
    let host = protocol.service();
    let name = host.to_ascii_lowercase().replace('.', "-");
    let word = protocol.word();
    let percent_v1 = 100 - percent_v2;
    // What the path is differs: an HTTP path, or /interface/method.
    let slow = match protocol {
        Protocol::Http => "/slow".to_owned(),
        _ => format!("/{host}/slow"),
    };
    format!(
        "\
# How calls to {host} ({word}) are routed. Edit and save: the sidecars follow at once.
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  hosts: [{host}]
  http:
    # A call with the header (Bolt: header, Dubbo: attachment) `demo-fault: abort` is refused by the sidecar.
    - name: refused
      match:
        - headers: {{ demo-fault: {{ exact: abort }} }}
      fault:
        abort: {{ percentage: {{ value: 100 }}, httpStatus: 503 }}
      route:
        - destination: {{ host: {host}, subset: v1 }}
    # A call of this method is delayed.
    - name: delayed
      match:
        - uri: {{ exact: {slow} }}
      fault:
        delay: {{ percentage: {{ value: 100 }}, fixedDelay: 300ms }}
      route:
        - destination: {{ host: {host}, subset: v1 }}
    # All others are split between the two versions of the provider.
    - name: split
      route:
        - destination: {{ host: {host}, subset: v1 }}
          weight: {percent_v1}
        - destination: {{ host: {host}, subset: v2 }}
          weight: {percent_v2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  host: {host}
  # An instance that was registered through a sidecar has the sidecar's labels.
  subsets:
    - name: v1
      labels: {{ version: v1 }}
    - name: v2
      labels: {{ version: v2 }}
"
    )
}

/// The HTTP service. The Bolt and Dubbo services need no document: their providers register them.
fn service_entry(plan: &Plan) -> String {
    let protocol = Protocol::Http;
    let mut text = format!(
        "\
# The HTTP service, with the sidecars of its providers as endpoints.
# The Bolt and Dubbo services need no document: their providers are in the registry.
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: stock
  namespace: {NAMESPACE}
spec:
  hosts: [{host}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {{ number: {port}, name: http, protocol: HTTP }}
  endpoints:
",
        host = protocol.service(),
        port = protocol.egress_port(),
    );
    for app in plan
        .of_role(Role::Provider)
        .filter(|app| app.protocol == protocol)
    {
        text.push_str(&format!(
            "    - address: {}\n      ports: {{ http: {} }}\n      labels: {{ app: {}, version: {} }}\n",
            app.address,
            protocol.ingress_port(),
            app.app,
            app.version,
        ));
    }
    text
}

/// Where each sidecar listens. Nothing is redirected here (`captureMode: NONE`): applications call their sidecar.
fn sidecars(plan: &Plan) -> String {
    let mut text = String::from(
        "# Where the sidecars listen. Nothing is redirected (captureMode NONE): applications call their sidecar.\n",
    );
    for app in &plan.applications {
        if app.role == Role::Provider && app.version != "v1" {
            // One document serves all versions.
            continue;
        }
        let protocol = app.protocol;
        let word = protocol.word();
        let upper = word.to_ascii_uppercase();
        text.push_str(&format!(
            "---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: {app}
  namespace: {NAMESPACE}
spec:
  workloadSelector:
    labels: {{ app: {app} }}
",
            app = app.app,
        ));
        match app.role {
            Role::Consumer => text.push_str(&format!(
                "  egress:
    - port: {{ number: {port}, name: {word}, protocol: {upper} }}
      bind: {bind}
      captureMode: NONE
      hosts: [\"*/{host}\"]
",
                port = protocol.egress_port(),
                bind = app.address,
                host = protocol.service(),
            )),
            Role::Provider => text.push_str(&format!(
                "  ingress:
    - port: {{ number: {ingress}, name: {word}, protocol: {upper} }}
      captureMode: NONE
      defaultEndpoint: 0.0.0.0:{application}
  egress:
    - hosts: [\"~/*\"]
",
                ingress = protocol.ingress_port(),
                application = protocol.application_port(),
            )),
        }
    }
    text
}

/// A sidecar's bootstrap, in Envoy's form.
fn bootstrap(plan: &Plan, app: &Application) -> anyhow::Result<String> {
    let name = app.name();
    let node = node_id(app);
    let address = |port: u16| json!({ "socket_address": { "address": app.address.to_string(), "port_value": port } });
    let mut document = json!({
        "node": {
            "id": node,
            "cluster": format!("{}.{NAMESPACE}", app.app),
            "metadata": {
                "NAME": name,
                "NAMESPACE": NAMESPACE,
                "INSTANCE_IPS": app.address.to_string(),
                "INTERCEPTION_MODE": "NONE",
                "LABELS": { "app": app.app, "version": app.version },
            },
        },
        "admin": { "address": address(ADMIN) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
            "lds_config": { "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" },
            "cds_config": { "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" },
        },
        "static_resources": {
            "clusters": [{
                "name": "xds-grpc",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                },
                "load_assignment": {
                    "cluster_name": "xds-grpc",
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
                        "socket_address": { "address": plan.pilot.to_string(), "port_value": PILOT_GRPC },
                    } } }] }],
                },
            }],
        },
    });
    if app.protocol == Protocol::Bolt {
        document["bootstrap_extensions"] = json!([{
            "name": "mosn.bootstrap.mesh_registry",
            "typed_config": {
                "@type": "type.googleapis.com/mosn.extensions.bootstrap.mesh_registry.v1.MeshRegistry",
                "address": address(MESH_REGISTRY),
                "cluster_name": "xds-grpc",
                "instance_address": app.address.to_string(),
            },
        }]);
    }
    let text = serde_saphyr::to_string(&document).context("cannot write a bootstrap")?;
    Ok(format!(
        "# Bootstrap of the sidecar of {name}, in Envoy's form.\n{text}"
    ))
}

/// The node id of Istio: type, address, name and namespace, and domain.
pub(crate) fn node_id(app: &Application) -> String {
    format!(
        "sidecar~{}~{}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local",
        app.address,
        app.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_documents_that_are_yaml() {
        let plan = Plan::new([127, 77, 0]);
        let mut texts = vec![
            service_entry(&plan),
            sidecars(&plan),
            MESH_CONFIG.to_owned(),
        ];
        texts.extend(super::super::plan::PROTOCOLS.map(|protocol| routes(protocol, 20)));
        for app in &plan.applications {
            texts.push(bootstrap(&plan, app).expect("a bootstrap"));
        }
        for text in texts {
            let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text)
                .unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert!(!documents.is_empty());
        }
    }
}
