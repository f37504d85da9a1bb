//! How frameworks write their services into Nacos: Dubbo `providers:interface:version:group` and applications, SOFARPC
//! `interface[:uniqueId]:DEFAULT`, Spring Cloud and everybody else a name. Of a service that is in another group than
//! `DEFAULT_GROUP` and is not known by an interface, the group is a part of the name: `group@@name`.

use std::collections::BTreeMap;

use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};
use crate::nacos::{DEFAULT_CLUSTER, DEFAULT_GROUP, Host, grouped_name, split_name};
use crate::naming::dubbo::{self, Url};
use crate::naming::dubbo_application::Provider;
use crate::naming::dubbo_application::entry::Entry;
use crate::naming::{Malformed, scaled_weight, sofarpc, spring};
use crate::source::ORIGIN_MARK;

/// Category of Dubbo's names that are those of providers.
const PROVIDERS: &str = "providers";
/// The other categories: nobody is called there.
const NO_PROVIDERS: [&str; 3] = ["consumers", "routers", "configurators"];
/// SOFARPC's word for Bolt in names.
const SOFARPC_DEFAULT: &str = "DEFAULT";
/// The cluster that SOFARPC puts its instances in.
const SOFARPC_CLUSTER: &str = "default-cluster";
const PROTOCOL: &str = "protocol";
const PATH: &str = "path";
const CATEGORY: &str = "category";
/// Metadata that tell Nacos how to treat an instance.
const RESERVED: &str = "preserved.";
/// Which framework registered an instance, and Spring Cloud's word there.
const REGISTER_SOURCE: &str = "preserved.register.source";
const SPRING_CLOUD: &str = "SPRING_CLOUD";
/// Metadata in the model: the cluster, where it is not the usual one.
pub const CLUSTER: &str = "nacos.cluster";
/// Protocols of services that no framework registered; of these the first needs no word.
const PLAIN: [&str; 3] = ["http", "grpc", "tcp"];

/// A service's name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// Dubbo's interface level.
    Dubbo {
        /// `providers`, `consumers`, …
        category: &'a str,
        /// The interface.
        interface: &'a str,
        /// Empty for none.
        version: &'a str,
        /// Of the interface; empty for none.
        group: &'a str,
    },
    /// SOFARPC.
    Sofarpc {
        /// The interface.
        interface: &'a str,
        /// Empty for none.
        unique_id: &'a str,
        /// In lower case; `bolt` for `DEFAULT`.
        protocol: String,
    },
    /// An application or any other service.
    Plain(&'a str),
}

/// Takes the name of a service apart, without its Nacos group.
pub fn parse(name: &str) -> Name<'_> {
    let Some((first, rest)) = name.split_once(':') else {
        return Name::Plain(name);
    };
    if first == PROVIDERS || NO_PROVIDERS.contains(&first) {
        // Older Dubbo left out what is empty, with its colon.
        let mut parts = rest.splitn(3, ':');
        let mut next = || parts.next().unwrap_or_default();
        return Name::Dubbo {
            category: first,
            interface: next(),
            version: next(),
            group: next(),
        };
    }
    let Some((name, protocol)) = name.rsplit_once(':') else {
        return Name::Plain(name);
    };
    let (interface, unique_id) = name.split_once(':').unwrap_or((name, ""));
    let protocol = match protocol {
        SOFARPC_DEFAULT => "bolt".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    Name::Sofarpc {
        interface,
        unique_id,
        protocol,
    }
}

/// What an instance of a service is.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Nobody that is called.
    Nothing,
    /// An instance.
    Instance(Instance),
    /// A Dubbo application: what it serves is said elsewhere.
    Application(Provider),
}

/// Nacos' weight is a factor, usually 1.
fn percent(weight: f64) -> u32 {
    if weight > 0.0 {
        // What is too much for the number is its highest value.
        (weight * 100.0).round().max(1.0) as u32
    } else {
        0
    }
}

