use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::envoy::config::core::v3::Node;
use prost_types::value::Kind as ValueKind;
use serde_json::{Value, json};
use xds::server::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};

use super::Generated;
use crate::istio::document;
use crate::istio::mesh_config::MeshConfig;
use crate::proxy::{Client, Interception, Proxy};
use crate::world::{Config, Endpoints, Registered, World, build};

/// Objects of a YAML text; all must be valid.
fn config(yaml: &str) -> Config {
    let objects = document::parse(yaml)
        .into_iter()
        .map(|document| document.result.expect("a valid document"));
    objects
        .map(|object| (object.id.clone(), Arc::new(object)))
        .collect()
}

fn world(config: Config, registered: &Registered) -> Arc<World> {
    Arc::new(build(
        1,
        Arc::new(MeshConfig::default()),
        Arc::new(config),
        registered,
    ))
}

fn proxy(client: Client, ip: &str) -> Proxy {
    let labels = [("app", "shop")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    Proxy {
        id: "shop.demo".into(),
        ip: ip.parse().expect("an address"),
        namespace: "demo".into(),
        labels,
        client,
        interception: Interception::None,
        cluster: String::new(),
        version: String::new(),
    }
}

/// The resources of a type as JSON, by name.
fn dump(generated: &Generated, type_url: &str, proxy: &Proxy) -> BTreeMap<String, Value> {
    let name = type_url.rsplit('/').next().expect("a type");
    let resources = generated.resources(type_url, proxy);
    resources
        .iter()
        .map(|resource| {
            let value = api::json::decode(name, &resource.value()).expect("a message that decodes");
            (resource.name.to_string(), value)
        })
        .collect()
}

fn generate(yaml: &str, proxy: &Proxy) -> Generated {
    generate_with(yaml, &Registered::default(), proxy)
}

fn generate_with(yaml: &str, registered: &Registered, proxy: &Proxy) -> Generated {
    let world = world(config(yaml), registered);
    let class = proxy.class(&world.index, &world.mesh.root_namespace);
    Generated::new(world, class)
}

/// Protocol, interface with `namespace:` unless it is the default one, address, port, version, group and metadata.
type Registration<'a> = (
    &'a str,
    &'a str,
    &'a str,
    u16,
    &'a str,
    &'a str,
    &'a [(&'a str, &'a str)],
);

/// A registry with these instances.
fn registered(instances: &[Registration<'_>]) -> Registered {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let registry =
            registry::Registry::in_memory(registry::Limits::default()).expect("a registry");
        let instances = instances.iter().map(
            |(protocol, name, address, port, version, group, metadata)| {
                let (namespace, name) = name.split_once(':').unwrap_or(("", name));
                let namespace = registry::Namespace::new(namespace);
                let key = registry::ServiceKey::within(namespace, protocol, name);
                let mut instance = registry::Instance::new(key, address, *port);
                instance.version = (*version).into();
                instance.group = (*group).into();
                instance.metadata = metadata.iter().copied().collect();
                instance
            },
        );
        registry
            .register(instances.collect())
            .await
            .expect("instances that are well formed");
        let mut registered = Registered::default();
        let services = registry.snapshot();
        registered.apply(
            &registry::Event::Reset(services.clone()),
            &services,
            std::time::Instant::now(),
        );
        registered
    })
}

const SIDECAR: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: shop, namespace: demo}
spec:
  egress:
  - port: {number: 12220, protocol: bolt, name: bolt}
    captureMode: NONE
    hosts: ['*/*']
  - port: {number: 30880, protocol: dubbo, name: dubbo}
    captureMode: NONE
    bind: 127.0.0.9
    hosts: ['*/*']
  - port: {number: 8080, protocol: HTTP, name: http}
    captureMode: NONE
    hosts: ['./*']
  ingress:
  - port: {number: 12200, protocol: bolt, name: bolt}
    captureMode: NONE
    defaultEndpoint: 0.0.0.0:12201
  - port: {number: 9080, protocol: HTTP, name: http}
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:9081
";

