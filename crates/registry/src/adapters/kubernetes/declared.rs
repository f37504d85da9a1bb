//! What Services and Pods say of themselves in annotations: which interfaces of RPC frameworks they serve.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use crate::source::Skipped;

/// How our annotations begin.
pub(super) const PREFIX: &str = "mesh.sofastack.io/";
/// Protocols whose services can be declared.
const PROTOCOLS: [&str; 4] = ["dubbo", "tri", "bolt", "springcloud"];
/// Interfaces in one annotation.
const INTERFACES: usize = 1000;

/// The annotations of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) interfaces: Vec<Interface>,
    /// Parameters of all of them, as a framework's provider would register them.
    pub(super) parameters: Vec<(String, String)>,
    pub(super) weight: Option<u32>,
}

/// One service of a framework.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) protocol: &'static str,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) group: String,
    /// Name or number of the Service's port.
    pub(super) port: Option<String>,
}

/// Reads the annotations; what is malformed is named.
pub(super) fn declared(
    annotations: &BTreeMap<String, String>,
    skipped: &mut Vec<Skipped>,
) -> Declared {
    let of = |word: &str| annotations.get(&format!("{PREFIX}{word}"));
    let mut declared = Declared::default();
    for protocol in PROTOCOLS {
        let entries = of(protocol).map_or("", String::as_str);
        let entries = entries.split(|c: char| c == ',' || c.is_whitespace());
        for entry in entries.filter(|entry| !entry.is_empty()).take(INTERFACES) {
            match interface(protocol, entry) {
                Ok(interface) => declared.interfaces.push(interface),
                Err(reason) => skipped.push(Skipped::new(&format!("{protocol}: {entry}"), reason)),
            }
        }
    }
    if let Some(weight) = of("weight") {
        match weight.parse() {
            Ok(weight) => declared.weight = Some(weight),
            Err(_) => skipped.push(Skipped::new(&format!("weight: {weight}"), "is no number")),
        }
    }
    let pairs = of("parameters").map_or("", String::as_str).split('&');
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        declared.parameters.push((decode(key), decode(value)));
    }
    declared
}

/// `interface[:version[:group]][@port]`.
fn interface(protocol: &'static str, text: &str) -> Result<Interface, &'static str> {
    let (service, port) = match text.split_once('@') {
        Some((_, "")) => return Err("names no port behind @"),
        Some((service, port)) => (service, Some(port.to_owned())),
        None => (text, None),
    };
    let mut parts = service.splitn(3, ':');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let (name, version, group) = (part(), part(), part());
    if name.is_empty() {
        return Err("names no service");
    }
    if group.contains(':') {
        return Err("has more parts than service, version and group");
    }
    Ok(Interface {
        protocol,
        // Spring's clients look for names without regard to case.
        name: if protocol == "springcloud" {
            name.to_ascii_lowercase()
        } else {
            name
        },
        version,
        group,
        port,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn interfaces_are_read_one_by_one() {
        let annotations = [
            (
                "dubbo",
                "com.foo.Bar:1.0.0:blue@rpc, com.foo.Baz\ncom.foo.Qux::red :1.0",
            ),
            ("springcloud", "Orders"),
            ("parameters", "serialization=hessian2&methods=a%2Cb"),
            ("weight", "many"),
        ]
        .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
        .into();
        let mut skipped = Vec::new();
        let declared = declared(&annotations, &mut skipped);
        let read: Vec<String> = declared
            .interfaces
            .iter()
            .map(|i| {
                format!(
                    "{}/{} {} {} {:?}",
                    i.protocol, i.name, i.version, i.group, i.port
                )
            })
            .collect();
        assert_eq!(
            read,
            [
                "dubbo/com.foo.Bar 1.0.0 blue Some(\"rpc\")",
                "dubbo/com.foo.Baz   None",
                "dubbo/com.foo.Qux  red None",
                "springcloud/orders   None",
            ]
        );
        assert_eq!(declared.parameters[1], ("methods".into(), "a,b".into()));
        let named: Vec<&str> = skipped.iter().map(|s| s.entry.as_str()).collect();
        assert_eq!(named, ["dubbo: :1.0", "weight: many"]);
    }

    proptest! {
        #[test]
        fn no_annotation_is_the_end(text in ".{0,80}") {
            let keys = ["dubbo", "bolt", "parameters", "weight"];
            let annotations = keys.map(|key| (format!("{PREFIX}{key}"), text.clone())).into();
            let _ = declared(&annotations, &mut Vec::new());
        }
    }
}
