//! What a running `meshctl up` leaves in its folder, so that the other commands find its pilot and its proxies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

const FILE: &str = "mesh.json";

/// Where the parts of a running mesh are.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Process id of the `meshctl up`.
    pub(crate) pid: u32,
    /// Pilot's HTTP address.
    pub(crate) pilot: String,
    /// Admin address of each proxy by its name.
    pub(crate) proxies: BTreeMap<String, String>,
}

impl State {
    /// Writes it into the folder.
    pub(crate) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE);
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads it, if a mesh that was started in this folder still runs.
    pub(crate) fn load(dir: &Path) -> Option<Self> {
        let state: State = serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()?;
        state.is_running().then_some(state)
    }

    fn is_running(&self) -> bool {
        // A process id can be given anew; that it is a meshctl makes a mistake unlikely enough.
        fs::read_to_string(format!("/proc/{}/comm", self.pid))
            .is_ok_and(|name| name.trim() == "meshctl")
    }

    /// Takes it out of the folder.
    pub(crate) fn remove(dir: &Path) {
        // Left behind it does no harm: whoever reads it sees that the process is gone.
        let _ = fs::remove_file(dir.join(FILE));
    }
}

/// The folder of `meshctl up` when none is named.
pub(crate) fn default_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("meshctl"),
        _ => {
            let user = std::env::var("USER").unwrap_or_else(|_| "user".to_owned());
            std::env::temp_dir().join(format!("meshctl-{user}"))
        }
    }
}

fn load(dir: Option<&Path>) -> Option<State> {
    State::load(&dir.map_or_else(default_dir, Path::to_path_buf))
}

/// The HTTP address of the running mesh's pilot.
pub(crate) fn pilot(dir: Option<&Path>) -> Option<String> {
    load(dir).map(|state| state.pilot)
}

/// The admin address of a proxy of the running mesh.
pub(crate) fn proxy_admin(dir: Option<&Path>, name: &str) -> anyhow::Result<String> {
    let Some(state) = load(dir) else {
        bail!(
            "{name}: no `meshctl up` is running here that could have a proxy of this name; start one, name its folder \
             with --dir, or give the proxy's admin address as HOST:PORT"
        );
    };
    let short = name.strip_suffix(".demo").unwrap_or(name);
    match state.proxies.get(short) {
        Some(address) => Ok(address.clone()),
        None => {
            let names: Vec<&str> = state.proxies.keys().map(String::as_str).collect();
            bail!("{name}: no such proxy; there are {}", names.join(", "))
        }
    }
}