const SHOP: &str = "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: demo}
spec:
  hosts: [web.demo.mesh]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP}, {number: 9999, name: other, protocol: HTTP}]
  endpoints: [{address: 10.0.0.1, labels: {version: v1}}, {address: 10.0.0.2, ports: {http: 81}, labels: {version: v2}}]
";

#[test]
fn a_sidecar_without_interception_has_the_listeners_it_names() {
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let generated = generate(&format!("{SIDECAR}{SHOP}"), &mosn);
    let listeners = dump(&generated, LISTENER, &mosn);
    let names: Vec<&str> = listeners.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "127.0.0.3_12200",
            "127.0.0.3_12220",
            "127.0.0.3_8080",
            "127.0.0.3_9080",
            "127.0.0.9_30880"
        ]
    );
    let bolt = &listeners["127.0.0.3_12220"];
    assert_eq!(
        bolt["listener_filters"][0]["name"],
        "mosn.filters.listener.protocol_inspector"
    );
    let rpc = &bolt["filter_chains"][0]["filters"][0];
    assert_eq!(rpc["name"], "mosn.filters.network.rpc_proxy");
    assert_eq!(rpc["typed_config"]["protocols"], json!(["BOLT"]));
    assert_eq!(rpc["typed_config"]["rds"]["route_config_name"], "12220");
    assert_eq!(bolt["bind_to_port"], Value::Null);

    let inbound = &listeners["127.0.0.3_12200"]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(
        inbound["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"],
        "inbound|12200||"
    );
    let clusters = dump(&generated, CLUSTER, &mosn);
    let target = |name: &str| {
        clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
            ["socket_address"]
            .clone()
    };
    assert_eq!(
        target("inbound|12200||"),
        json!({"address": "127.0.0.3", "port_value": 12201})
    );
    assert_eq!(
        target("inbound|9080||"),
        json!({"address": "127.0.0.1", "port_value": 9081})
    );

    // Envoy would refuse extensions that it has not got: it gets the HTTP listeners alone.
    let envoy = proxy(Client::Envoy, "10.1.1.1");
    let generated = generate(&format!("{SIDECAR}{SHOP}"), &envoy);
    let listeners = dump(&generated, LISTENER, &envoy);
    let names: Vec<&str> = listeners.keys().map(String::as_str).collect();
    assert_eq!(names, ["10.1.1.1_9080", "127.0.0.1_8080"]);
}

#[test]
fn nothing_is_bound_that_nobody_asked_for() {
    let (head, rest) = SIDECAR.split_once("  egress:").expect("egress listeners");
    let (_, listeners) = rest.split_once("  ingress:").expect("ingress listeners");
    let ingress = format!("{head}  ingress:{listeners}");
    for (interception, expected) in [
        (
            Interception::Unsaid,
            vec!["127.0.0.3_12200", "127.0.0.3_9080"],
        ),
        (
            Interception::None,
            vec![
                "127.0.0.3_12200",
                "127.0.0.3_8080",
                "127.0.0.3_9080",
                "127.0.0.3_9999",
            ],
        ),
        (
            Interception::Redirect,
            vec![
                "0.0.0.0_8080",
                "0.0.0.0_9999",
                "127.0.0.3_12200",
                "127.0.0.3_9080",
                "virtualOutbound",
            ],
        ),
    ] {
        let mosn = Proxy {
            interception,
            ..proxy(Client::Mosn, "127.0.0.3")
        };
        let generated = generate(&format!("{ingress}{SHOP}"), &mosn);
        let listeners = dump(&generated, LISTENER, &mosn);
        assert_eq!(
            listeners.keys().map(String::as_str).collect::<Vec<_>>(),
            expected,
            "{interception:?}"
        );
    }
}

