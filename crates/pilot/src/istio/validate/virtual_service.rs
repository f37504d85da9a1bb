//! Rules of `VirtualService`.

use std::collections::BTreeSet;

use base::FieldError;

use super::{
    Check, duration, each, export_to, label, labels, optional, percent, port_number, regex,
    string_match, subnet, wildcard_host, wrong,
};
use crate::istio::virtual_service::{
    Destination, Fault, Headers, HttpMatch, HttpRoute, L4Match, Retries, RouteDestination,
    VirtualService,
};

/// Conditions that `retryOn` may name, beside status codes.
const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Names of the gRPC status codes, by number.
pub const GRPC_STATUS: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Checks a VirtualService.
pub fn virtual_service(spec: &VirtualService, warnings: &mut Vec<String>) -> Check {
    if spec.hosts.is_empty() {
        return Err(FieldError::at(
            "hosts",
            "virtual service must have at least one host",
        ));
    }
    let for_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == "mesh");
    let mut hosts = BTreeSet::new();
    each("hosts", &spec.hosts, |host| {
        if host == "*" && for_mesh {
            return Err(wrong(
                "wildcard host * is not allowed for virtual services bound to the mesh gateway",
            ));
        }
        if !hosts.insert(host) {
            return Err(wrong(format!("duplicate host `{host}`")));
        }
        if host.parse::<std::net::IpAddr>().is_ok() {
            return Ok(());
        }
        wildcard_host(host)
    })?;
    if spec.gateways.iter().any(|name| name != "mesh") {
        warnings.push("spec.gateways: only `mesh` is served, there are no gateways yet".to_owned());
    }
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        return Err(wrong(
            "http, tcp or tls must be provided in virtual service",
        ));
    }
    each("http", &spec.http, |route| http_route(route, warnings))?;
    each("tcp", &spec.tcp, |route| {
        each("match", &route.matches, l4_match)?;
        destinations(&route.route)
    })?;
    if !spec.tls.is_empty() {
        warnings.push("spec.tls: has no effect: TLS is not routed by server name yet".to_owned());
    }
    each("tls", &spec.tls, |route| {
        if route.matches.is_empty() {
            return Err(wrong("TLS route must have at least one match").in_field("match"));
        }
        each("match", &route.matches, |item| {
            if item.sni_hosts.is_empty() {
                return Err(wrong("TLS match must have at least one SNI host").in_field("sniHosts"));
            }
            each("sniHosts", &item.sni_hosts, |host| wildcard_host(host))
        })?;
        destinations(&route.route)
    })?;
    export_to(&spec.export_to)
}

