//! `/server_info`, `/ready` and `/memory`.

use axum::http::StatusCode;
use serde_json::json;

use super::{Reply, Server};
use crate::bootstrap::{Flags, Mode};
use crate::server::State;

/// The server's state under the names of `envoy.admin.v3.ServerInfo.State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Live,
    Draining,
    Initializing,
}

impl Life {
    pub(super) fn of(state: &State) -> Self {
        if state.health_failed || state.draining {
            Self::Draining
        } else if state.live {
            Self::Live
        } else {
            Self::Initializing
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::Initializing => "INITIALIZING",
        }
    }

    /// The enum's number, which is the value of the gauge `server.state`.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::Initializing => 3,
        }
    }
}

/// `/ready`.
pub(super) async fn ready(server: &Server) -> Reply {
    let Some(life) = server.with(|state| Life::of(state)).await else {
        return Reply::ending();
    };
    let text = format!("{}\n", life.name());
    match life {
        Life::Live => Reply::text(text),
        Life::Draining | Life::Initializing => Reply::error(StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

/// Revision, version, tree, build and TLS library, in the places where Envoy has them.
fn version() -> String {
    let build = if cfg!(debug_assertions) {
        "DEBUG"
    } else {
        "RELEASE"
    };
    format!("mosn/{}/Clean/{build}/none", env!("CARGO_PKG_VERSION"))
}

/// `/server_info`.
pub(super) async fn server_info(server: &Server) -> Reply {
    let info = server.with(|state| {
        let uptime = format!("{}s", state.started.elapsed().as_secs());
        let node =
            api::json::to_value(state.bootstrap.node.as_ref().unwrap_or(&Default::default()));
        json!({
            "version": version(),
            "state": Life::of(state).name(),
            "uptime_current_epoch": uptime,
            "uptime_all_epochs": uptime,
            "hot_restart_version": "disabled",
            "command_line_options": options(&state.flags),
            "node": node.unwrap_or_default(),
        })
    });
    match info.await {
        Some(info) => Reply::json(&info),
        None => Reply::ending(),
    }
}

fn options(flags: &Flags) -> serde_json::Value {
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    };
    let mode = match flags.mode {
        Mode::Serve => "Serve",
        Mode::Validate => "Validate",
        Mode::InitOnly => "InitOnly",
    };
    let flush = std::time::Duration::from_millis(flags.file_flush_interval_msec);
    json!({
        "base_id": flags.base_id.to_string(),
        "concurrency": flags.workers(),
        "config_path": path(&flags.config_path),
        "config_yaml": flags.config_yaml.clone().unwrap_or_default(),
        "admin_address_path": path(&flags.admin_address_path),
        "log_level": flags.log_level,
        "log_path": path(&flags.log_path),
        "service_cluster": flags.service_cluster.clone().unwrap_or_default(),
        "service_node": flags.service_node.clone().unwrap_or_default(),
        "service_zone": flags.service_zone.clone().unwrap_or_default(),
        "file_flush_interval": format!("{}.{:03}s", flush.as_secs(), flush.subsec_millis()),
        "drain_time": format!("{}s", flags.drain_time_s),
        "parent_shutdown_time": format!("{}s", flags.parent_shutdown_time_s),
        "mode": mode,
        "disable_hot_restart": true,
        "restart_epoch": flags.restart_epoch,
    })
}

/// Bytes of memory, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Anonymous pages that were touched: the heap, and little else.
    pub(super) heap: u64,
    /// Everything resident.
    pub(super) resident: u64,
}

impl Memory {
    /// Zeros where there is no `/proc`.
    pub(super) fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line
                .and_then(|line| line.trim().strip_suffix(" kB"))
                .and_then(|text| text.parse().ok());
            number.unwrap_or(0u64).saturating_mul(1024)
        };
        Self {
            heap: kib("RssAnon"),
            resident: kib("VmRSS"),
        }
    }
}

/// `/memory`.
pub(super) fn memory() -> Reply {
    let memory = Memory::now();
    Reply::json(&json!({
        "allocated": memory.heap.to_string(),
        "heap_size": memory.heap.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.resident.to_string(),
    }))
}