#[test]
fn http_listeners_route_the_services_of_their_port() {
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let generated = generate(&format!("{SIDECAR}{SHOP}"), &mosn);
    let routes = dump(&generated, ROUTE, &mosn);
    assert_eq!(
        routes.keys().map(String::as_str).collect::<Vec<_>>(),
        ["12220", "30880", "8080"]
    );
    let hosts = routes["8080"]["virtual_hosts"]
        .as_array()
        .expect("virtual hosts");
    let names: Vec<&Value> = hosts.iter().map(|host| &host["name"]).collect();
    assert_eq!(names, ["web.demo.mesh:8080", "allow_any"]);
    assert_eq!(
        hosts[0]["domains"],
        json!(["web.demo.mesh", "web.demo.mesh."])
    );
    assert_eq!(
        hosts[0]["routes"][0]["route"]["cluster"],
        "outbound|8080||web.demo.mesh"
    );
    assert_eq!(
        routes["12220"]["virtual_hosts"],
        Value::Null,
        "no bolt service, and no other hosts for RPC"
    );
    // Every port of a visible service has a cluster all the same.
    let clusters = dump(&generated, CLUSTER, &mosn);
    assert!(clusters.contains_key("outbound|9999||web.demo.mesh"));
}

#[test]
fn subsets_select_endpoints_and_ports_have_their_targets() {
    let rule = "
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: demo}
spec:
  host: web.demo.mesh
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool: {tcp: {maxConnections: 7, connectTimeout: 2s}}
    portLevelSettings: [{port: {number: 9999}, loadBalancer: {simple: RANDOM}}]
  subsets:
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}}
";
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let generated = generate(&format!("{SIDECAR}{SHOP}{rule}"), &mosn);
    let clusters = dump(&generated, CLUSTER, &mosn);
    let settings = |name: &str| {
        let cluster = &clusters[name];
        let limit = cluster["circuit_breakers"]["thresholds"][0]["max_connections"].clone();
        (
            cluster["lb_policy"].clone(),
            limit,
            cluster["connect_timeout"].clone(),
        )
    };
    let most = json!(u32::MAX);
    // ROUND_ROBIN is the enum's zero, which JSON leaves out.
    assert_eq!(
        settings("outbound|8080||web.demo.mesh"),
        (Value::Null, json!(7), json!("2s"))
    );
    assert_eq!(
        settings("outbound|8080|v2|web.demo.mesh"),
        (json!("LEAST_REQUEST"), json!(7), json!("2s"))
    );
    assert_eq!(
        settings("outbound|9999||web.demo.mesh"),
        (json!("RANDOM"), most, json!("10s"))
    );

    let endpoints = dump(&generated, ENDPOINTS, &mosn);
    let addresses = |name: &str| -> Vec<String> {
        let localities = endpoints[name]["endpoints"].as_array().expect("localities");
        let all = localities
            .iter()
            .flat_map(|locality| locality["lb_endpoints"].as_array().expect("endpoints"));
        all.map(|endpoint| {
            let address = &endpoint["endpoint"]["address"]["socket_address"];
            format!(
                "{}:{}",
                address["address"].as_str().expect("an address"),
                address["port_value"]
            )
        })
        .collect()
    };
    assert_eq!(
        addresses("outbound|8080||web.demo.mesh"),
        ["10.0.0.1:8080", "10.0.0.2:81"]
    );
    assert_eq!(addresses("outbound|8080|v2|web.demo.mesh"), ["10.0.0.2:81"]);
}

#[test]
fn registered_interfaces_are_virtual_hosts_of_the_listener_of_their_protocol() {
    let registered = registered(&[
        (
            "bolt",
            "com.foo.Bar",
            "10.0.0.1",
            12200,
            "1.0",
            "",
            &[("release", "v1")],
        ),
        (
            "bolt",
            "com.foo.Bar",
            "10.0.0.2",
            12200,
            "2.0",
            "blue",
            &[("release", "v2")],
        ),
        ("dubbo", "com.foo.Baz", "10.0.0.3", 20880, "", "", &[]),
        ("http", "catalog", "10.0.0.4", 8080, "", "", &[]),
    ]);
    let rules = "
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bar, namespace: demo}
spec:
  hosts: [com.foo.Bar]
  http:
  - name: pay
    match: [{uri: {exact: /com.foo.Bar/pay}, headers: {x-mesh-rpc-version: {exact: '1.0'}}}]
    route: [{destination: {host: com.foo.Bar, subset: v2}}]
  - fault: {abort: {httpStatus: 503, percentage: {value: 50}}}
    route:
    - {destination: {host: com.foo.Bar, subset: v1}, weight: 80}
    - {destination: {host: com.foo.Bar, subset: blue}, weight: 20}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bar, namespace: demo}
