//! One framework's applications in a mesh: a consumer and two providers (v1, v2), each behind a sidecar of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testkit::apps::{Consumer, Framework, Provider, start_consumer, start_provider};
use testkit::mesh::{Kind, Mesh, Sidecar};
use testkit::{http, net, wait};

use crate::yaml::{self, ServicePort};

/// How long a change of configuration may take to arrive, on a machine that does other things.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// The version of the Dubbo service.
const DUBBO_VERSION: &str = "1.2.3";
/// SOFARPC's `uniqueId`, which is the group of a call.
const SOFARPC_GROUP: &str = "blue";

const CONSUMER: u8 = 2;
const PROVIDERS: [(&str, u8); 2] = [("v1", 3), ("v2", 4)];

/// How sidecars know where the providers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// A ServiceEntry says it.
    ServiceEntry,
    /// Somebody registers them over pilot's HTTP interface.
    OpenRegistry,
    /// They register themselves, by SOFARPC's registry `mesh` in the sidecar; consumers subscribe there.
    MeshRegistry,
}

/// What differs between the frameworks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// The framework.
    pub(crate) framework: Framework,
    /// The service's host in the mesh.
    pub(crate) host: &'static str,
    /// The port that the consumer calls on its sidecar.
    pub(crate) port: ServicePort,
    /// The port of the provider's sidecar.
    pub(crate) ingress: u16,
    /// What comes before a method's name in `:path`.
    pub(crate) path: &'static str,
    /// What a sidecar sees before the name of a header that the application set.
    pub(crate) header: &'static str,
    /// How the providers are found.
    pub(crate) discovery: Discovery,
    /// The consumer's sidecar, and the two providers'.
    pub(crate) sidecars: [Kind; 3],
}

/// The plan for Dubbo.
pub(crate) const DUBBO: Plan = Plan {
    framework: Framework::Dubbo,
    host: "mesh.apps.dubbo.DubboShop",
    port: ServicePort {
        number: 30_880,
        name: "dubbo",
        protocol: "DUBBO",
    },
    ingress: 30_800,
    path: "/mesh.apps.dubbo.DubboShop/",
    header: "",
    discovery: Discovery::OpenRegistry,
    sidecars: [Kind::Mosn; 3],
};

/// The plan for SOFARPC.
pub(crate) const SOFARPC: Plan = Plan {
    framework: Framework::Sofarpc,
    host: "mesh.apps.sofarpc.SofaShop",
    port: ServicePort {
        number: 12_220,
        name: "bolt",
        protocol: "BOLT",
    },
    ingress: 12_200,
    path: "/mesh.apps.sofarpc.SofaShop/",
    header: "rpc_req_baggage.",
    discovery: Discovery::MeshRegistry,
    sidecars: [Kind::Mosn; 3],
};

/// The plan for Spring Boot.
pub(crate) const SPRING: Plan = Plan {
    framework: Framework::Spring,
    host: "shop.demo.svc.cluster.local",
    port: ServicePort {
        number: 10_088,
        name: "http",
        protocol: "HTTP",
    },
    ingress: 10_080,
    path: "/",
    header: "",
    discovery: Discovery::ServiceEntry,
    sidecars: [Kind::Mosn; 3],
};

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Stage {
    /// What it was made from.
    pub(crate) plan: Plan,
    /// The consumer application.
    pub(crate) consumer: Consumer,
    /// The providers, v1 and v2; taken out when killed.
    pub(crate) providers: Vec<Provider>,
    /// The consumer's sidecar.
    pub(crate) consumer_sidecar: Sidecar,
    /// The providers' sidecars.
    pub(crate) provider_sidecars: Vec<Sidecar>,
    /// Pilot. Last, so that it ends last.
    pub(crate) mesh: Mesh,
    changes: u32,
}

