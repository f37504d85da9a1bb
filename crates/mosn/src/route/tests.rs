use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[derive(Default)]
struct Request {
    authority: &'static str,
    path: &'static str,
    headers: BTreeMap<&'static str, &'static str>,
}

impl RequestView for Request {
    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn method(&self) -> &[u8] {
        self.headers.get(":method").unwrap_or(&"GET").as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        self.headers.get(":scheme").unwrap_or(&"http").as_bytes()
    }

    fn header(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
        self.headers.get(lower).map(|value| value.as_bytes().into())
    }

    /// A bar parts the values of a header.
    fn any_value(&self, lower: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        let values = self.headers.get(lower)?;
        Some(values.split('|').any(|value| test(value.as_bytes())))
    }
}

fn request(path: &'static str, headers: &[(&'static str, &'static str)]) -> Request {
    Request {
        authority: "a",
        path,
        headers: headers.iter().copied().collect(),
    }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "callers write the value in place"
)]
fn compile(config: Value) -> Result<Table, FieldError> {
    let config: RouteConfiguration = api::json::from_value(&config)?;
    let validate = config.validate_clusters.unwrap_or(false);
    Table::build(&config, validate, &|name| name != "missing")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "callers write the value in place"
)]
fn with_routes(routes: Value) -> Result<Table, FieldError> {
    compile(json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}))
}

fn forward(table: &Table, request: &Request, random: u64) -> Option<(String, Option<usize>)> {
    let entry = table.entry(table.find(request, random)?)?;
    let Action::Forward(forward) = &entry.route.action else {
        return None;
    };
    let pick = forward.choose(request, random)?;
    Some((pick.name.into_owned(), pick.weighted))
}