/// Reads an instance of a service of a group.
pub fn said(group: &str, service: &str, host: &Host) -> Result<Said, Malformed> {
    let (group, service) = split_name(group, service);
    let healthy = host.healthy && host.enabled;
    let mut instance = match parse(service) {
        Name::Dubbo { category, .. } if category != PROVIDERS => return Ok(Said::Nothing),
        Name::Dubbo {
            interface,
            version,
            group,
            ..
        } => of_dubbo(interface, version, group, host)?,
        Name::Sofarpc {
            interface,
            unique_id,
            protocol,
        } if is_sofarpc(service, host) => of_sofarpc(interface, unique_id, &protocol, host)?,
        Name::Sofarpc { .. } | Name::Plain(_) => {
            if Provider::is_one(host.metadata.keys().map(String::as_str)) {
                // A mesh's copy, which is there at the interface level too.
                if host.metadata.contains_key(ORIGIN_MARK) {
                    return Ok(Said::Nothing);
                }
                let metadata = host.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str()));
                let provider = Provider::read(service, &host.ip, host.port, metadata)?;
                return Ok(provider.map_or(Said::Nothing, |provider| {
                    Said::Application(Provider {
                        healthy,
                        weight_percent: percent(host.weight),
                        ..provider
                    })
                }));
            }
            plain(group, service, host)
        }
    };
    if host.port == 0 {
        return Err(Malformed::new("it has no port"));
    }
    instance.healthy &= healthy;
    instance.weight = scaled_weight(instance.weight, percent(host.weight));
    Ok(Said::Instance(instance))
}

/// Other names have colons too: the instance says whether it is SOFARPC's.
fn is_sofarpc(service: &str, host: &Host) -> bool {
    let Some((_, word)) = service.rsplit_once(':') else {
        return false;
    };
    let protocol = host.metadata.get(PROTOCOL).map(String::as_str);
    match word {
        SOFARPC_DEFAULT => protocol.is_none_or(|protocol| protocol == "bolt" || protocol == "tr"),
        word => protocol == Some(word) && host.metadata.contains_key("interface"),
    }
}

fn params(host: &Host, without: &[&str]) -> BTreeMap<String, String> {
    let kept = |key: &str| !key.starts_with(RESERVED) && !without.contains(&key);
    let pairs = host.metadata.iter().filter(|(key, _)| kept(key));
    let mut pairs: BTreeMap<String, String> = pairs.map(|(k, v)| (k.clone(), v.clone())).collect();
    let cluster = host.cluster_name.as_str();
    if !matches!(cluster, "" | DEFAULT_CLUSTER | SOFARPC_CLUSTER) {
        pairs.insert(CLUSTER.to_owned(), cluster.to_owned());
    }
    pairs
}

fn of_dubbo(
    interface: &str,
    version: &str,
    group: &str,
    host: &Host,
) -> Result<Instance, Malformed> {
    if interface.is_empty() {
        return Err(Malformed::new("its service names no interface"));
    }
    let word = |key: &str| host.metadata.get(key).map(String::as_str);
    let mut params = params(host, &[PROTOCOL, PATH]);
    // The name is what consumers look for.
    for (key, value) in [
        ("interface", interface),
        ("version", version),
        ("group", group),
    ] {
        if value.is_empty() {
            params.remove(key);
        } else {
            params.insert(key.to_owned(), value.to_owned());
        }
    }
    dubbo::instance(&Url {
        protocol: word(PROTOCOL).unwrap_or("dubbo").to_owned(),
        host: host.ip.clone(),
        port: host.port,
        path: word(PATH).unwrap_or(interface).to_owned(),
        params,
    })
}

fn of_sofarpc(
    interface: &str,
    unique_id: &str,
    protocol: &str,
    host: &Host,
) -> Result<Instance, Malformed> {
    let mut params = params(host, &[PROTOCOL]);
    params.insert("uniqueId".to_owned(), unique_id.to_owned());
    sofarpc::instance_of_url(
        interface,
        &Url {
            protocol: protocol.to_owned(),
            host: host.ip.clone(),
            port: host.port,
            path: String::new(),
            params,
        },
    )
}

fn plain(group: &str, service: &str, host: &Host) -> Instance {
    let name = if group == DEFAULT_GROUP {
        service.to_owned()
    } else {
        grouped_name(group, service)
    };
    let params = params(host, &[]);
    let words = params.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    if host.metadata.get(REGISTER_SOURCE).map(String::as_str) == Some(SPRING_CLOUD) {
        return spring::instance(&name, &host.ip, host.port, words);
    }
    let said = params.get(PROTOCOL).map(String::as_str);
    let known = PLAIN.into_iter().find(|known| said == Some(known));
    let protocol = known.unwrap_or("http");
    Instance {
        // What the protocol says need not be said twice.
        metadata: words
            .filter(|(key, _)| known.is_none() || *key != PROTOCOL)
            .collect(),
        ttl: None,
        ..Instance::new(ServiceKey::new(protocol, &name), &host.ip, host.port)
    }
}

