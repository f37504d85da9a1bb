//! What the registry takes: sizes, and the form of names.

use std::net::IpAddr;
use std::time::Duration;

use base::FieldError;

use crate::interfaces::InterfaceKey;
use crate::model::{Instance, InstanceRef, ServiceKey};
use crate::namespace::Namespace;

/// Bounds on what may be registered.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Instances of all services together.
    pub instances: usize,
    /// Instances of one service.
    pub instances_per_service: usize,
    /// Bytes of a service's name and of an instance's id.
    pub name_bytes: usize,
    /// Pairs in the metadata of an instance.
    pub metadata_pairs: usize,
    /// Bytes of all keys and values in the metadata of an instance.
    pub metadata_bytes: usize,
    /// Highest weight.
    pub weight: u32,
    /// Shortest lease.
    pub ttl_min: Duration,
    /// Longest lease.
    pub ttl_max: Duration,
    /// Instances named in one call.
    pub batch: usize,
    /// Bytes of the body of an HTTP request.
    pub body_bytes: usize,
    /// Watchers at one time.
    pub watchers: usize,
    /// Sessions at one time.
    pub sessions: usize,
    /// Descriptions of interfaces.
    pub interfaces: usize,
    /// Bytes of the description of an interface.
    pub interface_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            instances: 1_000_000,
            instances_per_service: 100_000,
            name_bytes: 512,
            metadata_pairs: 128,
            metadata_bytes: 16 * 1024,
            weight: 65_535,
            ttl_min: Duration::from_secs(1),
            ttl_max: Duration::from_secs(24 * 60 * 60),
            batch: 10_000,
            body_bytes: 4 * 1024 * 1024,
            watchers: 20_000,
            sessions: 100_000,
            interfaces: 100_000,
            interface_bytes: 512 * 1024,
        }
    }
}

/// Bytes of a namespace's name.
const NAMESPACE_BYTES: usize = 63;
/// Bytes of a protocol's name.
const PROTOCOL_BYTES: usize = 32;
/// Bytes of a version, a group, an origin.
const WORD_BYTES: usize = 128;
/// Bytes of a host name (RFC 1035 §2.3.4).
const HOST_BYTES: usize = 253;

impl Limits {
    /// Refuses an instance that is not well formed; the path is relative to the instance.
    pub fn check(&self, instance: &Instance) -> Result<(), FieldError> {
        self.check_service(&instance.service)?;
        check_name("id", &instance.id, self.name_bytes)?;
        check_word("version", &instance.version)?;
        check_word("group", &instance.group)?;
        check_word("origin", &instance.origin)?;
        check_address(&instance.address)?;
        if instance.port == 0 {
            return Err(error("port", "must be 1 to 65535, is 0"));
        }
        if instance.weight > self.weight {
            let message = format!("must be at most {}, is {}", self.weight, instance.weight);
            return Err(error("weight", message));
        }
        if let Some(ttl) = instance.ttl {
            self.check_ttl(ttl)?;
        }
        self.check_metadata(instance)
    }

    fn check_metadata(&self, instance: &Instance) -> Result<(), FieldError> {
        let metadata = &instance.metadata;
        if metadata.len() > self.metadata_pairs {
            let message = format!(
                "must have at most {} pairs, has {}",
                self.metadata_pairs,
                metadata.len()
            );
            return Err(error("metadata", message));
        }
        let bytes = metadata.size_bytes();
        if bytes > self.metadata_bytes {
            let message = format!(
                "must have at most {} bytes, has {bytes}",
                self.metadata_bytes
            );
            return Err(error("metadata", message));
        }
        for (key, value) in metadata.iter() {
            if key.is_empty() {
                return Err(error("metadata", "a key is empty"));
            }
            if key.chars().chain(value.chars()).any(char::is_control) {
                let message = format!(
                    "key {:?} or its value has a control character",
                    shorten(key)
                );
                return Err(error("metadata", message));
            }
        }
        Ok(())
    }

    /// Refuses a name that no service can have.
    pub fn check_service(&self, service: &ServiceKey) -> Result<(), FieldError> {
        check_namespace(&service.namespace)?;
        check_protocol(&service.protocol)?;
        check_name("service", &service.name, self.name_bytes)
    }

    /// Refuses a name that no description of an interface can have.
    pub fn check_interface(&self, key: &InterfaceKey) -> Result<(), FieldError> {
        self.check_service(&key.service)?;
        check_word("version", &key.version)?;
        check_word("group", &key.group)
    }

    /// Refuses a lease that is too short or too long.
    pub fn check_ttl(&self, ttl: Duration) -> Result<(), FieldError> {
        if ttl < self.ttl_min || ttl > self.ttl_max {
            let (min, max) = (self.ttl_min, self.ttl_max);
            return Err(error(
                "ttl",
                format!("must be {min:?} to {max:?}, is {ttl:?}"),
            ));
        }
        Ok(())
    }

    /// Refuses a name that no instance can have.
    pub fn check_reference(&self, reference: &InstanceRef) -> Result<(), FieldError> {
        self.check_service(&reference.service)?;
        check_name("id", &reference.id, self.name_bytes)
    }
}

fn error(field: &str, message: impl Into<String>) -> FieldError {
    FieldError::new(message).in_field(field)
}