spec:
  host: com.foo.Bar
  subsets:
  - {name: v1, labels: {release: v1}}
  - {name: v2, labels: {version: '2.0'}}
  - {name: blue, labels: {version: '2.0', group: blue}}
";
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let sidecar = SIDECAR.replace("hosts: ['./*']", "hosts: ['*/*']");
    let generated = generate_with(&format!("{sidecar}{rules}"), &registered, &mosn);
    let routes = dump(&generated, ROUTE, &mosn);
    let bar = &routes["12220"]["virtual_hosts"][0];
    assert_eq!(
        (&bar["name"], &bar["domains"]),
        (&json!("com.foo.Bar:12220"), &json!(["com.foo.Bar"]))
    );
    assert_eq!(bar["routes"][0]["name"], "pay");
    assert_eq!(bar["routes"][0]["match"]["path"], "/com.foo.Bar/pay");
    assert_eq!(
        bar["routes"][0]["route"]["cluster"],
        "outbound|12220|v2|com.foo.Bar"
    );
    let weights = &bar["routes"][1]["route"]["weighted_clusters"]["clusters"];
    assert_eq!(weights[0]["name"], "outbound|12220|v1|com.foo.Bar");
    assert_eq!(
        (&weights[0]["weight"], &weights[1]["weight"]),
        (&json!(80), &json!(20))
    );
    let fault = &bar["routes"][1]["typed_per_filter_config"]["envoy.filters.http.fault"];
    assert_eq!(fault["abort"]["http_status"], 503);
    assert_eq!(
        fault["abort"]["percentage"],
        json!({"numerator": 500_000, "denominator": "MILLION"})
    );
    assert_eq!(
        routes["30880"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"],
        "outbound|30880||com.foo.Baz"
    );
    // An HTTP service of the registry has no port of its own: any HTTP listener offers it.
    assert_eq!(routes["8080"]["virtual_hosts"][0]["name"], "catalog:8080");
    assert_eq!(
        routes["8080"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"],
        "outbound|80||catalog"
    );

    let endpoints = dump(&generated, ENDPOINTS, &mosn);
    let instances = |cluster: &str| -> Vec<Value> {
        let all = endpoints[cluster]["endpoints"][0]["lb_endpoints"]
            .as_array()
            .expect("endpoints");
        all.iter()
            .map(|endpoint| endpoint["metadata"]["filter_metadata"]["mosn.rpc"].clone())
            .collect()
    };
    let first = json!({"version": "1.0", "group": ""});
    let second = json!({"version": "2.0", "group": "blue"});
    assert_eq!(
        instances("outbound|12220||com.foo.Bar"),
        [first.clone(), second]
    );
    assert_eq!(instances("outbound|12220|v1|com.foo.Bar"), [first]);
    // A subset that names the version has chosen it, whatever the caller asked for.
    assert_eq!(
        instances("outbound|12220|v2|com.foo.Bar"),
        [json!({"version": "*", "group": "blue"})]
    );
    assert_eq!(instances("outbound|12220|blue|com.foo.Bar"), [Value::Null]);
}

#[test]
fn endpoints_are_grouped_by_the_place_that_the_registry_says() {
    let zone = "topology.kubernetes.io/zone";
    let registered = registered(&[
        (
            "bolt",
            "com.foo.Bar",
            "10.0.0.1",
            1,
            "",
            "",
            &[("region", "east"), (zone, "e1")],
        ),
        (
            "bolt",
            "com.foo.Bar",
            "10.0.0.2",
            1,
            "",
            "",
            &[("nacos.cluster", "SH")],
        ),
        (
            "bolt",
            "com.foo.Bar",
            "10.0.0.3",
            1,
            "",
            "",
            &[("region", "east"), ("zone", "e1")],
        ),
        ("bolt", "com.foo.Bar", "10.0.0.4", 1, "", "", &[]),
    ]);
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let generated = generate_with(&format!("{SIDECAR}{SHOP}"), &registered, &mosn);
    let endpoints = dump(&generated, ENDPOINTS, &mosn);
    let groups = endpoints["outbound|12220||com.foo.Bar"]["endpoints"].as_array();
    let groups: Vec<(&Value, usize, &Value)> = groups
        .into_iter()
        .flatten()
        .map(|group| {
            let members = group["lb_endpoints"].as_array().map_or(0, Vec::len);
            (&group["locality"], members, &group["load_balancing_weight"])
        })
        .collect();
    assert_eq!(
        groups,
        [
            (&json!({}), 1, &json!(100)),
            (&json!({"zone": "SH"}), 1, &json!(100)),
            (&json!({"region": "east", "zone": "e1"}), 2, &json!(200)),
        ]
    );
}

#[test]
fn a_proxy_sees_what_is_registered_in_its_namespace_and_in_the_default_one() {
    let at = |name, address| ("bolt", name, address, 12200, "", "", [].as_slice());
    let registered = registered(&[
        at("com.foo.Common", "10.0.0.1"),
        at("com.foo.Both", "10.0.0.2"),
        at("demo:com.foo.Both", "10.0.0.3"),
        at("demo:com.foo.Own", "10.0.0.4"),
        at("bank:com.foo.Both", "10.0.0.5"),
        at("bank:com.foo.Vault", "10.0.0.6"),
    ]);
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let generated = generate_with(&format!("{SIDECAR}{SHOP}"), &registered, &mosn);
    let endpoints = dump(&generated, ENDPOINTS, &mosn);
    let bolt: BTreeMap<&str, Vec<&str>> = endpoints
        .iter()
        .filter_map(|(cluster, assignment)| {
            let host = cluster.strip_prefix("outbound|12220||")?;
            let all = assignment["endpoints"][0]["lb_endpoints"].as_array()?;
            let addresses = all.iter().filter_map(|endpoint| {
                endpoint["endpoint"]["address"]["socket_address"]["address"].as_str()
            });
            Some((host, addresses.collect()))
        })
        .collect();
    let expected = [
        ("com.foo.Both", vec!["10.0.0.3"]),
        ("com.foo.Common", vec!["10.0.0.1"]),
        ("com.foo.Own", vec!["10.0.0.4"]),
    ];
    assert_eq!(bolt, expected.into_iter().collect());
}

#[test]
fn a_change_of_endpoints_shares_all_that_did_not_change() {
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let before = world(config(&format!("{SIDECAR}{SHOP}")), &Registered::default());
    let generated = Generated::new(before.clone(), mosn.class(&before.index, "istio-system"));
    let mut next = (*before).clone();
    let mut services = before.index.services.keys();
    let id = services.next().expect("a service").clone();
    let fewer = before.endpoints_of(&id).take(1);
    let fewer = Endpoints::own(fewer.map(Cow::into_owned).collect());
    next.endpoints.insert(id, fewer);
    let after = generated.with_endpoints(Arc::new(next));
    assert!(Arc::ptr_eq(
        &generated.resources(ROUTE, &mosn),
        &after.resources(ROUTE, &mosn)
    ));
    let hash = |generated: &Generated, type_url| generated.resources(type_url, &mosn).hash();
    assert_eq!(hash(&generated, CLUSTER), hash(&after, CLUSTER));
    assert_ne!(hash(&generated, ENDPOINTS), hash(&after, ENDPOINTS));
}

#[test]
fn labels_of_the_caller_choose_its_rules() {
    let rules = "
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: demo}
spec:
  hosts: [web.demo.mesh]
  http:
  - match: [{sourceLabels: {app: other}}]
    directResponse: {status: 403}
  - match: [{port: 9999}]
    directResponse: {status: 404}
  - match: [{sourceLabels: {app: shop}}]
    directResponse: {status: 201}
  - directResponse: {status: 202}
";
    let mosn = proxy(Client::Mosn, "127.0.0.3");
    let generated = generate(&format!("{SIDECAR}{SHOP}{rules}"), &mosn);
    let routes = dump(&generated, ROUTE, &mosn);
    let of_host = routes["8080"]["virtual_hosts"][0]["routes"]
        .as_array()
        .expect("routes");
    let statuses: Vec<&Value> = of_host
        .iter()
        .map(|route| &route["direct_response"]["status"])
        .collect();
    assert_eq!(
        statuses,
        [201],
        "what cannot match is left out, and what is behind a match of everything"
    );
}