#[test]
fn conditions_choose_the_route() {
    for (name, matcher, request, expected) in [
        ("prefix", json!({"prefix": "/a"}), request("/ab", &[]), true),
        (
            "prefix, other",
            json!({"prefix": "/a"}),
            request("/b", &[]),
            false,
        ),
        (
            "prefix looks not at the query",
            json!({"prefix": "/a?x"}),
            request("/a?x", &[]),
            false,
        ),
        ("path", json!({"path": "/a"}), request("/a?x=1", &[]), true),
        (
            "path with fragment",
            json!({"path": "/a"}),
            request("/a#x", &[]),
            true,
        ),
        (
            "path, longer",
            json!({"path": "/a"}),
            request("/a/", &[]),
            false,
        ),
        (
            "path, case",
            json!({"path": "/A"}),
            request("/a", &[]),
            false,
        ),
        (
            "path, any case",
            json!({"path": "/A", "case_sensitive": false}),
            request("/a", &[]),
            true,
        ),
        (
            "regex",
            json!({"safe_regex": {"regex": "/b[io]t"}}),
            request("/bit?x", &[]),
            true,
        ),
        (
            "regex is full",
            json!({"safe_regex": {"regex": "/b[io]t"}}),
            request("/bits", &[]),
            false,
        ),
        (
            "separated",
            json!({"path_separated_prefix": "/api"}),
            request("/api/v1", &[]),
            true,
        ),
        (
            "separated, itself",
            json!({"path_separated_prefix": "/api"}),
            request("/api?x", &[]),
            true,
        ),
        (
            "separated, longer word",
            json!({"path_separated_prefix": "/api"}),
            request("/apis", &[]),
            false,
        ),
        (
            "method",
            json!({"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]}),
            request("/", &[(":method", "POST")]),
            true,
        ),
        (
            "all headers must match",
            json!({"prefix": "/", "headers": [{"name": "x"}, {"name": "y"}]}),
            request("/", &[("x", "1")]),
            false,
        ),
        (
            "query",
            json!({"prefix": "/", "query_parameters": [{"name": "v", "string_match": {"prefix": "2"}}]}),
            request("/x?u=1&v=23#v=3", &[]),
            true,
        ),
        (
            "grpc",
            json!({"prefix": "/", "grpc": {}}),
            request("/", &[("content-type", "application/grpc+proto")]),
            true,
        ),
        (
            "grpc-web is not",
            json!({"prefix": "/", "grpc": {}}),
            request("/", &[("content-type", "application/grpc-web")]),
            false,
        ),
    ] {
        let table = with_routes(json!([{"match": matcher, "route": {"cluster": "c"}}])).unwrap();
        assert_eq!(table.find(&request, 0).is_some(), expected, "{name}");
    }
}

#[test]
fn first_matching_route_wins_within_the_host() {
    let table = compile(json!({
        "ignore_port_in_host_matching": true,
        "virtual_hosts": [
            {"name": "one", "domains": ["one.com"], "routes": [
                {"match": {"prefix": "/x", "runtime_fraction": {"default_value": {"numerator": 10}}}, "route": {"cluster": "tenth"}},
                {"match": {"prefix": "/x"}, "route": {"cluster": "x"}},
            ]},
            {"name": "any", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": {"cluster": "any"}}]},
        ],
    }))
    .unwrap();
    for (authority, path, random, expected) in [
        ("one.com", "/x", 109, Some("tenth")),
        ("one.com", "/x", 110, Some("x")),
        ("ONE.com:8080", "/x", 50, Some("x")),
        ("one.com", "/y", 0, None),
        ("[::1]:80", "/y", 0, Some("any")),
        ("", "*", 0, Some("any")),
    ] {
        let request = Request {
            authority,
            path,
            ..Default::default()
        };
        let cluster = forward(&table, &request, random).map(|(name, _)| name);
        assert_eq!(cluster.as_deref(), expected, "{authority}{path} {random}");
    }
    assert_eq!(
        table.cluster_names().collect::<Vec<_>>(),
        ["tenth", "x", "any"]
    );
}

#[test]
fn weights_split_and_carry_their_own_settings() {
    let table = with_routes(json!([{"match": {"prefix": "/"}, "route": {
        "metadata_match": {"filter_metadata": {"envoy.lb": {"stage": "prod"}}},
        "host_rewrite_literal": "of-route",
        "weighted_clusters": {"clusters": [
            {"name": "a", "weight": 80, "metadata_match": {"filter_metadata": {"envoy.lb": {"version": "1"}}}},
            {"name": "zero", "weight": 0},
            {"cluster_header": "x-to", "weight": 20, "host_rewrite_literal": "of-cluster"},
        ]},
    }}]))
    .unwrap();
    let request = request("/", &[("x-to", "named")]);
    for (random, expected) in [
        (0, ("a", 0)),
        (79, ("a", 0)),
        (80, ("named", 2)),
        (199, ("named", 2)),
        (200, ("a", 0)),
    ] {
        let found = forward(&table, &request, random);
        assert_eq!(
            found,
            Some((expected.0.to_owned(), Some(expected.1))),
            "{random}"
        );
    }
    assert_eq!(
        forward(&table, &self::request("/", &[]), 99),
        None,
        "no header to name the cluster"
    );

    let entry = table.entry(table.find(&request, 0).unwrap()).unwrap();
    let Action::Forward(forward) = &entry.route.action else {
        panic!("not a forward");
    };
    let (first, last) = (
        forward.choose(&request, 0).unwrap(),
        forward.choose(&request, 99).unwrap(),
    );
    assert_eq!(
        first.metadata_match.unwrap().keys().collect::<Vec<_>>(),
        ["stage", "version"]
    );
    assert_eq!(
        last.metadata_match.unwrap().keys().collect::<Vec<_>>(),
        ["stage"]
    );
    assert_eq!(
        first.host_rewrite.rewrite(&request).unwrap().as_ref(),
        b"of-route"
    );
    assert_eq!(
        last.host_rewrite.rewrite(&request).unwrap().as_ref(),
        b"of-cluster"
    );
}

#[test]
fn forward_has_envoys_defaults_and_the_hosts_retry_policy() {
    let table = compile(json!({"virtual_hosts": [{
        "name": "v", "domains": ["*"], "retry_policy": {"retry_on": "5xx", "num_retries": 3},
        "routes": [
            {"match": {"path": "/default"}, "route": {"cluster": "c"}},
            {"match": {"path": "/own"}, "route": {
                "cluster": "c", "timeout": "0s", "retry_policy": {"retry_on": "reset"}, "idle_timeout": "0s", "priority": "HIGH",
                "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
                "upgrade_configs": [{"upgrade_type": "WebSocket", "enabled": false}],
                "cluster_not_found_response_code": "NOT_FOUND",
            }},
        ],
    }]}))
    .unwrap();
    let get = |path| {
        let entry = table
            .entry(table.find(&request(path, &[]), 0).unwrap())
            .unwrap();
        match &entry.route.action {
            Action::Forward(forward) => forward,
            Action::Redirect(_) | Action::Direct(_) => panic!("not a forward"),
        }
    };
    let default = get("/default");
    assert_eq!(default.timeout, Some(Duration::from_secs(15)));
    assert_eq!(
        (
            default.idle_timeout,
            default.max_stream_duration,
            default.grpc_timeout
        ),
        (None, None, None)
    );
    assert_eq!(default.retry.as_ref().unwrap().retries, 3);
    assert_eq!(default.not_found_status, 503);
    let own = get("/own");
    assert_eq!(own.timeout, None);
    assert_eq!(own.retry.as_ref().unwrap().on, RetryOn::RESET);
    assert_eq!(
        (own.idle_timeout, own.max_stream_duration),
        (Some(Duration::ZERO), Some(Duration::ZERO))
    );
    assert_eq!(
        own.grpc_timeout,
        Some(GrpcTimeout {
            max: Duration::ZERO,
            offset: Duration::ZERO
        })
    );
    assert_eq!(own.upgrades, [("websocket".into(), false)]);
    assert_eq!(own.not_found_status, 404);
    assert_eq!(own.priority, crate::cluster::Priority::High);
}

#[test]
fn redirects_build_the_location() {
    let from = |authority, path, headers: &[(&'static str, &'static str)]| Request {
        authority,
        path,
        headers: headers.iter().copied().collect(),
    };
    let plain = || from("a.com:80", "/x/y?q=1", &[]);
    for (name, action, request, expected) in [
        (
            "host",
            json!({"host_redirect": "b.com"}),
            plain(),
            "http://b.com/x/y?q=1",
        ),
        (
            "https drops the default port",
            json!({"https_redirect": true}),
            plain(),
            "https://a.com/x/y?q=1",
        ),
        (
            "https keeps another port",
            json!({"https_redirect": true}),
            from("a.com:81", "/", &[]),
            "https://a.com:81/",
        ),
        (
            "same scheme keeps the port",
            json!({"path_redirect": "/z"}),
            plain(),
            "http://a.com:80/z?q=1",
        ),
        (
            "path without slash",
            json!({"path_redirect": "z"}),
            plain(),
            "http://a.com:80/z?q=1",
        ),
        (
            "port",
            json!({"port_redirect": 8443, "scheme_redirect": "https"}),
            plain(),
            "https://a.com:8443/x/y?q=1",
        ),
        (
            "port on IPv6",
            json!({"port_redirect": 1}),
            from("[::1]:80", "/", &[]),
            "http://[::1]:1/",
        ),
        (
            "path with query",
            json!({"path_redirect": "/z?r=2"}),
            plain(),
            "http://a.com:80/z?r=2",
        ),
        (
            "strip query",
            json!({"strip_query": true, "host_redirect": "b"}),
            plain(),
            "http://b/x/y",
        ),
        (
            "path, strip query",
            json!({"strip_query": true, "path_redirect": "/z"}),
            plain(),
            "http://a.com:80/z",
        ),
        (
            "prefix",
            json!({"prefix_rewrite": "/new"}),
            plain(),
            "http://a.com:80/new/y?q=1",
        ),
        (
            "regex",
            json!({"regex_rewrite": {"pattern": {"regex": "^/x/(.*)$"}, "substitution": "/w/\\1"}}),
            from("a.com", "/x/y?q=1", &[(":scheme", "https")]),
            "https://a.com/w/y?q=1",
        ),
    ] {
        let table = with_routes(json!([{"match": {"prefix": "/x"}, "redirect": action}, {"match": {"prefix": "/"}, "redirect": action}])).unwrap();
        let entry = table.entry(table.find(&request, 0).unwrap()).unwrap();
        let Action::Redirect(redirect) = &entry.route.action else {
            panic!("not a redirect");
        };
        assert_eq!(redirect.status, 301);
        assert_eq!(
            String::from_utf8_lossy(&redirect.location(&request)),
            expected,
            "{name}"
        );
    }
}

#[derive(Default)]
struct Headers(Vec<(String, Vec<u8>)>);

impl HeaderMap for Headers {
    fn get(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
        let values: Vec<&[u8]> = self
            .0
            .iter()
            .filter(|(name, _)| name == lower)
            .map(|(_, value)| value.as_slice())
            .collect();
        (!values.is_empty()).then(|| values.join(&b","[..]).into())
    }

    fn remove(&mut self, lower: &str) {
        self.0.retain(|(name, _)| name != lower);
    }

    fn set(&mut self, lower: &str, value: &[u8]) {
        self.remove(lower);
        self.append(lower, value);
    }

    fn append(&mut self, lower: &str, value: &[u8]) {
        self.0.push((lower.to_owned(), value.to_vec()));
    }
}

#[test]
fn header_levels_apply_in_envoys_order() {
    let add = |value: &str| {
        json!([{"header": {"key": "x-level", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
                                   {"header": {"key": "x-all", "value": value}}])
    };
    for (most_specific_wins, winner, all) in [
        (false, "table", "cluster,route,host,table"),
        (true, "cluster", "table,host,route,cluster"),
    ] {
        let table = compile(json!({
            "most_specific_header_mutations_wins": most_specific_wins,
            "request_headers_to_add": add("table"), "response_headers_to_add": add("table"),
            "virtual_hosts": [{
                "name": "v", "domains": ["*"], "request_headers_to_add": add("host"), "response_headers_to_add": add("host"),
                "routes": [{
                    "match": {"prefix": "/"}, "request_headers_to_add": add("route"), "response_headers_to_add": add("route"),
                    "route": {"weighted_clusters": {"clusters": [
                        {"name": "c", "weight": 1, "request_headers_to_add": add("cluster"), "response_headers_to_add": add("cluster")},
                    ]}},
                }],
            }],
        }))
        .unwrap();
        let entry = table
            .entry(table.find(&request("/", &[]), 0).unwrap())
            .unwrap();
        assert!(entry.has_request_headers(Some(0)) && entry.has_response_headers(None));
        let mut sent = Headers::default();
        entry.apply_request_headers(Some(0), &mut sent, &mut |_, _, _| {
            unreachable!("no operators")
        });
        let mut answered = Headers::default();
        entry.apply_response_headers(Some(0), &mut answered, &mut |_, _, _| {
            unreachable!("no operators")
        });
        for headers in [sent, answered] {
            assert_eq!(headers.get("x-level").unwrap().as_ref(), winner.as_bytes());
            assert_eq!(headers.get("x-all").unwrap().as_ref(), all.as_bytes());
        }
    }
}

#[test]
fn refusals_name_the_field() {
    let route = |route: Value| json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]});
    let to = |action: Value| route(json!({"match": {"prefix": "/"}, "route": action}));
    let place = "virtual_hosts[0].routes[0]";
    for (config, expected) in [
        (json!({"virtual_hosts": [{"name": "v"}]}), "virtual_hosts[0].domains: must not be empty".to_owned()),
        (json!({"virtual_hosts": [{"domains": ["*"]}]}), "virtual_hosts[0].name: must not be empty".to_owned()),
        (
            json!({"virtual_hosts": [{"name": "a", "domains": ["x"]}, {"name": "b", "domains": ["y", "X"]}]}),
            "virtual_hosts[1].domains[1]: only unique values for domains are permitted: duplicate entry of domain X".to_owned(),
        ),
        (json!({"vhds": {}}), "vhds: is not supported".to_owned()),
        (route(json!({"route": {"cluster": "c"}})), format!("{place}.match: is required")),
        (route(json!({"match": {"prefix": "/"}})), format!("{place}: action is required")),
        (
            route(json!({"match": {"connect_matcher": {}}, "route": {"cluster": "c"}})),
            format!("{place}.match.connect_matcher: is not supported"),
        ),
        (
            route(json!({"match": {"safe_regex": {"regex": "["}}, "route": {"cluster": "c"}})),
            format!("{place}.match.safe_regex.regex: invalid regular expression \"[\": unclosed character class"),
        ),
        (to(json!({})), format!("{place}.route: cluster_specifier is required")),
        (to(json!({"cluster": "c", "timeout": "-1s"})), format!("{place}.route.timeout: expected a duration not below 0, found -1s")),
        (
            to(json!({"cluster": "c", "request_mirror_policies": [{"cluster": "d"}]})),
            format!("{place}.route.request_mirror_policies: is not supported"),
        ),
        (
            to(json!({"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}})),
            format!("{place}.route.weighted_clusters.clusters: the sum of weights must be greater than 0"),
        ),
        (
            to(json!({"cluster": "c", "prefix_rewrite": "/a", "regex_rewrite": {}})),
            format!("{place}.route.regex_rewrite: conflicts with prefix_rewrite"),
        ),
        (
            route(json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "x".repeat(4097)}}})),
            format!("{place}.direct_response.body: response body size is 4097 bytes; maximum is 4096"),
        ),
        (
            route(json!({"match": {"prefix": "/"}, "route": {"cluster": "c"},
                "typed_per_filter_config": {"f": {"@type": "type.googleapis.com/envoy.config.core.v3.Node"}}})),
            format!("{place}.typed_per_filter_config[\"f\"].@type: envoy.config.core.v3.Node is not supported"),
        ),
        (
            json!({"validate_clusters": true, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "missing", "weight": 1}]}}}]}]}),
            format!("{place}.route.weighted_clusters.clusters[0].name: unknown cluster \"missing\""),
        ),
    ] {
        assert_eq!(compile(config.clone()).unwrap_err().to_string(), expected, "{config}");
    }
    assert!(
        compile(to(json!({"cluster": "missing"}))).is_ok(),
        "clusters are not validated unless asked for"
    );
}

