//! Istio's rules for the content of objects. Errors have the field's path below `spec`; what Istio
//! takes and pilot does not act on becomes a warning.

mod destination_rule;
mod service_entry;
mod sidecar;
#[cfg(test)]
mod tests;
mod virtual_service;

use std::net::IpAddr;
use std::time::Duration;

use base::FieldError;

use super::virtual_service::{Pattern, StringMatch};
use super::{Labels, Port};
use crate::protocol::Protocol;

pub use destination_rule::destination_rule;
pub use service_entry::{service_entry, workload_entry};
pub use sidecar::sidecar;
pub use virtual_service::{GRPC_STATUS, virtual_service};

/// What a check finds.
pub type Check = Result<(), FieldError>;

/// An error of the field itself; the callers add the path on the way up.
fn wrong(message: impl Into<String>) -> FieldError {
    FieldError::new(message)
}

/// Runs a check on each item, with the index in the path.
fn each<'a, T>(field: &str, items: &'a [T], mut check: impl FnMut(&'a T) -> Check) -> Check {
    for (index, item) in items.iter().enumerate() {
        check(item).map_err(|error| error.in_index(index).in_field(field))?;
    }
    Ok(())
}

/// Runs a check on an optional field.
fn optional<'a, T>(field: &str, item: Option<&'a T>, check: impl FnOnce(&'a T) -> Check) -> Check {
    item.map_or(Ok(()), check)
        .map_err(|error| error.in_field(field))
}

/// A DNS label, of at most 63 characters. Upper case is allowed, as Istio does.
pub fn label(text: &str) -> Check {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if text.is_empty() || text.len() > 63 {
        return Err(wrong(format!(
            "`{text}` is not a name of 1 to 63 characters"
        )));
    }
    if !text.chars().all(inner) || text.starts_with('-') || text.ends_with('-') {
        return Err(wrong(format!(
            "`{text}` is not letters, digits and `-` with a letter or digit at both ends"
        )));
    }
    Ok(())
}

/// A name of an object: labels with dots between.
pub fn object_name(text: &str) -> Check {
    if text.is_empty() || text.len() > 253 {
        return Err(wrong(format!(
            "`{text}` is not a name of 1 to 253 characters"
        )));
    }
    text.split('.').try_for_each(label)
}

/// A host without wildcard: a DNS name, or an interface name of Java (`_` and `$` are allowed).
fn host(text: &str) -> Check {
    if text.is_empty() {
        return Err(wrong("is required"));
    }
    if text.len() > 255 {
        return Err(wrong("is longer than 255 characters"));
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    for part in text.split('.') {
        label(&part.replace(['_', '$'], "x")).map_err(|_| {
            wrong(format!(
                "`{text}` is not a host name: `{part}` is not a label"
            ))
        })?;
    }
    Ok(())
}

/// A host that may begin with `*.`, or be `*`.
fn wildcard_host(text: &str) -> Check {
    match text.strip_prefix('*') {
        Some("") => Ok(()),
        Some(rest) => match rest.strip_prefix('.') {
            Some(rest) => host(rest),
            // Istio takes `*-suffix.example` too.
            None => host(rest.trim_start_matches('-')),
        },
        None => host(text),
    }
}

/// An IP address or a network in CIDR form.
fn subnet(text: &str) -> Check {
    let wrong = || wrong(format!("`{text}` is neither an IP address nor a CIDR"));
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match bits.map(str::parse::<u8>) {
        None => Ok(()),
        Some(Ok(bits)) if bits <= most => Ok(()),
        Some(_) => Err(wrong()),
    }
}

fn port_number(number: u32) -> Check {
    if (1..=65535).contains(&number) {
        Ok(())
    } else {
        Err(wrong(format!("port number {number} is not in 1 to 65535")))
    }
}

/// A port of a ServiceEntry or of a listener.
fn port(port: &Port) -> Check {
    port_number(port.number).map_err(|e| e.in_field("number"))?;
    if !port.protocol.is_empty() && Protocol::parse(&port.protocol).is_none() {
        return Err(wrong(format!("unsupported protocol `{}`", port.protocol)).in_field("protocol"));
    }
    if port.target_port != 0 {
        port_number(port.target_port).map_err(|e| e.in_field("targetPort"))?;
    }
    Ok(())
}

/// At least one millisecond.
fn duration(duration: Duration) -> Check {
    if duration < Duration::from_millis(1) {
        return Err(wrong("must be at least 1ms"));
    }
    Ok(())
}

fn percent(value: f64) -> Check {
    if (0.0..=100.0).contains(&value) {
        Ok(())
    } else {
        Err(wrong(format!("{value} is not in 0 to 100")))
    }
}

/// Labels of a selector: keys and values in Kubernetes' form.
fn labels(labels: &Labels) -> Check {
    let word = |text: &str| {
        text.len() <= 63
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && text
                .chars()
                .next()
                .is_none_or(|c| c.is_ascii_alphanumeric())
            && text
                .chars()
                .last()
                .is_none_or(|c| c.is_ascii_alphanumeric())
    };
    for (key, value) in labels {
        let name = key.rsplit('/').next().unwrap_or_default();
        if name.is_empty() || !word(name) {
            return Err(wrong(format!("`{key}` is not the name of a label")));
        }
        if !word(value) {
            return Err(wrong(format!("`{value}` is not a value of a label")).in_field(key));
        }
    }
    Ok(())
}

/// `exportTo`: `*`, `.`, `~` or names of namespaces.
fn export_to(namespaces: &[String]) -> Check {
    each("exportTo", namespaces, |namespace| {
        match namespace.as_str() {
            "*" | "." => Ok(()),
            "~" if namespaces.len() == 1 => Ok(()),
            "~" => Err(wrong("`~` stands alone")),
            name => label(name),
        }
    })
}

fn string_match(item: &StringMatch) -> Check {
    let given = [&item.exact, &item.prefix, &item.regex];
    if given.iter().filter(|value| value.is_some()).count() > 1 {
        return Err(wrong("has more than one of exact, prefix and regex"));
    }
    match item.pattern() {
        Pattern::Regex(pattern) => regex(pattern).map_err(|e| e.in_field("regex")),
        _ => Ok(()),
    }
}

fn regex(pattern: &str) -> Check {
    regex::Regex::new(pattern)
        .map(drop)
        .map_err(|error| wrong(error.to_string().replace('\n', " ")))
}