impl Stage {
    /// Starts all of it; all calls go to v1.
    pub(crate) fn start(plan: Plan) -> Result<Stage> {
        let mesh = Mesh::start()?;
        let folder = mesh.folder().to_owned();
        let kinds = plan.sidecars;

        let mut provider_sidecars = Vec::new();
        let mut starting = Vec::new();
        let mut sidecars = yaml::egress(mesh.ip(CONSUMER), plan.port);
        for ((version, host), kind) in PROVIDERS.into_iter().zip([kinds[1], kinds[2]]) {
            let sidecar = provider_sidecar(&mesh, kind, version, host)?;
            let ip = mesh.ip(host).to_string();
            // Dubbo binds all addresses whatever it is told, so each needs a port of its own.
            let app_port = net::free_port()?;
            let port = app_port.to_string();
            let registry = sidecar.mesh_registry();
            let mut flags = vec![("host", ip.as_str()), ("port", &port), ("label", version)];
            if plan.discovery == Discovery::MeshRegistry {
                flags.push(("mesh", &registry));
            }
            flags.extend(identity(plan.framework));
            let name = format!("provider-{version}");
            starting.push(start_provider(plan.framework, &name, &flags, &folder)?);
            sidecars += &yaml::ingress(version, mesh.ip(host), plan.ingress, plan.port, app_port);
            provider_sidecars.push(sidecar);
        }
        mesh.write("sidecars.yaml", &sidecars)?;

        let mut consumer_sidecar = mesh.sidecar(
            kinds[0],
            "consumer-sidecar",
            CONSUMER,
            &[("app", "consumer")],
        )?;
        let to = mesh.address(CONSUMER, plan.port.number).to_string();
        let named = format!("{}:{}", mesh.name(CONSUMER), plan.port.number);
        let registry = consumer_sidecar.mesh_registry();
        let mut flags = match plan.framework {
            _ if plan.discovery == Discovery::MeshRegistry => vec![("mesh", registry.as_str())],
            Framework::Spring => vec![("to", to.as_str()), ("authority", plan.host)],
            Framework::Dubbo => vec![("to", named.as_str())],
            Framework::Sofarpc => vec![("to", to.as_str())],
        };
        flags.extend(identity(plan.framework));
        provide(&mesh, &plan, &["v1", "v2"])?;
        mesh.write("rule.yaml", &yaml::destination_rule(plan.host, ""))?;
        mesh.write(
            "routes.yaml",
            &yaml::virtual_service(plan.host, &route_to_host(plan.host, "v1")),
        )?;

        let mut providers = Vec::new();
        for provider in starting {
            providers.push(provider.provider()?);
        }
        for sidecar in &mut provider_sidecars {
            sidecar.wait_listening(plan.ingress)?;
        }
        consumer_sidecar.wait_listening(plan.port.number)?;
        let consumer = start_consumer(plan.framework, "consumer", &flags, &folder)?.consumer()?;

        let mut stage = Stage {
            plan,
            consumer,
            providers,
            consumer_sidecar,
            provider_sidecars,
            mesh,
            changes: 0,
        };
        // With a registry the endpoints come after the listener.
        wait::until_ok("a first call", CHANGE_LIMIT, || {
            match stage.consumer.call("who", "timeout=2000")?.outcome {
                Ok(_) => Ok(()),
                Err(exception) => bail!("{exception}"),
            }
        })?;
        Ok(stage)
    }

    /// The consumer's sidecar, as something to send HTTP to.
    pub(crate) fn entrance(&self) -> SocketAddr {
        self.mesh.address(CONSUMER, self.plan.port.number)
    }

    /// Puts HTTP routes (a YAML list) into force and waits until the consumer's sidecar has them.
    pub(crate) fn route(&mut self, routes: &str) -> Result<()> {
        self.changes += 1;
        let marker = format!("change-{}", self.changes);
        // A last route that no call takes, by which the change is recognised in the sidecar.
        let marked = format!(
            "- name: {marker}\n  match: [{{headers: {{x-never: {{exact: {marker}}}}}}}]\n  \
               route: [{{destination: {{host: {0}}}}}]\n{1}",
            self.plan.host,
            routes.trim_matches('\n'),
        );
        self.mesh.write(
            "routes.yaml",
            &yaml::virtual_service(self.plan.host, &marked),
        )?;
        self.wait_for(&marker)
    }

