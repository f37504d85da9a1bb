//! Descriptions of interfaces: which methods there are, with which types. A description is JSON as Dubbo's metadata report has it
//! (`FullServiceDefinition`), and is given back as it came.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, PoisonError, RwLock};

use base::FieldError;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde_json::Value;

use crate::error::Error;
use crate::model::{Selector, ServiceKey};
use crate::namespace::Namespace;

/// Names a description.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceKey {
    /// The service.
    pub service: ServiceKey,
    /// Version of the interface; empty for none.
    pub version: Arc<str>,
    /// Group of the interface; empty for none.
    pub group: Arc<str>,
}

impl fmt::Display for InterfaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        for (sign, word) in [("@", &self.version), ("#", &self.group)] {
            if !word.is_empty() {
                write!(f, "{sign}{word}")?;
            }
        }
        Ok(())
    }
}

impl InterfaceKey {
    pub(crate) fn not_there(&self) -> Error {
        Error::NotFound(format!("there is no description of {self}"))
    }

    /// The end of a page of a list. No word of a name has a space.
    pub(crate) fn token(&self) -> String {
        let ServiceKey {
            namespace,
            protocol,
            name,
        } = &self.service;
        format!(
            "{namespace} {protocol} {name} {} {}",
            self.version, self.group
        )
    }

    pub(crate) fn from_token(token: &str) -> Option<InterfaceKey> {
        InterfaceKey::from_words(token, ' ')
    }

    /// The key whose words are separated so.
    pub(crate) fn from_words(text: &str, separator: char) -> Option<InterfaceKey> {
        let mut words = text.split(separator);
        let mut word = || words.next();
        let service = ServiceKey::within(Namespace::new(word()?), word()?, word()?);
        let (version, group) = (word()?.into(), word()?.into());
        words.next().is_none().then_some(InterfaceKey {
            service,
            version,
            group,
        })
    }
}

/// A description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Whose it is.
    pub key: InterfaceKey,
    /// The methods' names, each once, in order.
    pub methods: Arc<[Box<str>]>,
    /// Names of the types that it describes, in order.
    pub types: Arc<[Box<str>]>,
    /// Bytes of the description.
    pub bytes: usize,
    /// The description, compressed (zlib): there may be one for each of many thousand services.
    packed: Arc<[u8]>,
}

impl Interface {
    /// Reads a description of at most so many bytes.
    pub fn parse(key: InterfaceKey, json: &[u8], limit: usize) -> Result<Interface, FieldError> {
        if json.len() > limit {
            let message = format!("must have at most {limit} bytes, has {}", json.len());
            return Err(FieldError::new(message));
        }
        let (methods, types) = read(json)?;
        Ok(Interface {
            key,
            methods,
            types,
            bytes: json.len(),
            packed: pack(json).into(),
        })
    }

    /// The JSON, as it came.
    pub fn json(&self) -> Vec<u8> {
        // What was packed here can be unpacked.
        unpack(&self.packed, self.bytes).unwrap_or_default()
    }

    pub(crate) fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// A description from a store.
    pub(crate) fn unpack(
        key: InterfaceKey,
        packed: &[u8],
        limit: usize,
    ) -> Result<Interface, String> {
        let json = unpack(packed, limit).ok_or("cannot be unpacked")?;
        let (methods, types) = read(&json).map_err(|e| e.to_string())?;
        Ok(Interface {
            key,
            methods,
            types,
            bytes: json.len(),
            packed: packed.into(),
        })
    }
}

fn pack(json: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    // Memory takes what is written to it.
    let _ = encoder.write_all(json);
    encoder.finish().unwrap_or_default()
}

fn unpack(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut json = Vec::new();
    let mut decoder = ZlibDecoder::new(packed).take(limit as u64 + 1);
    decoder.read_to_end(&mut json).ok()?;
    (json.len() <= limit).then_some(json)
}

type Names = Arc<[Box<str>]>;

