//! The names that applications publish under: `interface:version[:uniqueId]`, with or without `@DEFAULT` (SOFARPC),
//! `interface[:version][:group]@dubbo`, `application@springcloud`.

use api::mesh::registry::v1::Selector;

/// A published name taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ServiceId {
    /// In lower case: `bolt`, `dubbo`, `springcloud`, …
    pub(super) protocol: String,
    /// Interface or application.
    pub(super) name: String,
    /// Empty for none.
    pub(super) version: String,
    /// SOFARPC's unique id, Dubbo's group; empty for none.
    pub(super) group: String,
}

impl ServiceId {
    /// Reads a name; `protocol_type` is the request's field beside it and may be empty.
    pub(super) fn parse(service_name: &str, protocol_type: &str) -> Result<ServiceId, String> {
        let (id, suffix) = match service_name.rsplit_once('@') {
            Some((id, suffix)) => (id, suffix),
            None => (service_name, ""),
        };
        let protocol = match protocol(protocol_type) {
            named if !named.is_empty() => named,
            _ => match protocol(suffix) {
                named if !named.is_empty() => named,
                _ => BOLT.to_owned(),
            },
        };
        // An application's name has neither version nor group.
        let limit = if has_versions(&protocol) { 3 } else { 1 };
        let mut parts = id.splitn(limit, ':');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err(format!(
                "serviceName must name a service, is {service_name:?}"
            ));
        }
        Ok(ServiceId {
            name: name.to_owned(),
            version: parts.next().unwrap_or_default().to_owned(),
            group: parts.next().unwrap_or_default().to_owned(),
            protocol,
        })
    }
}

const BOLT: &str = "bolt";

impl ServiceId {
    /// Its instances that can take calls.
    pub(super) fn selector(&self) -> Selector {
        let word = |word: &String| (!word.is_empty()).then(|| word.clone());
        Selector {
            protocol: self.protocol.clone(),
            service: self.name.clone(),
            version: word(&self.version),
            // No group beside a version is a group too: none.
            group: word(&self.group).or((!self.version.is_empty()).then(String::new)),
            available_only: true,
            ..Selector::default()
        }
    }
}

/// SOFARPC's registries call Bolt `DEFAULT`.
fn protocol(word: &str) -> String {
    let word = word.trim().to_ascii_lowercase();
    if word == "default" {
        BOLT.to_owned()
    } else {
        word
    }
}

fn has_versions(protocol: &str) -> bool {
    !matches!(protocol, "springcloud" | "http" | "xr")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_apart() {
        let cases = [
            (
                "com.foo.Bar:1.0",
                "bolt",
                ("bolt", "com.foo.Bar", "1.0", ""),
            ),
            (
                "com.foo.Bar:1.0:blue",
                "bolt",
                ("bolt", "com.foo.Bar", "1.0", "blue"),
            ),
            (
                "com.foo.Bar:1.0:blue@DEFAULT",
                "",
                ("bolt", "com.foo.Bar", "1.0", "blue"),
            ),
            (
                "com.foo.Bar:1.0@DEFAULT",
                "DEFAULT",
                ("bolt", "com.foo.Bar", "1.0", ""),
            ),
            ("com.foo.Bar", "", ("bolt", "com.foo.Bar", "", "")),
            ("com.foo.Bar@dubbo", "", ("dubbo", "com.foo.Bar", "", "")),
            (
                "com.foo.Bar::g@dubbo",
                "dubbo",
                ("dubbo", "com.foo.Bar", "", "g"),
            ),
            (
                "http.server@springcloud",
                "springcloud",
                ("springcloud", "http.server", "", ""),
            ),
            ("Code@xr", "", ("xr", "Code", "", "")),
        ];
        for (name, protocol_type, (protocol, service, version, group)) in cases {
            let expected = ServiceId {
                protocol: protocol.to_owned(),
                name: service.to_owned(),
                version: version.to_owned(),
                group: group.to_owned(),
            };
            assert_eq!(
                ServiceId::parse(name, protocol_type),
                Ok(expected),
                "{name}"
            );
        }
        for name in ["", "@DEFAULT", ":1.0"] {
            assert!(ServiceId::parse(name, "bolt").is_err(), "{name}");
        }
    }
}