/// As Kubernetes names namespaces (RFC 1123, a DNS label).
pub(crate) fn check_namespace(namespace: &Namespace) -> Result<(), FieldError> {
    let name = namespace.as_str();
    let well_formed = name.len() <= NAMESPACE_BYTES
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    if well_formed {
        return Ok(());
    }
    let message = format!(
        "must be up to {NAMESPACE_BYTES} lower-case letters, digits and dashes, with no dash at an end, is {:?}",
        shorten(name)
    );
    Err(error("namespace", message))
}

fn check_protocol(protocol: &str) -> Result<(), FieldError> {
    let well_formed = protocol.starts_with(|c: char| c.is_ascii_lowercase())
        && protocol.len() <= PROTOCOL_BYTES
        && protocol
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'+'));
    if well_formed {
        return Ok(());
    }
    let message = format!(
        "must be a lower-case letter and up to {} letters, digits, dots, dashes or pluses behind it, is {:?}",
        PROTOCOL_BYTES - 1,
        shorten(protocol)
    );
    Err(error("protocol", message))
}

/// Names stand in URLs, log lines and file names: visible ASCII without quotes, backslashes and URL delimiters.
fn check_name(field: &str, name: &str, limit: usize) -> Result<(), FieldError> {
    if name.is_empty() {
        return Err(error(field, "must not be empty"));
    }
    if name.len() > limit {
        let message = format!("must have at most {limit} bytes, has {}", name.len());
        return Err(error(field, message));
    }
    if matches!(name, "." | "..") {
        return Err(error(field, format!("must not be {name:?}")));
    }
    check_characters(field, name)
}

fn check_word(field: &str, word: &str) -> Result<(), FieldError> {
    if word.len() > WORD_BYTES {
        let message = format!("must have at most {WORD_BYTES} bytes, has {}", word.len());
        return Err(error(field, message));
    }
    check_characters(field, word)
}

fn check_characters(field: &str, word: &str) -> Result<(), FieldError> {
    let refused = |c: &char| {
        !c.is_ascii_graphic() || matches!(c, '"' | '\\' | '?' | '#' | '%' | '<' | '>' | '`')
    };
    match word.chars().find(refused) {
        None => Ok(()),
        Some(c) => Err(error(field, format!("must not have the character {c:?}"))),
    }
}

fn check_address(address: &str) -> Result<(), FieldError> {
    if let Ok(ip) = address.parse::<IpAddr>() {
        if ip.is_unspecified() {
            let message = format!("must be an address that others can connect to, is {address}");
            return Err(error("address", message));
        }
        return Ok(());
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = address.strip_suffix('.').unwrap_or(address);
    // What looks like an IPv4 address and is none would else go to DNS.
    let numeric = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if address.len() <= HOST_BYTES && !numeric && name.split('.').all(label) {
        return Ok(());
    }
    let message = format!(
        "must be an IP address or a host name, is {:?}",
        shorten(address)
    );
    Err(error("address", message))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Instance {
        let mut instance =
            Instance::new(ServiceKey::new("dubbo", "com.foo.Bar"), "10.0.0.1", 20880);
        instance.id = "a".into();
        instance
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let limits = Limits::default();
        assert!(limits.check(&instance()).is_ok());
        type Edit = fn(&mut Instance);
        let cases: [(&str, Edit); 15] = [
            ("namespace", |i| i.service.namespace = Namespace::new("a.b")),
            ("namespace", |i| i.service.namespace = Namespace::new("-a")),
            ("protocol", |i| i.service.protocol = "Dubbo".into()),
            ("service", |i| i.service.name = "".into()),
            ("service", |i| i.service.name = "a b".into()),
            ("id", |i| i.id = "x".repeat(513).into()),
            ("id", |i| i.id = "..".into()),
            ("version", |i| i.version = "1\n".into()),
            ("address", |i| i.address = "10.0.0.256".into()),
            ("address", |i| i.address = "0.0.0.0".into()),
            ("address", |i| i.address = "a..b".into()),
            ("port", |i| i.port = 0),
            ("weight", |i| i.weight = 65_536),
            ("ttl", |i| i.ttl = Some(Duration::from_millis(10))),
            ("metadata", |i| {
                i.metadata = [("k", "v".repeat(17_000))].into_iter().collect()
            }),
        ];
        for (field, edit) in cases {
            let mut wrong = instance();
            edit(&mut wrong);
            assert_eq!(
                limits.check(&wrong).map_err(|e| e.path),
                Err(field.to_owned())
            );
        }
    }

    #[test]
    fn takes_the_names_that_frameworks_use() {
        let limits = Limits::default();
        for address in [
            "::1",
            "10.0.0.1",
            "vm",
            "reviews.default.svc.cluster.local",
            "a_b.example.",
        ] {
            let mut good = instance();
            good.address = address.into();
            assert!(limits.check(&good).is_ok(), "{address}");
        }
        for name in [
            "com.foo.Bar$Inner",
            "demo/Echo",
            "RESERVATION-SERVICE",
            "a@b",
            "x_y~z:1",
        ] {
            let mut good = instance();
            good.service.name = name.into();
            assert!(limits.check(&good).is_ok(), "{name}");
        }
    }
}
