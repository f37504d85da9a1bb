use serde_json::{Value, json};

use super::*;

fn object(name: &str, labels: Value, annotations: Value, data: Value) -> Object {
    Object {
        namespace: "shop".into(),
        name: name.into(),
        labels: serde_json::from_value(labels).unwrap(),
        annotations: serde_json::from_value(annotations).unwrap(),
        data,
    }
}

fn slice(name: &str, service: &str, ports: &Value, endpoints: &Value) -> Object {
    let labels = json!({"kubernetes.io/service-name": service});
    let data = json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    object(name, labels, json!({}), data)
}

fn endpoint(address: &str, pod: &str) -> Value {
    json!({
        "addresses": [address], "conditions": {"ready": true}, "nodeName": "n1", "zone": "z1",
        "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"},
    })
}

fn described(lists: &[List]) -> Vec<String> {
    let instances = lists.iter().flat_map(|list| &list.instances);
    instances
        .map(|i| {
            let of = |key| i.metadata.get(key).unwrap_or("-");
            format!(
                "{} {}:{} {}:{} w{} {} {} {}",
                i.service,
                i.address,
                i.port,
                i.version,
                i.group,
                i.weight,
                i.healthy,
                of("app"),
                of(ZONE)
            )
        })
        .collect()
}

fn held() -> Held {
    let mut held = Held::new("cluster.local");
    let spec = json!({"spec": {"ports": [
        {"name": "http", "port": 80},
        {"name": "http-admin", "port": 9090},
        {"name": "rpc", "port": 20880, "appProtocol": "dubbo"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]}});
    let annotations = json!({
        "mesh.sofastack.io/dubbo": "com.foo.Order:1.0.0:blue",
        "mesh.sofastack.io/springcloud": "Orders",
    });
    held.put(
        Kind::Service,
        &object("orders", json!({}), annotations, spec),
        false,
    );
    let ports = json!([
        {"name": "http", "port": 8080}, {"name": "http-admin", "port": 9090}, {"name": "rpc", "port": 20881},
    ]);
    let endpoints = json!([
        endpoint("10.0.0.1", "a"),
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": 7},
        {"addresses": []},
    ]);
    held.put(
        Kind::Slice,
        &slice("orders-1", "orders", &ports, &endpoints),
        false,
    );
    held.put(
        Kind::Pod,
        &object("a", json!({"app": "orders"}), json!({}), Value::Null),
        false,
    );
    let labels = json!({REGION: "r1", ZONE: "of-the-node"});
    let mut node = object("n1", labels, json!({}), Value::Null);
    node.namespace = String::new();
    held.put(Kind::Node, &node, false);
    held
}

#[test]
fn a_service_is_each_of_its_ports_and_the_interfaces_it_declares() {
    let mut held = held();
    let lists = held.take_dirty();
    assert_eq!(lists.len(), 1);
    assert_eq!(
        described(&lists),
        [
            "http/orders.shop.svc.cluster.local 10.0.0.1:8080 : w100 true orders z1",
            "http/http-admin.orders.shop.svc.cluster.local 10.0.0.1:9090 : w100 true orders z1",
            "tcp/orders.shop.svc.cluster.local 10.0.0.1:20881 : w100 true orders z1",
            "dubbo/com.foo.Order 10.0.0.1:20881 1.0.0:blue w100 true orders z1",
            "springcloud/orders 10.0.0.1:8080 : w100 true orders z1",
            "http/orders.shop.svc.cluster.local 10.0.0.2:8080 : w100 false - -",
            "http/http-admin.orders.shop.svc.cluster.local 10.0.0.2:9090 : w100 false - -",
            "tcp/orders.shop.svc.cluster.local 10.0.0.2:20881 : w100 false - -",
            "dubbo/com.foo.Order 10.0.0.2:20881 1.0.0:blue w100 false - -",
            "springcloud/orders 10.0.0.2:8080 : w100 false - -",
        ]
    );
    assert_eq!(lists[0].instances[0].metadata.get(REGION), Some("r1"));
    let skipped: Vec<&str> = lists[0].skipped.iter().map(|s| s.entry.as_str()).collect();
    assert_eq!(
        skipped,
        ["orders-1: endpoints[2]", "orders-1: endpoints[3]"]
    );
    assert!(held.take_dirty().is_empty());
}

#[test]
fn what_changes_is_told_and_what_is_gone_is_an_empty_list() {
    let mut held = held();
    held.take_dirty();
    // Of two versions behind one Service each says its own.
    let annotations =
        json!({"mesh.sofastack.io/dubbo": "com.foo.Order:2.0.0", "mesh.sofastack.io/weight": "30"});
    held.put(
        Kind::Pod,
        &object("a", json!({"app": "v2"}), annotations, Value::Null),
        true,
    );
    let lists = held.take_dirty();
    assert!(lists[0].certain);
    let described = described(&lists);
    assert!(
        described.contains(&"dubbo/com.foo.Order 10.0.0.1:20881 2.0.0: w30 true v2 z1".to_owned()),
        "{described:?}"
    );
    assert!(
        !described
            .iter()
            .any(|i| i.starts_with("springcloud/orders 10.0.0.1"))
    );

    held.put(
        Kind::Pod,
        &object("stranger", json!({}), json!({}), Value::Null),
        true,
    );
    assert!(held.take_dirty().is_empty());
    let name = Name::new("shop", "orders");
    held.remove(Kind::Service, &name, true);
    let lists = held.take_dirty();
    assert!(lists[0].instances.is_empty() && lists[0].certain && &*lists[0].name == "shop/orders");
    // What a new list does not have is gone, but only as a suspicion.
    held.retain(Kind::Slice, Some("other"), &HashSet::new());
    assert!(held.take_dirty().is_empty());
    held.retain(Kind::Slice, None, &HashSet::new());
    let lists = held.take_dirty();
    assert!(lists[0].instances.is_empty() && !lists[0].certain);
    assert!(held.of_pod.is_empty() && held.of_service.is_empty());
}

#[test]
fn an_interface_without_a_port_is_named() {
    let mut held = held();
    let spec = json!({"spec": {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    let annotations = json!({"mesh.sofastack.io/bolt": "com.foo.A:1.0 com.foo.B@b com.foo.C@c"});
    held.put(
        Kind::Service,
        &object("two", json!({}), annotations, spec),
        true,
    );
    let ports = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    let endpoints = json!([endpoint("10.0.0.3", "x"), endpoint("10.0.0.4", "y")]);
    held.put(
        Kind::Slice,
        &slice("two-1", "two", &ports, &endpoints),
        true,
    );
    held.put(
        Kind::Slice,
        &object("lost", json!({}), json!({}), json!({})),
        true,
    );
    let lists = held.take_dirty();
    let two = lists.iter().find(|list| &*list.name == "shop/two").unwrap();
    let bolt = two
        .instances
        .iter()
        .filter(|i| &*i.service.protocol == "bolt");
    let bolt: Vec<String> = bolt
        .map(|i| format!("{} {}", i.service.name, i.port))
        .collect();
    assert_eq!(bolt, ["com.foo.B 2", "com.foo.B 2"]);
    let skipped: Vec<&str> = two.skipped.iter().map(|s| s.entry.as_str()).collect();
    assert_eq!(skipped, ["bolt: com.foo.A", "bolt: com.foo.C"]);
    let lost = lists
        .iter()
        .find(|list| &*list.name == "shop/lost")
        .unwrap();
    assert!(
        lost.skipped[0]
            .reason
            .contains("kubernetes.io/service-name")
    );
}
