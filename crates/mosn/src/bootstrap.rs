//! Flags, and the bootstrap (`envoy.config.bootstrap.v3.Bootstrap`) in YAML or JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use api::envoy::config::bootstrap::v3::Bootstrap;
use api::envoy::config::core::v3::{
    ApiConfigSource, ConfigSource, Node, api_config_source::ApiType, grpc_service::TargetSpecifier,
};
use base::FieldError;
use clap::{Parser, ValueEnum};
use prost::{Message, Name};
use serde_json::Value;

use crate::config::Options;
use crate::refuse_fields;

/// What the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Serve.
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// Load everything, then exit before serving.
    #[value(name = "init_only")]
    InitOnly,
}

/// The flags of Envoy that mosn takes.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "mosn",
    version,
    about = "The data plane: a proxy for HTTP, Dubbo and Bolt that is configured as Envoy is",
    after_help = "Example:\n  mosn -c bootstrap.yaml --concurrency 2 --service-node sidecar~10.0.0.1~app.ns~ns.svc.cluster.local"
)]
pub struct Flags {
    /// Bootstrap file, YAML or JSON
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Bootstrap as YAML text, merged over the file
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// What to do
    #[arg(long, value_enum, default_value = "serve", ignore_case = true)]
    pub mode: Mode,
    /// Number of worker threads [default: number of cores]
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// Sets node.id over the bootstrap's
    #[arg(long, value_name = "NAME")]
    pub service_node: Option<String>,
    /// Sets node.cluster over the bootstrap's
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Sets node.locality.zone over the bootstrap's
    #[arg(long, value_name = "NAME")]
    pub service_zone: Option<String>,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, default_value = "info")]
    pub log_level: String,
    /// Write the log to this file instead of stderr
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// How long access logs may stay in memory, ms
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    pub file_flush_interval_msec: u64,
    /// How long connections of a removed listener may live on, s
    #[arg(long, default_value_t = 600, value_name = "S")]
    pub drain_time_s: u64,
    /// How long a stopping process waits for its calls, s
    #[arg(long, default_value_t = 15, value_name = "S")]
    pub shutdown_time_s: u64,
    /// Writes the admin's address to this file once it listens
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// Distinguishes several processes on one machine; there is no hot restart yet, so it is only shown
    #[arg(long, default_value_t = 0)]
    pub base_id: u32,
    /// Part of hot restart, which is not there yet
    #[arg(long, default_value_t = 0, hide = true)]
    pub restart_epoch: u32,
    /// Part of hot restart, which is not there yet
    #[arg(long, hide = true)]
    pub disable_hot_restart: bool,
    /// Part of hot restart, which is not there yet
    #[arg(long, hide = true)]
    pub use_dynamic_base_id: bool,
    /// Part of hot restart, which is not there yet
    #[arg(long, default_value_t = 900, hide = true)]
    pub parent_shutdown_time_s: u64,
    /// Taken for compatibility: draining is gradual by nature here
    #[arg(long, default_value = "gradual", hide = true)]
    pub drain_strategy: String,
    /// Taken for compatibility: the log has one format
    #[arg(long, hide = true)]
    pub log_format: Option<String>,
    /// Taken for compatibility: use --log-level
    #[arg(long, hide = true)]
    pub component_log_level: Option<String>,
    /// Taken for compatibility
    #[arg(long, hide = true)]
    pub local_address_ip_version: Option<String>,
    /// Taken for compatibility
    #[arg(long, hide = true)]
    pub cpuset_threads: bool,
}

impl Flags {
    /// Number of workers: the flag, or one for each core.
    pub fn workers(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.concurrency.unwrap_or(cores).max(1)
    }

    /// Settings that configuration is compiled with.
    pub fn options(&self, node: &Node) -> Options {
        Options {
            concurrency: self.workers(),
            node_id: node.id.clone(),
            node_cluster: node.cluster.clone(),
            file_flush_interval: Duration::from_millis(self.file_flush_interval_msec.max(1)),
            drain_time: Duration::from_secs(self.drain_time_s),
            shutdown_time: Duration::from_secs(self.shutdown_time_s),
        }
    }
}