/// Cases of Istio's own tests that lie within what pilot generates: the clusters and virtual hosts must be the same.
/// Origin: `../shared/corpus/istio/xds-goldens.jsonl.gz`.
#[test]
fn istios_goldens() {
    let corpus = include_str!("../../tests/corpus/istio-goldens.jsonl");
    let mut compared = 0;
    let mut wrong = Vec::new();
    for line in corpus.lines() {
        let case: Value = serde_json::from_str(line).expect("a line of JSON");
        let name = format!("{} {}", case["id"], case["test"]);
        let objects = case["configs"]
            .as_array()
            .expect("objects")
            .iter()
            .map(|object| {
                let object = document::object(object.clone())
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                (object.id.clone(), Arc::new(object))
            });
        let world = world(objects.collect(), &Registered::default());
        let proxy = golden_proxy(&case["node"]);
        let generated = Generated::new(world.clone(), proxy.class(&world.index, "istio-system"));
        for (field, type_url) in [("clusters", CLUSTER), ("routes", ROUTE)] {
            let ours = dump(&generated, type_url, &proxy);
            for expected in case[field].as_array().expect("resources") {
                let resource = expected["name"].as_str().expect("a name");
                let actual = normal(ours.get(resource).cloned().unwrap_or_default());
                let expected = normal(expected.clone());
                if actual != expected {
                    wrong.push(format!(
                        "{name}: {resource}\n  expected {expected}\n  got      {actual}"
                    ));
                }
                compared += 1;
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 60, "only {compared} resources were compared");
}

/// Protobuf leaves zero values out; the recording has some of them. Numbers of 64 bits are texts.
fn normal(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, normal(value)));
            // Zero, false and empty are what absence means, except where a wrapper says it on purpose.
            let given = fields.filter(|(key, value)| {
                let on_purpose = key == "validate_clusters" || key == "eds_config" || key == "ads";
                on_purpose
                    || !matches!(value, Value::Null)
                        && *value != json!("")
                        && *value != json!([])
                        && *value != json!({})
            });
            Value::Object(given.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(normal).collect()),
        other => other,
    }
}

fn golden_proxy(node: &Value) -> Proxy {
    let ip = node["ips"][0].as_str().expect("an address");
    let namespace = node["metadata"]["NAMESPACE"].as_str().unwrap_or("default");
    let text = |value: &str| prost_types::Value {
        kind: Some(ValueKind::StringValue(value.to_owned())),
    };
    let mut fields = BTreeMap::from([("NAMESPACE".to_owned(), text(namespace))]);
    if let Some(mode) = node["metadata"]["INTERCEPTION_MODE"].as_str() {
        fields.insert("INTERCEPTION_MODE".to_owned(), text(mode));
    }
    let node = Node {
        id: format!(
            "sidecar~{ip}~{}~{}",
            node["id"].as_str().unwrap_or("a.b"),
            "svc.cluster.local"
        ),
        metadata: Some(prost_types::Struct { fields }),
        ..Node::default()
    };
    Proxy::from_node(&node).expect("a proxy")
}
