//! Dubbo's provider URLs (`org.apache.dubbo.common.URL`): `protocol://host:port/path?k=v&…`. In ZooKeeper and etcd a URL is one
//! node's name, percent-encoded like Java's URLEncoder; in Nacos its parameters are metadata.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use crate::naming::{Malformed, authority, host_port, shorten};

/// Bytes of a URL.
const URL_BYTES: usize = 64 * 1024;
/// Said by Dubbo where there is no version.
const NO_VERSION: &str = "0.0.0";
/// Parameters that the model has fields for: they are no metadata.
const FIELDS: [&str; 4] = ["interface", "version", "group", "weight"];
/// Metadata that is said of an instance by others than its framework, or of no use to callers.
const PATH: &str = "path";

/// A Dubbo URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `dubbo`, `tri`, …
    pub protocol: String,
    /// IP address or name.
    pub host: String,
    /// Port; 0 when the URL has none.
    pub port: u16,
    /// Path without the slash before it; the interface, unless a context path is set.
    pub path: String,
    /// Parameters.
    pub params: BTreeMap<String, String>,
}

impl Url {
    /// Reads a URL that is not encoded.
    pub fn parse(text: &str) -> Result<Url, Malformed> {
        if text.len() > URL_BYTES {
            return Err(Malformed::new(format!(
                "a URL of {} bytes is too long",
                text.len()
            )));
        }
        let (protocol, rest) = text
            .split_once("://")
            .ok_or_else(|| Malformed::new(format!("`{}` is no URL", shorten(text))))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
        // What is before an @ are credentials, which are nobody's business here.
        let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
        let (host, port) = match host_port(address) {
            Ok(host_port) => host_port,
            Err(_) if !address.is_empty() && !address.contains(':') => (address.to_owned(), 0),
            Err(error) => return Err(error),
        };
        let mut params = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            params.insert(key.to_owned(), value.to_owned());
        }
        Ok(Url {
            protocol: protocol.to_owned(),
            host,
            port,
            path: path.to_owned(),
            params,
        })
    }

    /// Reads a URL that is encoded like the name of a ZooKeeper node.
    pub fn decode(encoded: &str) -> Result<Url, Malformed> {
        if encoded.len() > URL_BYTES {
            return Err(Malformed::new(format!(
                "a URL of {} bytes is too long",
                encoded.len()
            )));
        }
        Url::parse(&decode(encoded)?)
    }

    /// The URL as the name of a ZooKeeper node.
    pub fn encode(&self) -> String {
        encode(&self.to_string())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.protocol)?;
        if self.port == 0 {
            f.write_str(&self.host)?;
        } else {
            f.write_str(&authority(&self.host, self.port))?;
        }
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        for (index, (key, value)) in self.params.iter().enumerate() {
            let before = if index == 0 { '?' } else { '&' };
            write!(f, "{before}{key}={value}")?;
        }
        Ok(())
    }
}

/// Java's `URLDecoder`.
pub(crate) fn decode(encoded: &str) -> Result<String, Malformed> {
    let spaced = encoded.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| Malformed::new(format!("`{}` is not UTF-8", shorten(encoded))))
}

/// Java's `URLEncoder`.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => {
                encoded.push(char::from(byte));
            }
            b' ' => encoded.push('+'),
            // Writing to a String cannot fail.
            byte => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// The instance that a provider's URL says. URLs of other categories (consumers, configurators) are refused.
pub fn instance(url: &Url) -> Result<Instance, Malformed> {
    let param = |key: &str| {
        url.params
            .get(key)
            .map(|v| v.trim())
            .filter(|v| !v.is_empty())
    };
    if let Some(category) = param("category")
        && category != "providers"
    {
        return Err(Malformed::new(format!(
            "its category is {}, not providers",
            shorten(category)
        )));
    }
    let protocol = url.protocol.to_ascii_lowercase();
    if matches!(
        protocol.as_str(),
        "empty" | "consumer" | "override" | "route"
    ) {
        return Err(Malformed::new(format!(
            "a URL of {protocol} is no provider"
        )));
    }
    let interface = param("interface").unwrap_or(&url.path);
    if interface.is_empty() {
        return Err(Malformed::new("it names no interface"));
    }
    if url.port == 0 {
        return Err(Malformed::new("it has no port"));
    }
    let weight = match param("weight") {
        None => DEFAULT_WEIGHT,
        Some(text) => text
            .parse()
            .map_err(|_| Malformed::new(format!("its weight is {:?}", shorten(text))))?,
    };
    let enabled = param("enabled").is_none_or(|enabled| enabled != "false");
    let disabled = param("disabled").is_some_and(|disabled| disabled == "true");
    let mut metadata: BTreeMap<&str, &str> = url
        .params
        .iter()
        .filter(|(key, _)| !FIELDS.contains(&key.as_str()))
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    if url.path != interface {
        metadata.insert(PATH, &url.path);
    }
    Ok(Instance {
        version: param("version")
            .filter(|version| *version != NO_VERSION)
            .unwrap_or_default()
            .into(),
        group: param("group").unwrap_or_default().into(),
        weight,
        healthy: enabled && !disabled,
        metadata: metadata.into_iter().collect(),
        ttl: None,
        ..Instance::new(ServiceKey::new(&protocol, interface), &url.host, url.port)
    })
}