#[test]
fn fault_of_the_most_specific_level_counts() {
    let disabled = json!({"f": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}});
    let fault = json!({"f": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}});
    let table = compile(json!({"typed_per_filter_config": disabled, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
        {"match": {"path": "/own"}, "route": {"cluster": "c"}, "typed_per_filter_config": fault},
        {"match": {"path": "/"}, "route": {"cluster": "c"}},
    ]}]}))
    .unwrap();
    let of = |path| {
        table
            .entry(table.find(&request(path, &[]), 0).unwrap())
            .unwrap()
            .fault(None)
    };
    assert!(matches!(of("/own"), FaultOverride::Config(_)));
    assert!(matches!(of("/"), FaultOverride::Disabled));
}

#[test]
fn any_one_value_of_a_header_matches() {
    let with = |matcher: Value| {
        with_routes(
            json!([{"match": {"prefix": "/", "headers": [matcher]}, "route": {"cluster": "c"}}]),
        )
        .unwrap()
    };
    let two = request("/", &[("x", "a|b")]);
    for (matcher, expected) in [
        (json!({"name": "x", "string_match": {"exact": "b"}}), true),
        (
            json!({"name": "x", "string_match": {"exact": "a,b"}}),
            false,
        ),
        (
            json!({"name": "x", "string_match": {"exact": "b"}, "invert_match": true}),
            false,
        ),
        (
            json!({"name": "x", "string_match": {"exact": "c"}, "invert_match": true}),
            true,
        ),
    ] {
        assert_eq!(
            with(matcher.clone()).find(&two, 0).is_some(),
            expected,
            "{matcher}"
        );
    }
}

proptest! {
    #[test]
    fn any_request_is_routed_without_panic(authority in ".{0,20}", path in "[/a?#:]{0,6}.{0,20}", random in any::<u64>()) {
        let rewrites = json!([
            {"match": {"path_separated_prefix": "/a"}, "route": {"cluster": "c", "prefix_rewrite": "/"}},
            {"match": {"safe_regex": {"regex": "/.*a"}}, "redirect": {"prefix_rewrite": "/x", "strip_query": true}},
            {"match": {"prefix": "/", "query_parameters": [{"name": "a"}]}, "redirect": {"https_redirect": true}},
            {"match": {"prefix": ""}, "redirect": {"port_redirect": 1}},
        ]);
        let table = compile(json!({"ignore_port_in_host_matching": true,
            "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": rewrites}]})).unwrap();
        let request = Request { authority: authority.leak(), path: path.leak(), ..Default::default() };
        let entry = table.entry(table.find(&request, random).unwrap()).unwrap();
        match &entry.route.action {
            Action::Forward(forward) => prop_assert!(forward.rewrite_path(request.path()).is_some()),
            Action::Redirect(redirect) => prop_assert!(redirect.location(&request).starts_with(b"http")),
            Action::Direct(_) => prop_assert!(false),
        }
    }
}