/// Names of methods and types. What is not looked at here may be anything.
fn read(json: &[u8]) -> Result<(Names, Names), FieldError> {
    let document: Value =
        serde_json::from_slice(json).map_err(|e| FieldError::new(e.to_string()))?;
    let document = document
        .as_object()
        .ok_or_else(|| FieldError::new("must be an object"))?;
    let methods = match document.get("methods") {
        Some(methods) => named(methods, "methods", "name", method)?,
        None => return Err(FieldError::at("methods", "is required")),
    };
    let types = match document.get("types") {
        None | Some(Value::Null) => Arc::default(),
        Some(types) => named(types, "types", "type", |_| Ok(()))?,
    };
    Ok((methods, types))
}

/// The names in a list of objects.
fn named(
    list: &Value,
    field: &str,
    name: &str,
    check: fn(&Value) -> Result<(), FieldError>,
) -> Result<Names, FieldError> {
    let items = list
        .as_array()
        .ok_or_else(|| FieldError::at(field, "must be a list"))?;
    let mut names = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let located = |e: FieldError| e.in_index(index).in_field(field);
        match item.get(name).and_then(Value::as_str) {
            Some(text) if !text.is_empty() => names.push(text.into()),
            _ => return Err(located(FieldError::at(name, "must be a name"))),
        }
        check(item).map_err(located)?;
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into())
}

fn method(method: &Value) -> Result<(), FieldError> {
    match method.get("parameterTypes") {
        None | Some(Value::Null) => {}
        Some(Value::Array(types)) => {
            if let Some(index) = types.iter().position(|item| !item.is_string()) {
                let error = FieldError::new("must be the name of a type");
                return Err(error.in_index(index).in_field("parameterTypes"));
            }
        }
        Some(_) => return Err(FieldError::at("parameterTypes", "must be a list")),
    }
    match method.get("returnType") {
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(_) => Err(FieldError::at("returnType", "must be the name of a type")),
    }
}

/// All descriptions.
#[derive(Debug, Default)]
pub(crate) struct Interfaces(RwLock<BTreeMap<InterfaceKey, Arc<Interface>>>);

impl Interfaces {
    pub(crate) fn of(interfaces: Vec<Interface>) -> Interfaces {
        let interfaces = interfaces.into_iter();
        let by_key = interfaces.map(|interface| (interface.key.clone(), Arc::new(interface)));
        Interfaces(RwLock::new(by_key.collect()))
    }

    pub(crate) fn get(&self, key: &InterfaceKey) -> Option<Arc<Interface>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(key).cloned()
    }

    /// Whether these fit in, too.
    pub(crate) fn check_room(&self, keys: &[&InterfaceKey], limit: usize) -> Result<(), Error> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let new = keys.iter().filter(|key| !known.contains_key(key)).count();
        if new > 0 && known.len() + new > limit {
            return Err(Error::TooMany(format!(
                "the registry holds descriptions of {limit} interfaces at most"
            )));
        }
        Ok(())
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> Vec<Arc<Interface>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    /// These are all from now on.
    pub(crate) fn replace(&self, interfaces: Vec<Interface>) {
        let Interfaces(all) = Interfaces::of(interfaces);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *known = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    /// Puts one in, and tells whether there was none.
    pub(crate) fn put(&self, interface: Interface) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(interface.key.clone(), Arc::new(interface));
        before.is_none()
    }

    pub(crate) fn remove(&self, key: &InterfaceKey) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(key);
    }

    /// Those of one service, in the order of version and group.
    pub(crate) fn of_service(&self, service: &ServiceKey) -> Vec<Arc<Interface>> {
        let first = InterfaceKey {
            service: service.clone(),
            version: "".into(),
            group: "".into(),
        };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let behind = known.range(first..).map(|(_, interface)| interface);
        let own = behind.take_while(|interface| interface.key.service == *service);
        own.cloned().collect()
    }

    /// Those of the services, versions and groups that a selector means, behind one of them, and whether there are more.
    pub(crate) fn list(
        &self,
        selector: &Selector,
        after: Option<&InterfaceKey>,
        limit: usize,
    ) -> (Vec<Arc<Interface>>, bool) {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let first = after.cloned().unwrap_or_else(|| InterfaceKey {
            service: ServiceKey::within(selector.namespace.clone().unwrap_or_else(lowest), "", ""),
            version: "".into(),
            group: "".into(),
        });
        let equal = |wanted: &Option<Arc<str>>, is: &Arc<str>| {
            wanted.as_ref().is_none_or(|wanted| wanted == is)
        };
        let mut meant = known.range(first..).map(|(_, i)| i).filter(|interface| {
            let key = &interface.key;
            after != Some(key)
                && selector.matches_service(&key.service)
                && equal(&selector.version, &key.version)
                && equal(&selector.group, &key.group)
        });
        let page = meant.by_ref().take(limit).cloned().collect();
        (page, meant.next().is_some())
    }
}