    /// Makes these versions the only endpoints; where applications register themselves they stay what they are.
    pub(crate) fn endpoints(&self, versions: &[&str]) -> Result<()> {
        provide(&self.mesh, &self.plan, versions)
    }

    /// The instances of the service that pilot's registry has.
    pub(crate) fn registered(&self) -> Result<Vec<Value>> {
        let path = format!(
            "/v1/services/{}/{}/instances",
            self.plan.port.name, self.plan.host
        );
        let answer = http::get(self.mesh.pilot_http(), &path)?;
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        let json = answer.json()?;
        Ok(json["instances"]
            .as_array()
            .with_context(|| json.to_string())?
            .clone())
    }

    /// Puts a traffic policy into force.
    pub(crate) fn policy(&self, policy: &str) -> Result<()> {
        self.mesh
            .write("rule.yaml", &yaml::destination_rule(self.plan.host, policy))
    }

    /// Starts the sidecar of v2 again after it was killed.
    pub(crate) fn restart_sidecar(&mut self) -> Result<()> {
        self.provider_sidecars.pop();
        let (version, host) = PROVIDERS[1];
        self.provider_sidecars.push(provider_sidecar(
            &self.mesh,
            self.plan.sidecars[2],
            version,
            host,
        )?);
        Ok(())
    }

    /// Waits until this text is in the configuration of the consumer's sidecar.
    pub(crate) fn wait_for(&self, text: &str) -> Result<()> {
        wait::until_ok(&format!("{text} in the sidecar"), CHANGE_LIMIT, || {
            let dump = self.consumer_sidecar.config_dump()?.to_string();
            if !dump.contains(text) {
                bail!(
                    "pilot says: {}",
                    self.mesh.pilot_output().lines().last().unwrap_or_default()
                );
            }
            Ok(())
        })
    }

    /// A route list that sends everything to one version.
    pub(crate) fn to(&self, version: &str) -> String {
        route_to_host(self.plan.host, version)
    }
}

fn provider_sidecar(mesh: &Mesh, kind: Kind, version: &str, host: u8) -> Result<Sidecar> {
    let labels = [("app", "provider"), ("version", version)];
    mesh.sidecar(kind, &format!("provider-{version}-sidecar"), host, &labels)
}

/// What names the service besides its interface, as flags of both applications.
fn identity(framework: Framework) -> Option<(&'static str, &'static str)> {
    match framework {
        Framework::Dubbo => Some(("version", DUBBO_VERSION)),
        Framework::Sofarpc => Some(("unique-id", SOFARPC_GROUP)),
        Framework::Spring => None,
    }
}

/// Says that these versions are the endpoints.
fn provide(mesh: &Mesh, plan: &Plan, versions: &[&str]) -> Result<()> {
    let there = |version| versions.contains(&version);
    match plan.discovery {
        Discovery::MeshRegistry => Ok(()),
        Discovery::ServiceEntry => {
            let endpoints: Vec<_> = PROVIDERS
                .into_iter()
                .filter(|(version, _)| there(*version))
                .map(|(version, host)| (mesh.ip(host), plan.ingress, version))
                .collect();
            mesh.write(
                "service.yaml",
                &yaml::service_entry(plan.host, plan.port, &endpoints),
            )
        }
        Discovery::OpenRegistry => {
            for (version, host) in PROVIDERS {
                let mut instance =
                    json!({ "protocol": plan.port.name, "service": plan.host, "id": version });
                let path = if there(version) {
                    instance["address"] = json!(mesh.ip(host).to_string());
                    instance["port"] = json!(plan.ingress);
                    instance["version"] = json!(DUBBO_VERSION);
                    instance["metadata"] = json!({ "version": version });
                    instance["ttlSeconds"] = json!(0);
                    "/v1/register"
                } else {
                    "/v1/deregister"
                };
                let body = json!({ "instances": [instance] });
                let answer = http::post_json(mesh.pilot_http(), path, &body)?;
                ensure!(
                    answer.status == 200,
                    "{path}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
            Ok(())
        }
    }
}

fn route_to_host(host: &str, version: &str) -> String {
    format!("- route: [{{destination: {{host: {host}, subset: {version}}}}}]\n")
}