fn http_route(route: &HttpRoute, warnings: &mut Vec<String>) -> Check {
    if route.delegate.is_some() {
        return Err(wrong("is not implemented").in_field("delegate"));
    }
    if route.cors_policy.is_some() {
        return Err(wrong("is not implemented").in_field("corsPolicy"));
    }
    let exclusive = |one: bool, other: bool, names: &str| {
        if one && other {
            Err(wrong(format!("HTTP route cannot contain both {names}")))
        } else {
            Ok(())
        }
    };
    let routed = !route.route.is_empty();
    let (redirect, direct) = (route.redirect.is_some(), route.direct_response.is_some());
    exclusive(routed, redirect, "route and redirect")?;
    exclusive(routed, direct, "route and direct_response")?;
    exclusive(redirect, direct, "redirect and direct_response")?;
    exclusive(redirect, route.fault.is_some(), "fault and redirect")?;
    exclusive(redirect, route.rewrite.is_some(), "rewrite and redirect")?;
    exclusive(
        direct,
        route.rewrite.is_some(),
        "rewrite and direct_response",
    )?;
    exclusive(
        route.mirror.is_some(),
        !route.mirrors.is_empty(),
        "mirror and mirrors",
    )?;
    if !routed && !redirect && !direct {
        return Err(wrong("HTTP route, redirect or direct_response is required"));
    }
    if !route.name.is_empty() && route.name.len() > 256 {
        return Err(wrong("is longer than 256 characters").in_field("name"));
    }
    each("match", &route.matches, |item| http_match(item, warnings))?;

    let weights: i64 = route.route.iter().map(|item| i64::from(item.weight)).sum();
    each("route", &route.route, |item| {
        weight(item.weight)?;
        headers(item.headers.as_ref())?;
        destination(item.destination.as_ref())
    })?;
    if route.route.len() > 1 && weights == 0 {
        return Err(wrong("total destination weight = 0").in_field("route"));
    }
    optional("redirect", route.redirect.as_ref(), |redirect| {
        if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
            return Err(
                wrong(format!("{} is not a redirect code", redirect.redirect_code))
                    .in_field("redirectCode"),
            );
        }
        if redirect.port.is_some() && redirect.derive_port.is_some() {
            return Err(wrong("has both port and derivePort"));
        }
        optional("port", redirect.port.as_ref(), |number| {
            port_number(*number)
        })?;
        if redirect.uri.is_empty()
            && redirect.authority.is_empty()
            && redirect.scheme.is_empty()
            && redirect.redirect_code == 0
            && redirect.port.is_none()
            && redirect.derive_port.is_none()
        {
            return Err(wrong(
                "redirect must specify URI, authority, scheme, or redirect code",
            ));
        }
        Ok(())
    })?;
    optional("directResponse", route.direct_response.as_ref(), |direct| {
        if !(100..=599).contains(&direct.status) {
            return Err(
                wrong(format!("{} is not an HTTP status", direct.status)).in_field("status")
            );
        }
        optional("body", direct.body.as_ref(), |body| {
            if body.string.is_some() == body.bytes.is_some() {
                return Err(wrong("needs one of string and bytes"));
            }
            let size = body
                .string
                .as_ref()
                .or(body.bytes.as_ref())
                .map_or(0, String::len);
            if size > 1 << 20 {
                return Err(wrong("is larger than 1 MiB"));
            }
            Ok(())
        })
    })?;
    optional("rewrite", route.rewrite.as_ref(), |rewrite| {
        if rewrite.uri.is_empty()
            && rewrite.authority.is_empty()
            && rewrite.uri_regex_rewrite.is_none()
        {
            return Err(wrong("rewrite must specify path, host, or both"));
        }
        if !rewrite.uri.is_empty() && rewrite.uri_regex_rewrite.is_some() {
            return Err(wrong(
                "rewrite may only contain one of URI or uriRegexRewrite",
            ));
        }
        optional(
            "uriRegexRewrite",
            rewrite.uri_regex_rewrite.as_ref(),
            |item| regex(&item.pattern).map_err(|e| e.in_field("match")),
        )
    })?;
    optional("timeout", route.timeout.as_ref(), |timeout| {
        if timeout.0.is_zero() {
            Ok(())
        } else {
            duration(timeout.0)
        }
    })?;
    optional("retries", route.retries.as_ref(), retries)?;
    optional("fault", route.fault.as_ref(), fault)?;
    optional("mirror", route.mirror.as_ref(), |mirror| {
        destination_fields(mirror)
    })?;
    each("mirrors", &route.mirrors, |mirror| {
        optional("percentage", mirror.percentage.as_ref(), |value| {
            percent(value.value)
        })?;
        destination(mirror.destination.as_ref())
    })?;
    optional(
        "mirrorPercentage",
        route.mirror_percentage.as_ref(),
        |value| percent(value.value),
    )?;
    optional("mirrorPercent", route.mirror_percent.as_ref(), |value| {
        percent(f64::from(*value))
    })?;
    if route.mirror.is_some() || !route.mirrors.is_empty() {
        warnings.push("spec.http.mirror: has no effect in mosn yet, only in Envoy".to_owned());
    }
    headers(route.headers.as_ref())
}

fn http_match(item: &HttpMatch, warnings: &mut Vec<String>) -> Check {
    for (field, value) in [
        ("uri", &item.uri),
        ("scheme", &item.scheme),
        ("method", &item.method),
        ("authority", &item.authority),
    ] {
        optional(field, value.as_ref(), string_match)?;
    }
    for (field, map) in [
        ("headers", &item.headers),
        ("withoutHeaders", &item.without_headers),
        ("queryParams", &item.query_params),
    ] {
        for (name, value) in map {
            if name.is_empty() {
                return Err(wrong("header name cannot be empty").in_field(field));
            }
            string_match(value).map_err(|e| e.in_field(name).in_field(field))?;
            // Envoy has no prefix match of query parameters in Istio's generated routes.
            if field == "queryParams" && value.prefix.is_some() {
                return Err(wrong("prefix is not supported for query parameters")
                    .in_field(name)
                    .in_field(field));
            }
        }
    }
    optional("port", item.port.as_ref(), |number| port_number(*number))?;
    labels(&item.source_labels).map_err(|e| e.in_field("sourceLabels"))?;
    if !item.stat_prefix.is_empty() {
        warnings.push("spec.http.match.statPrefix: has no effect yet".to_owned());
    }
    Ok(())
}

fn weight(weight: i32) -> Check {
    if weight < 0 {
        return Err(wrong(format!("{weight} is negative")).in_field("weight"));
    }
    Ok(())
}

fn destination(item: Option<&Destination>) -> Check {
    let item = item.ok_or_else(|| wrong("is required").in_field("destination"))?;
    destination_fields(item).map_err(|e| e.in_field("destination"))
}

fn destination_fields(item: &Destination) -> Check {
    match item.host.as_str() {
        "" => return Err(wrong("is required").in_field("host")),
        "*" => return Err(wrong("`*` is not a destination").in_field("host")),
        host => wildcard_host(host).map_err(|e| e.in_field("host"))?,
    }
    if !item.subset.is_empty() {
        label(&item.subset).map_err(|e| e.in_field("subset"))?;
    }
    optional("port", item.port.as_ref(), |port| {
        port_number(port.number).map_err(|e| e.in_field("number"))
    })
}

