//! The JSON documents of SOFARPC's registry `mesh` (`com.alipay.sofa.rpc.registry.mesh.model`), and how they become
//! instances of the registry and back.

use std::collections::BTreeMap;

use api::mesh::registry::v1::Instance;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::service_id::ServiceId;

/// Body of `/configs/application`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Application {
    pub(super) app_name: Option<String>,
}

/// Body of `/services/publish`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Publish {
    service_name: Option<String>,
    protocol_type: Option<String>,
    provider_meta_info: Option<ProviderMetaInfo>,
    group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProviderMetaInfo {
    protocol: Option<String>,
    version: Option<String>,
    serialize_type: Option<String>,
    app_name: Option<String>,
    properties: Option<Map<String, Value>>,
}

/// Body of the other three: of what they say only the service matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Service {
    service_name: Option<String>,
    protocol_type: Option<String>,
}

/// Answer to everything but a subscription.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcome {
    pub(super) success: bool,
    pub(super) error_message: String,
}

/// Answer to a subscription.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Subscribed {
    pub(super) service_name: String,
    pub(super) datas: Vec<String>,
    pub(super) success: bool,
    pub(super) error_message: String,
}

/// Metadata: the application's name.
const APP: &str = "app";
/// Metadata: how arguments are serialized.
const SERIALIZATION: &str = "serialization";
/// Metadata: the version of the registration's format (`4.0`).
const FORMAT_VERSION: &str = "sofa.version";
/// Metadata: the group within SOFA's registry, which is not the group of the interface.
const REGISTRY_GROUP: &str = "sofa.group";
/// Property: the application's own port, behind the sidecar.
const PORT: &str = "port";
/// Property: share of calls.
const WEIGHT: &str = "weight";

/// Parameters of a subscription's answer that are not passed on: the consumer calls its sidecar, and these speak of one
/// provider behind it.
const OF_ONE_PROVIDER: [&str; 8] = [
    PORT,
    WEIGHT,
    "startTime",
    "warmupTime",
    "warmupWeight",
    "_WEIGHT",
    "_WARMUPTIME",
    "_WARMUPWEIGHT",
];

/// Providers that a subscription's answer names at most; SOFARPC looks at the first.
pub(super) const DATAS: usize = 1000;

impl Publish {
    /// The service it is about.
    pub(super) fn service(&self) -> Result<ServiceId, String> {
        let meta = self.provider_meta_info.as_ref();
        let protocol = text(&self.protocol_type).or_else(|| text(&meta?.protocol));
        parse(&self.service_name, protocol.unwrap_or_default())
    }

    /// What is registered for it, but for address, port and lease. `app` is the name that the application gave before;
    /// the workload's labels win over properties of the same name.
    pub(super) fn into_instance(
        self,
        id: &ServiceId,
        app: &str,
        labels: &BTreeMap<String, String>,
    ) -> Instance {
        let meta = self.provider_meta_info.unwrap_or_default();
        let mut metadata: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in meta.properties.unwrap_or_default() {
            let value = match value {
                Value::Null => continue,
                Value::String(value) => value,
                other => other.to_string(),
            };
            metadata.insert(key, value);
        }
        let weight = metadata.get(WEIGHT).and_then(|weight| weight.parse().ok());
        let words = [
            (
                APP,
                text(&meta.app_name).or((!app.is_empty()).then_some(app)),
            ),
            (SERIALIZATION, text(&meta.serialize_type)),
            (FORMAT_VERSION, text(&meta.version)),
            (REGISTRY_GROUP, text(&self.group)),
        ];
        for (key, value) in words {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value.to_owned());
            }
        }
        for (key, value) in labels {
            metadata.insert(key.clone(), value.clone());
        }
        Instance {
            protocol: id.protocol.clone(),
            service: id.name.clone(),
            version: id.version.clone(),
            group: id.group.clone(),
            weight,
            healthy: Some(true),
            metadata: metadata.into_iter().collect(),
            origin: "mesh".to_owned(),
            ..Instance::default()
        }
    }
}

