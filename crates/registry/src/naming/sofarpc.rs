//! SOFARPC's names: in SOFARegistry a dataId `interface:version[:uniqueId]@DEFAULT` with data `host:port?k=v&…`, in ZooKeeper
//! a folder of the interface with URLs `bolt://host:port?k=v&…`.

use std::collections::BTreeMap;

use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use crate::naming::dubbo::Url;
use crate::naming::{Malformed, authority, host_port, shorten};

/// SOFARPC's word for Bolt in names.
const DEFAULT: &str = "DEFAULT";
/// The constant that SOFARPC writes for a version; what is meant is in the unique id.
const VERSION: &str = "1.0";
/// Metadata of SOFARPC's providers: which version of it they are.
pub(crate) const VERSION_OF_SOFARPC: &str = "rpcVer";
/// Metadata that is only written for SOFARegistry's readers.
const LEGACY_WEIGHT: &str = "_WEIGHT";

/// A dataId taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataId {
    /// In lower case; `bolt` for `DEFAULT`.
    pub protocol: String,
    /// The interface.
    pub interface: String,
    /// Empty for none.
    pub version: String,
    /// Empty for none.
    pub unique_id: String,
}

/// Reads a dataId.
pub fn parse_data_id(data_id: &str) -> Result<DataId, Malformed> {
    let (name, protocol) = data_id
        .rsplit_once('@')
        .ok_or_else(|| Malformed::new(format!("`{}` has no @protocol", shorten(data_id))))?;
    let mut parts = name.splitn(3, ':');
    let interface = parts.next().unwrap_or_default();
    if interface.is_empty() || protocol.is_empty() {
        let text = format!("`{}` names no interface", shorten(data_id));
        return Err(Malformed::new(text));
    }
    let protocol = match protocol {
        DEFAULT => "bolt".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    Ok(DataId {
        protocol,
        interface: interface.to_owned(),
        version: parts.next().unwrap_or_default().to_owned(),
        unique_id: parts.next().unwrap_or_default().to_owned(),
    })
}

/// The dataId under which SOFARPC looks for an instance.
pub fn data_id(instance: &Instance) -> String {
    let version = match &*instance.version {
        "" => VERSION,
        version => version,
    };
    let mut id = format!("{}:{version}", instance.service.name);
    if !instance.group.is_empty() {
        id.push(':');
        id.push_str(&instance.group);
    }
    let protocol = match &*instance.service.protocol {
        "bolt" => DEFAULT,
        other => other,
    };
    format!("{id}@{protocol}")
}

/// The instance that a DataBox says.
pub fn instance(data_id: &DataId, data: &str) -> Result<Instance, Malformed> {
    let (address, query) = data.split_once('?').unwrap_or((data, ""));
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (address, context) = address.split_once('/').unwrap_or((address, ""));
    let (host, port) = host_port(address)?;
    let mut params = params(query);
    if !context.is_empty() {
        params.insert("path", context);
    }
    build(
        ServiceKey::new(&data_id.protocol, &data_id.interface),
        (&data_id.version, &data_id.unique_id),
        (&host, port),
        params,
    )
}

/// The DataBox of an instance, in the form that SOFARPC reads.
pub fn data(instance: &Instance) -> String {
    let mut params: BTreeMap<&str, String> = own_params(instance);
    // There is no other word for one that takes no calls.
    let weight = if instance.healthy { instance.weight } else { 0 };
    params.insert("weight", weight.to_string());
    params.insert(LEGACY_WEIGHT, weight.to_string());
    if &*instance.service.protocol == "bolt" {
        params.entry("p").or_insert_with(|| "1".to_owned());
    }
    for (key, value) in [
        ("v", "4.0"),
        ("serialization", "hessian2"),
        ("_SERIALIZETYPE", "hessian2"),
    ] {
        params.entry(key).or_insert_with(|| value.to_owned());
    }
    let context = params.remove("path").unwrap_or_default();
    let slash = if context.is_empty() { "" } else { "/" };
    let query: Vec<String> = params.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let address = authority(&instance.address, instance.port);
    format!("{address}{slash}{context}?{}", query.join("&"))
}

/// The instance that a node of ZooKeeper says, below the folder of `interface`.
pub fn instance_of_url(interface: &str, url: &Url) -> Result<Instance, Malformed> {
    let params: BTreeMap<&str, &str> = url
        .params
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "uniqueId" | "interface"))
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let word = |key: &str| url.params.get(key).map(String::as_str).unwrap_or_default();
    if url.port == 0 {
        return Err(Malformed::new("it has no port"));
    }
    build(
        ServiceKey::new(&url.protocol.to_ascii_lowercase(), interface),
        (word("version"), word("uniqueId")),
        (&url.host, url.port),
        params,
    )
}