fn destinations(items: &[RouteDestination]) -> Check {
    if items.is_empty() {
        return Err(wrong("at least one destination is required").in_field("route"));
    }
    each("route", items, |item| {
        weight(item.weight)?;
        destination(item.destination.as_ref())
    })?;
    let weights: i64 = items.iter().map(|item| i64::from(item.weight)).sum();
    if items.len() > 1 && weights == 0 {
        return Err(wrong("total destination weight = 0").in_field("route"));
    }
    Ok(())
}

fn l4_match(item: &L4Match) -> Check {
    each("destinationSubnets", &item.destination_subnets, |text| {
        subnet(text)
    })?;
    if !item.source_subnet.is_empty() {
        return Err(wrong("is not implemented").in_field("sourceSubnet"));
    }
    if !item.destination_subnets.is_empty() {
        return Err(wrong("is not implemented").in_field("destinationSubnets"));
    }
    optional("port", item.port.as_ref(), |number| port_number(*number))?;
    labels(&item.source_labels).map_err(|e| e.in_field("sourceLabels"))
}

fn retries(retries: &Retries) -> Check {
    if retries.attempts < 0 {
        return Err(wrong("cannot be negative").in_field("attempts"));
    }
    if retries.attempts == 0 && (retries.per_try_timeout.is_some() || !retries.retry_on.is_empty())
    {
        return Err(wrong(
            "http retry policy configured when attempts are set to 0 (disabled)",
        ));
    }
    if retries.retry_remote_localities == Some(true) {
        return Err(wrong("is not implemented").in_field("retryRemoteLocalities"));
    }
    optional("perTryTimeout", retries.per_try_timeout.as_ref(), |value| {
        duration(value.0)
    })?;
    optional("backoff", retries.backoff.as_ref(), |value| {
        duration(value.0)
    })?;
    for word in retries
        .retry_on
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let is_status = word
            .parse::<u16>()
            .is_ok_and(|status| (100..600).contains(&status));
        if !is_status && !RETRY_ON.contains(&word) {
            return Err(
                wrong(format!("`{word}` is not a valid retryOn policy")).in_field("retryOn")
            );
        }
    }
    Ok(())
}

fn fault(fault: &Fault) -> Check {
    if fault.delay.is_none() && fault.abort.is_none() {
        return Err(wrong(
            "HTTP fault injection must have an abort and/or a delay",
        ));
    }
    optional("delay", fault.delay.as_ref(), |delay| {
        optional("percentage", delay.percentage.as_ref(), |value| {
            percent(value.value)
        })?;
        optional("percent", delay.percent.as_ref(), |value| {
            percent(f64::from(*value))
        })?;
        match &delay.fixed_delay {
            Some(value) => duration(value.0).map_err(|e| e.in_field("fixedDelay")),
            None => Err(wrong("is required").in_field("fixedDelay")),
        }
    })?;
    optional("abort", fault.abort.as_ref(), |abort| {
        optional("percentage", abort.percentage.as_ref(), |value| {
            percent(value.value)
        })?;
        match (abort.http_status, &abort.grpc_status) {
            (Some(status), None) if (200..600).contains(&status) => Ok(()),
            (Some(status), None) => Err(wrong(format!(
                "HTTP status {status} is not in range 200-599"
            ))
            .in_field("httpStatus")),
            (None, Some(name)) if GRPC_STATUS.contains(&name.as_str()) => Ok(()),
            (None, Some(name)) => {
                Err(wrong(format!("`{name}` is not a gRPC status")).in_field("grpcStatus"))
            }
            _ => Err(wrong("needs one of httpStatus and grpcStatus")),
        }
    })
}

fn headers(headers: Option<&Headers>) -> Check {
    let Some(headers) = headers else {
        return Ok(());
    };
    for (side, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        let Some(operations) = operations else {
            continue;
        };
        let at = |e: FieldError, field: &str| e.in_field(field).in_field(side).in_field("headers");
        let named = [
            ("set", operations.set.keys().collect::<Vec<_>>()),
            ("add", operations.add.keys().collect()),
            ("remove", operations.remove.iter().collect()),
        ];
        for (field, names) in named {
            for name in names {
                let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
                let bare = name.strip_prefix(':').unwrap_or(name);
                if bare.is_empty() || !bare.chars().all(token) {
                    return Err(at(wrong(format!("`{name}` is not a header name")), field));
                }
                // Istio lets `:authority` be set, and no other pseudo header.
                let pseudo = name.starts_with(':') && !(field == "set" && name == ":authority");
                if pseudo || (field == "remove" && name.eq_ignore_ascii_case("host")) {
                    return Err(at(wrong(format!("`{name}` cannot be changed")), field));
                }
            }
        }
    }
    Ok(())
}
