//! Rules of `DestinationRule`.

use std::collections::BTreeSet;

use base::FieldError;

use super::{
    Check, duration, each, export_to, label, labels, optional, percent, port_number, wildcard_host,
    wrong,
};
use crate::istio::destination_rule::{
    ClientTls, ConnectionPoolSettings, DestinationRule, H2UpgradePolicy, LoadBalancer,
    OutlierDetection, TlsMode, TrafficPolicy,
};

/// Checks a DestinationRule.
pub fn destination_rule(spec: &DestinationRule, warnings: &mut Vec<String>) -> Check {
    if spec.host.is_empty() {
        return Err(FieldError::at("host", "is required"));
    }
    wildcard_host(&spec.host).map_err(|e| e.in_field("host"))?;
    if spec.workload_selector.is_some() {
        return Err(FieldError::at("workloadSelector", "is not implemented"));
    }
    optional("trafficPolicy", spec.traffic_policy.as_ref(), |policy| {
        traffic_policy(policy, warnings)
    })?;
    let mut names = BTreeSet::new();
    each("subsets", &spec.subsets, |subset| {
        label(&subset.name).map_err(|e| e.in_field("name"))?;
        if !names.insert(&subset.name) {
            return Err(wrong(format!("duplicate subset name `{}`", subset.name)).in_field("name"));
        }
        labels(&subset.labels).map_err(|e| e.in_field("labels"))?;
        optional("trafficPolicy", subset.traffic_policy.as_ref(), |policy| {
            traffic_policy(policy, warnings)
        })
    })?;
    export_to(&spec.export_to)
}

fn traffic_policy(policy: &TrafficPolicy, warnings: &mut Vec<String>) -> Check {
    if *policy == TrafficPolicy::default() {
        return Err(wrong("traffic policy must have at least one field"));
    }
    settings(
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
        warnings,
    )?;
    let mut numbers = BTreeSet::new();
    each("portLevelSettings", &policy.port_level_settings, |port| {
        let Some(number) = port.port.as_ref().map(|port| port.number) else {
            return Err(wrong("is required").in_field("port"));
        };
        port_number(number).map_err(|e| e.in_field("number").in_field("port"))?;
        if !numbers.insert(number) {
            return Err(wrong(format!("duplicate port {number}")).in_field("port"));
        }
        settings(
            port.load_balancer.as_ref(),
            port.connection_pool.as_ref(),
            port.outlier_detection.as_ref(),
            port.tls.as_ref(),
            warnings,
        )
    })
}

fn settings(
    balancer: Option<&LoadBalancer>,
    pool: Option<&ConnectionPoolSettings>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTls>,
    warnings: &mut Vec<String>,
) -> Check {
    optional("loadBalancer", balancer, |balancer| {
        load_balancer(balancer, warnings)
    })?;
    optional("connectionPool", pool, |pool| {
        connection_pool(pool, warnings)
    })?;
    optional("outlierDetection", outlier, outlier_detection)?;
    if outlier.is_some() {
        warnings.push("outlierDetection: has no effect in mosn yet, only in Envoy".to_owned());
    }
    optional("tls", tls, |tls| match tls.mode {
        TlsMode::Disable => Ok(()),
        TlsMode::Simple | TlsMode::Mutual | TlsMode::IstioMutual => {
            Err(wrong("is not implemented: there is no TLS to endpoints yet").in_field("mode"))
        }
    })
}

fn load_balancer(balancer: &LoadBalancer, warnings: &mut Vec<String>) -> Check {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        return Err(wrong("has both simple and consistentHash"));
    }
    optional(
        "consistentHash",
        balancer.consistent_hash.as_ref(),
        |hash| {
            let keys = usize::from(hash.http_header_name.is_some())
                + usize::from(hash.http_cookie.is_some())
                + usize::from(hash.use_source_ip.is_some())
                + usize::from(hash.http_query_parameter_name.is_some());
            if keys != 1 {
                return Err(wrong(
                    "needs one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
                ));
            }
            warnings.push(
                "loadBalancer.consistentHash: has no effect yet: least request is used".to_owned(),
            );
            Ok(())
        },
    )?;
    for (field, given) in [
        ("localityLbSetting", balancer.locality_lb_setting.is_some()),
        (
            "zoneAwareLbSetting",
            balancer.zone_aware_lb_setting.is_some(),
        ),
        ("warmup", balancer.warmup.is_some()),
        (
            "warmupDurationSecs",
            balancer.warmup_duration_secs.is_some(),
        ),
    ] {
        if given {
            warnings.push(format!("loadBalancer.{field}: has no effect yet"));
        }
    }
    Ok(())
}

/// Checks `connectionPool`, of a DestinationRule or a Sidecar.
pub(super) fn connection_pool(pool: &ConnectionPoolSettings, warnings: &mut Vec<String>) -> Check {
    if pool.tcp.is_none() && pool.http.is_none() {
        return Err(wrong("connection pool must have at least one field"));
    }
    optional("tcp", pool.tcp.as_ref(), |tcp| {
        for (field, value) in [
            ("connectTimeout", tcp.connect_timeout),
            ("maxConnectionDuration", tcp.max_connection_duration),
        ] {
            optional(field, value.as_ref(), |value| duration(value.0))?;
        }
        if tcp.max_connection_duration.is_some() {
            warnings.push("connectionPool.tcp.maxConnectionDuration: has no effect in mosn yet, only in Envoy".to_owned());
        }
        Ok(())
    })?;
    optional("http", pool.http.as_ref(), |http| {
        optional("idleTimeout", http.idle_timeout.as_ref(), |value| {
            if value.0.is_zero() {
                Ok(())
            } else {
                duration(value.0)
            }
        })?;
        if http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) {
            if http.use_client_protocol == Some(true) {
                return Err(wrong(
                    "useClientProtocol must not be true with h2UpgradePolicy UPGRADE",
                ));
            }
            warnings.push("connectionPool.http.h2UpgradePolicy: has no effect yet".to_owned());
        }
        Ok(())
    })
}

fn outlier_detection(outlier: &OutlierDetection) -> Check {
    for (field, value) in [
        ("interval", outlier.interval),
        ("baseEjectionTime", outlier.base_ejection_time),
    ] {
        optional(field, value.as_ref(), |value| duration(value.0))?;
    }
    for (field, value) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        optional(field, value.as_ref(), |value| percent(f64::from(*value)))?;
    }
    if outlier.consecutive_local_origin_failures.is_some()
        && outlier.split_external_local_origin_errors != Some(true)
    {
        return Err(wrong("needs splitExternalLocalOriginErrors")
            .in_field("consecutiveLocalOriginFailures"));
    }
    Ok(())
}