/// The node of ZooKeeper for an instance.
pub fn url(instance: &Instance) -> Url {
    let mut params: BTreeMap<String, String> = own_params(instance)
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let version = match &*instance.version {
        "" => VERSION,
        version => version,
    };
    for (key, value) in [
        ("interface", instance.service.name.to_string()),
        ("protocol", instance.service.protocol.to_string()),
        ("version", version.to_owned()),
        ("uniqueId", instance.group.to_string()),
        ("weight", instance.weight.to_string()),
    ] {
        params.insert(key.to_owned(), value);
    }
    for (key, value) in [("serialization", "hessian2"), ("dynamic", "true")] {
        params
            .entry(key.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    Url {
        protocol: instance.service.protocol.to_string(),
        host: instance.address.to_string(),
        port: instance.port,
        path: String::new(),
        params,
    }
}

fn params(query: &str) -> BTreeMap<&str, &str> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect()
}

/// The metadata as parameters; what would break the string apart is left out.
fn own_params(instance: &Instance) -> BTreeMap<&str, String> {
    instance
        .metadata
        .iter()
        .filter(|(key, value)| !key.contains(['&', '=', '?']) && !value.contains('&'))
        // SOFARPC takes the first of these, wherever it is, for the end of a scheme.
        .filter(|(_, value)| !value.contains("://"))
        .map(|(key, value)| (key, value.to_owned()))
        .collect()
}

fn build(
    service: ServiceKey,
    (version, group): (&str, &str),
    (host, port): (&str, u16),
    mut params: BTreeMap<&str, &str>,
) -> Result<Instance, Malformed> {
    let legacy = params.remove(LEGACY_WEIGHT);
    let weight = match params.remove("weight").or(legacy) {
        None | Some("") => DEFAULT_WEIGHT,
        Some(text) => text
            .parse()
            .map_err(|_| Malformed::new(format!("its weight is {:?}", shorten(text))))?,
    };
    Ok(Instance {
        version: version.into(),
        group: group.into(),
        weight,
        metadata: params.into_iter().collect(),
        ttl: None,
        ..Instance::new(service, host, port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPTURED: &str = "10.0.0.5:12200?rpcVer=51302&serialization=hessian2&weight=150&timeout=3000&appName=demo-app&p=1&v=4.0&_SERIALIZETYPE=hessian2&_WEIGHT=150&_TIMEOUT=3000&app_name=demo-app&startTime=1700000000000";

    #[test]
    fn a_captured_publication_is_the_same_after_the_way_through_the_model() -> Result<(), Malformed>
    {
        let id = parse_data_id("com.probe.Hello:1.0:uid1@DEFAULT")?;
        let read = instance(&id, CAPTURED)?;
        assert_eq!(read.service, ServiceKey::new("bolt", "com.probe.Hello"));
        assert_eq!(
            (&*read.version, &*read.group, read.weight),
            ("1.0", "uid1", 150)
        );
        assert_eq!(data_id(&read), "com.probe.Hello:1.0:uid1@DEFAULT");
        let sorted = |text: &str| {
            let (address, query) = text.split_once('?').unwrap_or_default();
            let mut pairs: Vec<String> = query.split('&').map(str::to_owned).collect();
            pairs.sort();
            (address.to_owned(), pairs)
        };
        assert_eq!(sorted(&data(&read)), sorted(CAPTURED));
        let of_node = instance_of_url("com.probe.Hello", &Url::decode(&url(&read).encode())?)?;
        assert_eq!(
            (&of_node.version, &of_node.group),
            (&read.version, &read.group)
        );
        assert_eq!((of_node.port, of_node.weight), (12200, 150));
        Ok(())
    }

    #[test]
    fn a_url_among_the_parameters_is_not_taken_for_the_address() -> Result<(), Malformed> {
        let id = parse_data_id("shop:1.0@rest")?;
        let mut read = instance(&id, "10.0.0.5:80?color=red&home=http://10.0.0.6:8080/")?;
        assert_eq!((&*read.address, read.port), ("10.0.0.5", 80));
        assert_eq!(read.metadata.get("home"), Some("http://10.0.0.6:8080/"));
        read.metadata = [("home", "http://10.0.0.6:8080/"), ("color", "red")]
            .into_iter()
            .collect();
        let written = data(&read);
        assert!(
            !written.contains("://") && written.contains("color=red"),
            "{written}"
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_panics(id in "\\PC*", text in "\\PC*") {
            if let Ok(id) = parse_data_id(&id) {
                // What is refused is refused with a reason.
                let _ = instance(&id, &text);
            }
        }
    }
}