impl Service {
    /// The service it is about.
    pub(super) fn service(&self) -> Result<ServiceId, String> {
        parse(
            &self.service_name,
            text(&self.protocol_type).unwrap_or_default(),
        )
    }

    /// As the application wrote it.
    pub(super) fn name(&self) -> &str {
        self.service_name.as_deref().unwrap_or_default()
    }
}

fn parse(service_name: &Option<String>, protocol: &str) -> Result<ServiceId, String> {
    match text(service_name) {
        Some(name) => ServiceId::parse(name, protocol),
        None => Err("serviceName is required".to_owned()),
    }
}

fn text(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.trim().is_empty())
}

/// The URL of a provider in a subscription's answer. SOFARPC decodes nothing in it, so that pairs that would need it are left
/// out.
pub(super) fn provider_url(instance: &Instance) -> String {
    let host = if instance.address.contains(':') {
        format!("[{}]", instance.address)
    } else {
        instance.address.clone()
    };
    let mut url = format!("{}://{host}:{}", instance.protocol, instance.port);
    let mut separator = '?';
    let mut pair = |key: &str, value: &str| {
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_graphic() && !matches!(b, b'&' | b'?' | b'#'))
        };
        if key.is_empty() || key.contains('=') || !plain(key) || !plain(value) {
            return;
        }
        url.push(separator);
        url.push_str(key);
        url.push('=');
        url.push_str(value);
        separator = '&';
    };
    for (key, value) in &instance.metadata {
        match key.as_str() {
            APP => pair("app_name", value),
            SERIALIZATION => pair("_SERIALIZETYPE", value),
            FORMAT_VERSION => pair("v", value),
            REGISTRY_GROUP => {}
            key if OF_ONE_PROVIDER.contains(&key) => {}
            key => pair(key, value),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_becomes_an_instance_and_a_url() -> Result<(), Box<dyn std::error::Error>> {
        // As fastjson writes what SOFARPC 5.13 sends.
        let body = r#"{"onlyPublishInCloud":false,"protocolType":"bolt","providerMetaInfo":{"appName":"shop",
            "properties":{"release":"v2","weight":"50","note":"a&b"},"protocol":"bolt","serializeType":"hessian2",
            "version":"4.0"},"serviceName":"com.foo.Bar:1.0:blue"}"#;
        let publish: Publish = serde_json::from_str(body)?;
        let id = publish.service()?;
        let mut instance = publish.into_instance(&id, "ignored", &BTreeMap::new());
        instance.address = "10.0.0.2".to_owned();
        instance.port = 12200;
        assert_eq!(
            (instance.version.as_str(), instance.group.as_str()),
            ("1.0", "blue")
        );
        assert_eq!(instance.weight, Some(50));
        assert_eq!(
            instance.metadata.get("release").map(String::as_str),
            Some("v2")
        );
        assert_eq!(
            provider_url(&instance),
            "bolt://10.0.0.2:12200?app_name=shop&release=v2&_SERIALIZETYPE=hessian2&v=4.0"
        );
        Ok(())
    }

    proptest::proptest! {
        /// Whatever an application sends is a refusal or an instance whose URL is one word.
        #[test]
        fn takes_any_words(
            name in "\\PC{0,40}",
            protocol in proptest::option::of("\\PC{0,8}"),
            key in "\\PC{0,8}",
            value in "\\PC{0,8}",
        ) {
            let body = serde_json::json!({
                "serviceName": name, "protocolType": protocol, "providerMetaInfo": {"properties": {key: value}},
            });
            let publish: Publish = serde_json::from_value(body)?;
            if let Ok(id) = publish.service() {
                let mut instance = publish.into_instance(&id, "app", &BTreeMap::new());
                instance.address = "::1".to_owned();
                // Only a protocol that has an ingress port gets so far.
                instance.protocol = "bolt".to_owned();
                let url = provider_url(&instance);
                let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
                proptest::prop_assert!(parameters.bytes().all(|b| b.is_ascii_graphic()), "{}", url);
                proptest::prop_assert!(parameters.split('&').all(|pair| pair.contains('=')), "{}", url);
            }
        }
    }
}
