use crate::istio::document;

/// The path and message of the only document of `yaml`, or its warnings.
fn check(kind: &str, spec: &str) -> Result<Vec<String>, String> {
    let spec = spec.replace('\n', "\n  ");
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n  {spec}\n"
    );
    let mut documents = document::parse(&text);
    let document = documents.remove(0);
    document
        .result
        .map(|object| object.warnings)
        .map_err(|error| error.path)
}

#[test]
fn service_entries() {
    let ok = "hosts: [a.com]\nports: [{number: 80, name: http, protocol: HTTP}]\nresolution: STATIC\nendpoints: [{address: 1.1.1.1, ports: {http: 8080}}]";
    assert_eq!(check("ServiceEntry", ok), Ok(vec![]));
    for (from, to, path) in [
        ("[a.com]", "[]", "spec.hosts"),
        ("[a.com]", "['*']", "spec.hosts[0]"),
        ("[a.com]", "['a..b']", "spec.hosts[0]"),
        ("1.1.1.1", "one", "spec.endpoints[0].address"),
        ("{http: 8080}", "{htp: 8080}", "spec.endpoints[0].ports.htp"),
        ("{http: 8080}", "{http: 0}", "spec.endpoints[0].ports.http"),
        ("number: 80,", "number: 80000,", "spec.ports[0].number"),
        ("protocol: HTTP", "protocol: HTP", "spec.ports[0].protocol"),
        ("STATIC", "NONE", "spec.endpoints"),
        ("STATIC", "DYNAMIC_DNS", "spec.resolution"),
        (
            "STATIC",
            "STATIC\nworkloadSelector: {labels: {a: b}}",
            "spec.workloadSelector",
        ),
        ("hosts", "exportTo: ['~', a]\nhosts", "spec.exportTo[0]"),
    ] {
        assert_eq!(
            check("ServiceEntry", &ok.replacen(from, to, 1)),
            Err(path.to_owned()),
            "{to}"
        );
    }
    for protocol in ["dubbo", "bolt", "tri", "sofarpc"] {
        let text = ok
            .replace("HTTP", protocol)
            .replace("a.com", "com.foo.Bar$Inner_1");
        assert_eq!(check("ServiceEntry", &text), Ok(vec![]), "{protocol}");
    }
}

#[test]
fn virtual_services() {
    let ok = "hosts: [a.com]\nhttp:\n- match: [{uri: {prefix: /a}, headers: {h: {regex: 'a+'}}}]\n  route: [{destination: {host: a.com, subset: v1}, weight: 80}, {destination: {host: a.com}, weight: 20}]\n  timeout: 1s\n  retries: {attempts: 2, retryOn: 'gateway-error,503'}\n  fault: {abort: {httpStatus: 503, percentage: {value: 10}}}";
    assert_eq!(check("VirtualService", ok), Ok(vec![]));
    for (from, to, path) in [
        ("[a.com]", "['*']", "spec.hosts[0]"),
        (
            "prefix: /a",
            "prefix: /a, exact: /b",
            "spec.http[0].match[0].uri",
        ),
        ("'a+'", "'a('", "spec.http[0].match[0].headers.h.regex"),
        ("weight: 80", "weight: -1", "spec.http[0].route[0].weight"),
        (
            "weight: 80}, {destination: {host: a.com}, weight: 20",
            "}, {destination: {host: a.com}",
            "spec.http[0].route",
        ),
        (
            "host: a.com, subset",
            "subset",
            "spec.http[0].route[0].destination.host",
        ),
        ("timeout: 1s", "timeout: 1us", "spec.http[0].timeout"),
        ("timeout: 1s", "timeout: soon", "spec.http[0].timeout"),
        ("gateway-error", "luck", "spec.http[0].retries.retryOn"),
        ("attempts: 2", "attempts: 0", "spec.http[0].retries"),
        (
            "httpStatus: 503",
            "httpStatus: 3",
            "spec.http[0].fault.abort.httpStatus",
        ),
        (
            "value: 10",
            "value: 101",
            "spec.http[0].fault.abort.percentage",
        ),
        ("timeout: 1s", "redirect: {uri: /b}", "spec.http[0]"),
        ("timeout: 1s", "corsPolicy: {}", "spec.http[0].corsPolicy"),
        (
            "timeout: 1s",
            "headers: {request: {set: {':path': a}}}",
            "spec.http[0].headers.request.set",
        ),
    ] {
        assert_eq!(
            check("VirtualService", &ok.replacen(from, to, 1)),
            Err(path.to_owned()),
            "{to}"
        );
    }
    let gateway = ok.replace("hosts", "gateways: [gw, mesh]\nhosts");
    assert_eq!(
        check("VirtualService", &gateway).map(|warnings| warnings.len()),
        Ok(1)
    );
}

#[test]
fn destination_rules() {
    let ok = "host: a.com\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {maxConnections: 5, connectTimeout: 1s}}}\nsubsets: [{name: v1, labels: {version: v1}}]";
    assert_eq!(check("DestinationRule", ok), Ok(vec![]));
    for (from, to, path) in [
        ("host: a.com", "exportTo: ['*']", "spec.host"),
        (
            "ROUND_ROBIN",
            "BEST",
            "spec.trafficPolicy.loadBalancer.simple",
        ),
        (
            "connectTimeout: 1s",
            "connectTimeout: 1us",
            "spec.trafficPolicy.connectionPool.tcp.connectTimeout",
        ),
        ("name: v1", "name: v_1", "spec.subsets[0].name"),
        (
            "version: v1}}",
            "version: v1}}, {name: v1}",
            "spec.subsets[1].name",
        ),
        (
            "{loadBalancer",
            "{tls: {mode: SIMPLE}, loadBalancer",
            "spec.trafficPolicy.tls.mode",
        ),
    ] {
        assert_eq!(
            check("DestinationRule", &ok.replacen(from, to, 1)),
            Err(path.to_owned()),
            "{to}"
        );
    }
}

#[test]
fn sidecars() {
    let ok = "egress: [{port: {number: 12220, protocol: bolt, name: bolt}, captureMode: NONE, hosts: ['*/*']}]\ningress: [{port: {number: 12200, protocol: bolt, name: bolt}, captureMode: NONE, defaultEndpoint: '127.0.0.2:12201'}]";
    assert_eq!(check("Sidecar", ok), Ok(vec![]));
    for (from, to, path) in [
        ("['*/*']", "['*']", "spec.egress[0].hosts[0]"),
        ("['*/*']", "[]", "spec.egress[0].hosts"),
        (
            "'127.0.0.2:12201'",
            "'10.0.0.1:80'",
            "spec.ingress[0].defaultEndpoint",
        ),
        (
            "captureMode: NONE",
            "captureMode: NOPE",
            "spec.egress[0].captureMode",
        ),
        ("egress: [", "egress: [{hosts: ['./*']}, ", "spec.egress[0]"),
    ] {
        assert_eq!(
            check("Sidecar", &ok.replacen(from, to, 1)),
            Err(path.to_owned()),
            "{to}"
        );
    }
    assert_eq!(check("Sidecar", "{}"), Err("spec".to_owned()));
}
