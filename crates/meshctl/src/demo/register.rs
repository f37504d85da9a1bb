//! How a demo provider registers: as SOFARPC does with the MeshRegistry of its sidecar, or with the Open Service
//! Registry itself.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::bail;
use http::Method;
use serde_json::{Value, json};

use super::{ProviderOptions, bolt};
use crate::http_client::Server;
use crate::up::plan::Protocol;

/// Lease with the Open Service Registry, and how often it is renewed.
const LEASE_SECONDS: u64 = 15;
const RENEW: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(200);
/// The rest of SOFARPC's name for a service in a registry.
const DEFAULT_GROUP: &str = "@DEFAULT";

/// A registration of one provider.
pub(super) struct Registration {
    server: Server,
    kind: Kind,
}

enum Kind {
    /// The sidecar registers its own address and keeps the lease.
    MeshRegistry {
        publish: Value,
        app: String,
    },
    OpenServiceRegistry {
        instance: Value,
    },
}

impl Registration {
    /// What the provider's options say; nothing for HTTP, whose service is in a document.
    pub(super) fn of(options: &ProviderOptions) -> Option<Self> {
        let address = options.registry.clone()?;
        let kind = match options.protocol {
            Protocol::Http => return None,
            Protocol::Bolt => Kind::MeshRegistry {
                publish: publication(options),
                app: options.app.clone(),
            },
            Protocol::Dubbo => Kind::OpenServiceRegistry {
                instance: instance(options, options.advertise?),
            },
        };
        let what = match kind {
            Kind::MeshRegistry { .. } => "the sidecar's registry",
            Kind::OpenServiceRegistry { .. } => "the registry",
        };
        Some(Self {
            server: Server {
                address,
                what,
                hint: "it may still be starting".to_owned(),
                token: None,
            },
            kind,
        })
    }

    /// Registers, and renews what has to be renewed, for ever.
    pub(super) async fn keep(&self) {
        loop {
            match self.register().await {
                Ok(()) => match self.kind {
                    Kind::MeshRegistry { .. } => return,
                    Kind::OpenServiceRegistry { .. } => tokio::time::sleep(RENEW).await,
                },
                // It goes to the provider's log; the mesh's table shows that nobody answers.
                Err(error) => {
                    eprintln!("cannot register: {error:#}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn register(&self) -> anyhow::Result<()> {
        match &self.kind {
            Kind::MeshRegistry { publish, app } => {
                self.ask("/configs/application", &json!({ "appName": app }))
                    .await?;
                self.ask("/services/publish", publish).await
            }
            // One that is there with the same content is only renewed.
            Kind::OpenServiceRegistry { instance } => {
                let body = json!({ "instances": [instance] });
                self.server
                    .json(Method::POST, "/v1/register", Some(&body))
                    .await?;
                Ok(())
            }
        }
    }

    /// Takes the registration back, so that no caller finds a provider that has gone.
    pub(super) async fn withdraw(&self) {
        let result = match &self.kind {
            Kind::MeshRegistry { publish, .. } => {
                let body = json!({
                    "serviceName": publish["serviceName"],
                    "protocolType": publish["protocolType"],
                });
                self.ask("/services/unpublish", &body).await
            }
            Kind::OpenServiceRegistry { instance } => {
                let body = json!({ "instances": [{
                    "protocol": instance["protocol"],
                    "service": instance["service"],
                    "id": instance["id"],
                }] });
                let answer = self
                    .server
                    .json(Method::POST, "/v1/deregister", Some(&body))
                    .await;
                answer.map(|_| ())
            }
        };
        if let Err(error) = result {
            eprintln!("cannot deregister: {error:#}");
        }
    }

    /// A request to the MeshRegistry, which says in the body whether it succeeded.
    async fn ask(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let answer = self.server.json(Method::POST, path, Some(body)).await?;
        if answer["success"] != Value::Bool(true) {
            bail!(
                "{path}: {}",
                answer["errorMessage"].as_str().unwrap_or("refused")
            );
        }
        Ok(())
    }
}

fn publication(options: &ProviderOptions) -> Value {
    json!({
        "serviceName": format!("{}{DEFAULT_GROUP}", bolt::unique_name()),
        "protocolType": "bolt",
        "providerMetaInfo": {
            "appName": options.app,
            "protocol": "bolt",
            "version": "4.0",
            "serializeType": "hessian2",
            "properties": { "port": options.listen.port().to_string() },
        },
    })
}

fn instance(options: &ProviderOptions, advertise: SocketAddrV4) -> Value {
    json!({
        "protocol": "dubbo",
        "service": Protocol::Dubbo.service(),
        "id": options.name,
        "address": advertise.ip().to_string(),
        "port": advertise.port(),
        "metadata": { "app": options.app },
        "ttlSeconds": LEASE_SECONDS,
    })
}