/// An instance in the form of its framework.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// Group of the service.
    pub group: String,
    /// Its name.
    pub service: String,
    /// SOFARPC looks in a namespace of its own.
    pub is_sofarpc: bool,
    /// The instance.
    pub host: Host,
}

/// The form in which the clients of its framework find an instance; an error says why there is none.
pub fn registration(instance: &Instance) -> Result<Registration, String> {
    let service = &instance.service;
    let (name, metadata, weight) = match &*service.protocol {
        "dubbo" | "tri" | "rest" => {
            let url = dubbo::url(instance);
            let mut metadata = url.params;
            metadata.insert(PROTOCOL.to_owned(), url.protocol);
            metadata.insert(PATH.to_owned(), url.path);
            metadata.insert(CATEGORY.to_owned(), PROVIDERS.to_owned());
            // Both colons are always there.
            let (version, group) = (&instance.version, &instance.group);
            let name = format!("{PROVIDERS}:{}:{version}:{group}", service.name);
            (name, metadata, None)
        }
        protocol @ ("bolt" | "h2c") => {
            let metadata = sofarpc::url(instance).params;
            let word = if protocol == "bolt" {
                SOFARPC_DEFAULT
            } else {
                protocol
            };
            let name = match &*instance.group {
                "" => format!("{}:{word}", service.name),
                unique_id => format!("{}:{unique_id}:{word}", service.name),
            };
            (name, metadata, None)
        }
        protocol @ ("springcloud" | "http" | "grpc" | "tcp") => {
            let pairs = instance.metadata.iter();
            let pairs = pairs.filter(|(key, _)| !key.starts_with(RESERVED));
            let mut metadata: BTreeMap<String, String> =
                pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            match protocol {
                "springcloud" => {
                    metadata.insert(REGISTER_SOURCE.to_owned(), SPRING_CLOUD.to_owned());
                }
                "http" => {}
                protocol => {
                    metadata.insert(PROTOCOL.to_owned(), protocol.to_owned());
                }
            }
            let weight = f64::from(instance.weight) / f64::from(DEFAULT_WEIGHT);
            (service.name.to_string(), metadata, Some(weight))
        }
        other => return Err(format!("Nacos has no form here for protocol {other}")),
    };
    let is_sofarpc = matches!(&*service.protocol, "bolt" | "h2c");
    let mut metadata = metadata;
    let usual = if is_sofarpc {
        SOFARPC_CLUSTER
    } else {
        DEFAULT_CLUSTER
    };
    let cluster = metadata.remove(CLUSTER);
    let (group, service) = match weight {
        Some(_) => split_name(DEFAULT_GROUP, &name),
        None => (DEFAULT_GROUP, name.as_str()),
    };
    Ok(Registration {
        group: group.to_owned(),
        service: service.to_owned(),
        is_sofarpc,
        host: Host {
            ip: instance.address.to_string(),
            port: instance.port,
            weight: weight.unwrap_or(1.0),
            healthy: instance.healthy,
            cluster_name: cluster.unwrap_or_else(|| usual.to_owned()),
            service_name: grouped_name(group, service),
            metadata,
            ..Host::default()
        },
    })
}