/// A namespace before all that can be named.
fn lowest() -> Namespace {
    Namespace::new(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> InterfaceKey {
        InterfaceKey {
            service: ServiceKey::new("dubbo", name),
            version: "1.0.0".into(),
            group: "".into(),
        }
    }

    #[test]
    fn takes_what_dubbo_reports_and_says_what_is_wrong() -> Result<(), FieldError> {
        // As Dubbo 3.2's metadata report writes it.
        let reported = r#"{"annotations":[],"canonicalName":"mesh.Echo","codeSource":"file:/app.jar",
            "methods":[{"annotations":[],"name":"echo","parameterTypes":["java.lang.String"],"parameters":[],"returnType":"java.lang.String"},
                       {"name":"echo","parameterTypes":["int"],"returnType":"int"}],
            "parameters":{"side":"provider","application":"shop"},
            "types":[{"enums":[],"items":[],"properties":{},"type":"java.lang.String"},{"type":"int"}]}"#;
        let interface = Interface::parse(key("mesh.Echo"), reported.as_bytes(), 4096)?;
        assert_eq!(interface.methods.to_vec(), ["echo".into()]);
        assert_eq!(interface.types.len(), 2);
        assert_eq!(interface.json(), reported.as_bytes());
        let again = Interface::unpack(key("mesh.Echo"), interface.packed(), 4096);
        assert_eq!(again.as_ref(), Ok(&interface));
        assert!(Interface::unpack(key("mesh.Echo"), interface.packed(), 100).is_err());
        for (wrong, path) in [
            ("{}", "methods"),
            ("[]", ""),
            (r#"{"methods":[{"name":"a"},{}]}"#, "methods[1].name"),
            (
                r#"{"methods":[{"name":"a","parameterTypes":["a",1]}]}"#,
                "methods[0].parameterTypes[1]",
            ),
            (
                r#"{"methods":[{"name":"a","returnType":{}}]}"#,
                "methods[0].returnType",
            ),
            (r#"{"methods":[],"types":[1]}"#, "types[0].type"),
        ] {
            let error = Interface::parse(key("a"), wrong.as_bytes(), 4096).expect_err(wrong);
            assert_eq!(error.path, path, "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn lists_page_by_page() {
        let interfaces = Interfaces::default();
        for name in ["c", "a", "b"] {
            let interface = Interface::parse(key(name), br#"{"methods":[]}"#, 100);
            assert!(interfaces.put(interface.expect("a description")));
        }
        let all = Selector::default();
        let (first, more) = interfaces.list(&all, None, 2);
        assert!(more);
        let last = first.last().map(|interface| &interface.key);
        let (second, more) = interfaces.list(&all, last, 2);
        let names = |page: &[Arc<Interface>]| -> Vec<String> {
            page.iter()
                .map(|i| i.key.service.name.to_string())
                .collect()
        };
        assert_eq!(
            (names(&first), names(&second), more),
            (vec!["a".into(), "b".into()], vec!["c".into()], false)
        );
        assert_eq!(
            interfaces.of_service(&ServiceKey::new("dubbo", "b")).len(),
            1
        );
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes: Vec<u8>) {
            let _ = Interface::parse(key("a"), &bytes, 1000);
            let _ = Interface::unpack(key("a"), &bytes, 1000);
        }
    }
}