/// Reads file and text, merges them, applies the node flags and checks what can be checked without compiling.
pub fn load(flags: &Flags) -> anyhow::Result<Bootstrap> {
    let mut merged = match &flags.config_path {
        Some(path) => read(path)?,
        None if flags.config_yaml.is_none() => {
            bail!("no configuration: give -c FILE or --config-yaml TEXT")
        }
        None => Value::Object(Default::default()),
    };
    if let Some(text) = &flags.config_yaml {
        let over = api::yaml::to_value(text).context("--config-yaml")?;
        merge(&mut merged, over);
    }
    let bytes = api::json::encode(&Bootstrap::full_name(), &merged)?;
    api::validate::message::<Bootstrap>(&bytes)?;
    let mut bootstrap = Bootstrap::decode(bytes.as_slice())?;
    let node = bootstrap.node.get_or_insert_default();
    if let Some(id) = &flags.service_node {
        node.id.clone_from(id);
    }
    if let Some(cluster) = &flags.service_cluster {
        node.cluster.clone_from(cluster);
    }
    if let Some(zone) = &flags.service_zone {
        node.locality.get_or_insert_default().zone.clone_from(zone);
    }
    node.user_agent_name = "mosn".to_owned();
    check(&bootstrap)?;
    Ok(bootstrap)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the bootstrap {}", path.display()))?;
    let json = path.extension().is_some_and(|e| e == "json");
    let value = if json {
        serde_json::from_str(&text).map_err(anyhow::Error::from)
    } else {
        api::yaml::to_value(&text).map_err(Into::into)
    };
    value.with_context(|| path.display().to_string())
}

/// Protobuf's merge: messages field by field, lists one after the other, everything else replaced.
fn merge(into: &mut Value, over: Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (key, value) in over {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(over)) => into.extend(over),
        (into, over) => *into = over,
    }
}

fn check(b: &Bootstrap) -> Result<(), FieldError> {
    refuse_fields!(b; hds_config, tracing, stats_sinks, xds_delegate_extension, xds_config_tracker_extension, config_sources,
        default_config_source, certificate_provider_instances, default_regex_engine, fatal_actions, header_prefix,
        default_socket_interface);
    if let Some(fixed) = &b.static_resources
        && !fixed.secrets.is_empty()
    {
        return Err(FieldError::at(
            "static_resources.secrets",
            "is not supported",
        ));
    }
    Ok(())
}

/// Where xDS is asked, and for what.
#[derive(Clone, Debug, Default)]
pub struct Dynamic {
    /// Cluster that carries the ADS stream.
    pub ads_cluster: Option<String>,
    /// Whether clusters come by CDS.
    pub cds: bool,
    /// Whether listeners come by LDS.
    pub lds: bool,
}

/// Reads `dynamic_resources`.
pub fn dynamic(b: &Bootstrap) -> Result<Dynamic, FieldError> {
    let Some(d) = &b.dynamic_resources else {
        return Ok(Dynamic::default());
    };
    let at = |e: FieldError| e.in_field("dynamic_resources");
    (|| {
        refuse_fields!(d; cds_resources_locator, lds_resources_locator);
        let over_ads = |source: &Option<ConfigSource>, name: &str| match source {
            None => Ok(false),
            Some(s) => crate::cluster::config::ads_fetch_timeout(s)
                .map(|_| true)
                .map_err(|e| e.in_field(name)),
        };
        let cds = over_ads(&d.cds_config, "cds_config")?;
        let lds = over_ads(&d.lds_config, "lds_config")?;
        let ads_cluster = d
            .ads_config
            .as_ref()
            .map(ads_cluster)
            .transpose()
            .map_err(|e| e.in_field("ads_config"))?;
        let clusters = b.static_resources.iter().flat_map(|fixed| &fixed.clusters);
        if let Some(name) = &ads_cluster
            && !clusters.into_iter().any(|cluster| cluster.name == *name)
        {
            return Err(FieldError::at(
                "ads_config.grpc_services[0].envoy_grpc.cluster_name",
                format!("cluster {name:?} is not in static_resources"),
            ));
        }
        if (cds || lds) && ads_cluster.is_none() {
            return Err(FieldError::at(
                "ads_config",
                "is required when cds_config or lds_config is ads",
            ));
        }
        Ok(Dynamic {
            ads_cluster,
            cds,
            lds,
        })
    })()
    .map_err(at)
}

fn ads_cluster(source: &ApiConfigSource) -> Result<String, FieldError> {
    refuse_fields!(source; cluster_names, rate_limit_settings, config_validators);
    if source.api_type() != ApiType::Grpc {
        return Err(FieldError::at(
            "api_type",
            format!(
                "{} is not supported, want GRPC",
                source.api_type().as_str_name()
            ),
        ));
    }
    let service = source
        .grpc_services
        .first()
        .ok_or_else(|| FieldError::at("grpc_services", "is required"))?;
    match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) if !grpc.cluster_name.is_empty() => {
            Ok(grpc.cluster_name.clone())
        }
        _ => Err(FieldError::at(
            "grpc_services[0].envoy_grpc.cluster_name",
            "is required",
        )),
    }
}