/// Instances of one address and port at Dubbo's application level, and what they serve: to Nacos an address is one instance of an
/// application.
pub(crate) fn in_application(application: &str, instances: &[&Instance]) -> Option<(Host, Entry)> {
    let entry = Entry::of(application, instances)?;
    let first = instances.first()?;
    let host = Host {
        ip: first.address.to_string(),
        port: first.port,
        metadata: entry.metadata.clone(),
        ..Host::default()
    };
    Some((host, entry))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(metadata: &[(&str, &str)]) -> Host {
        Host {
            ip: "10.0.0.1".to_owned(),
            port: 20880,
            metadata: metadata
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Host::default()
        }
    }

    fn instance(group: &str, service: &str, host: &Host) -> Instance {
        match said(group, service, host) {
            Ok(Said::Instance(instance)) => instance,
            other => panic!("{service}: {other:?}"),
        }
    }

    #[test]
    fn each_framework_is_known_by_its_names() {
        let dubbo = [
            ("application", "probe"),
            ("category", "providers"),
            ("interface", "com.x.Foo"),
            ("path", "com.x.Foo"),
            ("protocol", "tri"),
            ("weight", "30"),
        ];
        let url = host(&dubbo);
        // With both colons, and as Dubbo wrote it before.
        for name in ["providers:com.x.Foo:1.0.0:", "providers:com.x.Foo:1.0.0"] {
            let read = instance("dubbo", name, &url);
            assert_eq!(read.service, ServiceKey::new("tri", "com.x.Foo"));
            assert_eq!(
                (&*read.version, &*read.group, read.weight),
                ("1.0.0", "", 30)
            );
        }
        let read = instance("g", "g@@providers:com.x.Foo::blue", &url);
        assert_eq!((&*read.version, &*read.group), ("", "blue"));
        assert_eq!(said("g", "consumers:com.x.Foo::", &url), Ok(Said::Nothing));

        let bolt = [
            ("rpcVer", "51302"),
            ("version", "1.0"),
            ("weight", "50"),
            ("protocol", "bolt"),
        ];
        let mut bolt = host(&bolt);
        bolt.weight = 2.0;
        bolt.cluster_name = "default-cluster".to_owned();
        let read = instance(DEFAULT_GROUP, "com.x.Hello:uid:DEFAULT", &bolt);
        assert_eq!(read.service, ServiceKey::new("bolt", "com.x.Hello"));
        assert_eq!(
            (&*read.version, &*read.group, read.weight),
            ("1.0", "uid", 100)
        );
        assert_eq!(read.metadata.get(CLUSTER), None);

        let mut shop = host(&[
            ("preserved.register.source", "SPRING_CLOUD"),
            ("zone", "east"),
        ]);
        shop.cluster_name = "east".to_owned();
        let read = instance(DEFAULT_GROUP, "Shop", &shop);
        assert_eq!(read.service, ServiceKey::new("springcloud", "shop"));
        let metadata: Vec<_> = read.metadata.iter().collect();
        assert_eq!(metadata, [(CLUSTER, "east"), ("zone", "east")]);
        // Another group's is another service; one with a colon is not SOFARPC's for that.
        assert_eq!(&*instance("blue", "Shop", &shop).service.name, "blue@@shop");
        let read = instance(DEFAULT_GROUP, "team:shop", &host(&[]));
        assert_eq!(read.service, ServiceKey::new("http", "team:shop"));

        let application = host(&[("dubbo.metadata.revision", "ad28"), ("zone", "east")]);
        let read = said(DEFAULT_GROUP, "shop", &application);
        assert!(
            matches!(&read, Ok(Said::Application(provider)) if provider.application == "shop"),
            "{read:?}"
        );
        let consumer = host(&[("dubbo.metadata.revision", "0")]);
        assert_eq!(said(DEFAULT_GROUP, "shop", &consumer), Ok(Said::Nothing));
    }

    #[test]
    fn what_nacos_says_of_an_instance_counts_in_every_framework() {
        let mut of = host(&[("weight", "30"), ("protocol", "dubbo")]);
        of.weight = 0.5;
        of.enabled = false;
        let read = instance("g", "providers:com.x.Foo::", &of);
        assert_eq!((read.weight, read.healthy), (15, false));
        for (weight, expected) in [
            (0.0, 0),
            (0.0001, 1),
            (1e9, 65_535),
            (f64::NAN, 0),
            (-1.0, 0),
        ] {
            of.weight = weight;
            assert_eq!(instance("g", "shop", &of).weight, expected, "{weight}");
        }
        of.port = 0;
        assert!(said("g", "shop", &of).is_err());
    }

    #[test]
    fn names_of_copies_do_not_collide_and_are_those_that_clients_look_for() {
        let copy = |protocol: &str, name: &str, version: &str, group: &str| {
            let mut copy = Instance::new(ServiceKey::new(protocol, name), "10.0.0.1", 1);
            (copy.version, copy.group) = (version.into(), group.into());
            let written = registration(&copy).expect("a form");
            (written.group, written.service)
        };
        let of = |group: &str, service: &str| (group.to_owned(), service.to_owned());
        let default = |service: &str| of(DEFAULT_GROUP, service);
        assert_eq!(
            copy("dubbo", "com.x.Foo", "", ""),
            default("providers:com.x.Foo::")
        );
        assert_eq!(
            copy("tri", "com.x.Foo", "1", "g"),
            default("providers:com.x.Foo:1:g")
        );
        assert_eq!(
            copy("bolt", "com.x.Foo", "1.0", ""),
            default("com.x.Foo:DEFAULT")
        );
        assert_eq!(
            copy("bolt", "com.x.Foo", "", "uid"),
            default("com.x.Foo:uid:DEFAULT")
        );
        assert_eq!(copy("springcloud", "shop", "", ""), default("shop"));
        assert_eq!(
            copy("springcloud", "blue@@shop", "", ""),
            of("blue", "shop")
        );
        let odd = Instance::new(ServiceKey::new("xr", "a"), "10.0.0.1", 1);
        assert!(registration(&odd).is_err());
    }

    fn copies() -> impl Strategy<Value = Instance> {
        let protocol = prop::sample::select(vec![
            "dubbo",
            "tri",
            "rest",
            "bolt",
            "h2c",
            "springcloud",
            "http",
            "grpc",
            "tcp",
        ]);
        let words = prop::collection::btree_map(
            "[a-z]{1,6}|nacos\\.cluster|mesh\\.origin",
            "[a-z0-9/]{1,6}",
            0..4,
        );
        let word = "([a-z0-9.]{1,5})?";
        let name = "([a-z]{1,4}@@)?[a-z]{1,6}(\\.[A-Za-z]{1,6}){0,2}";
        (
            protocol,
            name,
            word,
            word,
            0..=65_535_u32,
            any::<bool>(),
            words,
        )
            .prop_map(|(protocol, name, version, group, weight, healthy, words)| {
                let by_interface = !matches!(protocol, "springcloud" | "http" | "grpc" | "tcp");
                let name = if by_interface {
                    name.replace("@@", "")
                } else {
                    name.to_ascii_lowercase()
                };
                let mut copy = Instance::new(ServiceKey::new(protocol, &name), "10.0.0.1", 80);
                if by_interface {
                    copy.version = version.as_str().into();
                    copy.group = group.as_str().into();
                }
                copy.weight = weight;
                copy.healthy = healthy;
                copy.ttl = None;
                let fields = ["path", "protocol", "weight", "version", "group", "category"];
                copy.metadata = words
                    .into_iter()
                    .filter(|(k, _)| !fields.contains(&k.as_str()))
                    .collect();
                copy
            })
    }

    proptest! {
        #[test]
        fn a_copy_is_the_same_after_the_way_through_nacos(copy in copies()) {
            let written = registration(&copy).expect("a form");
            let json = serde_json::to_string(&written.host).expect("JSON");
            let host: Host = serde_json::from_str(&json).expect("the same");
            prop_assert_eq!(&host, &written.host);
            let read = instance(&written.group, &written.service, &host);
            prop_assert_eq!(&read.service, &copy.service);
            prop_assert_eq!(&read.group, &copy.group);
            if &*copy.service.protocol != "dubbo" || &*copy.version != "0.0.0" {
                let version = match (written.is_sofarpc, &*copy.version) {
                    (true, "") => "1.0",
                    (_, version) => version,
                };
                prop_assert_eq!(&*read.version, version);
            }
            prop_assert_eq!((read.weight, read.healthy), (copy.weight, copy.healthy));
            for (key, value) in copy.metadata.iter() {
                prop_assert_eq!(read.metadata.get(key), Some(value));
            }
        }

        #[test]
        fn nothing_panics(group in "\\PC*", name in "(providers|:|@@|DEFAULT|\\PC){0,8}",
                          metadata in proptest::collection::btree_map("(weight|protocol|path|interface|dubbo\\.metadata\\.revision|dubbo\\.endpoints|\\PC)", "\\PC*", 0..5),
                          weight in any::<f64>(), port in any::<u16>()) {
            let host = Host { metadata, weight, port, ..Host::default() };
            let _ = said(&group, &name, &host);
        }
    }
}