/// The provider's URL of an instance: what a Dubbo consumer takes.
pub fn url(instance: &Instance) -> Url {
    let mut params: BTreeMap<String, String> = instance
        .metadata
        .iter()
        // These would break the URL apart.
        .filter(|(key, value)| !key.contains(['&', '=', '?']) && !value.contains('&'))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let path = params
        .get(PATH)
        .cloned()
        .unwrap_or_else(|| instance.service.name.to_string());
    let mut default = |key: &str, value: &str| {
        params
            .entry(key.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    default("application", "mesh");
    default("methods", "*");
    default("side", "provider");
    default("dubbo", "2.0.2");
    default("release", "3.3.1");
    default("category", "providers");
    default("dynamic", "true");
    params.insert("interface".to_owned(), instance.service.name.to_string());
    for (key, value) in [("version", &instance.version), ("group", &instance.group)] {
        if !value.is_empty() {
            params.insert(key.to_owned(), value.to_string());
        }
    }
    if instance.weight != DEFAULT_WEIGHT {
        params.insert("weight".to_owned(), instance.weight.to_string());
    }
    if !instance.healthy {
        params.insert("enabled".to_owned(), "false".to_owned());
    }
    Url {
        protocol: instance.service.protocol.to_string(),
        host: instance.address.to_string(),
        port: instance.port,
        path,
        params,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPTURED: &str = "dubbo://127.0.0.1:20880/com.probe.Echo?application=probe-provider&deprecated=false&dubbo=2.0.2&dynamic=true&generic=false&group=grp&interface=com.probe.Echo&logger=jdk&methods=echo,hi&prefer.serialization=hessian2,fastjson2&release=3.3.2&revision=1.0.0&service-name-mapping=true&side=provider&timestamp=1795379714704&version=1.0.0";

    #[test]
    fn a_captured_url_is_the_same_after_the_way_through_the_model() -> Result<(), Malformed> {
        let read = instance(&Url::decode(&encode(CAPTURED))?)?;
        assert_eq!(read.service, ServiceKey::new("dubbo", "com.probe.Echo"));
        assert_eq!(
            (&*read.version, &*read.group, &*read.address, read.port),
            ("1.0.0", "grp", "127.0.0.1", 20880)
        );
        assert_eq!(read.metadata.get("application"), Some("probe-provider"));
        let written = url(&read).to_string();
        assert_eq!(
            written,
            CAPTURED.replace(
                "application=probe-provider&",
                "application=probe-provider&category=providers&"
            )
        );
        Ok(())
    }

    #[test]
    fn says_why_an_entry_is_no_provider() {
        for (text, why) in [
            ("nonsense", "is no URL"),
            ("dubbo://10.0.0.1:x/a", "is not host:port"),
            ("dubbo://10.0.0.1/a", "it has no port"),
            ("dubbo://10.0.0.1:1", "it names no interface"),
            (
                "dubbo://10.0.0.1:1/a?category=configurators",
                "its category is configurators",
            ),
            ("consumer://10.0.0.1:1/a", "is no provider"),
            (
                "dubbo://10.0.0.1:1/a?weight=heavy",
                "its weight is \"heavy\"",
            ),
        ] {
            let error = Url::parse(text).and_then(|url| instance(&url));
            let error = error.expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let disabled =
            Url::parse("tri://h:1/a?enabled=false&version=0.0.0").and_then(|u| instance(&u));
        assert_eq!(
            disabled.map(|i| (i.healthy, i.version)),
            Ok((false, "".into()))
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            if let Ok(url) = Url::decode(&text).or_else(|_| Url::parse(&text)) {
                // What is refused is refused with a reason.
                let _ = instance(&url);
            }
        }

        #[test]
        fn java_reads_what_is_encoded(text in "\\PC*") {
            prop_assert_eq!(decode(&encode(&text)).ok(), Some(text));
        }
    }
}
