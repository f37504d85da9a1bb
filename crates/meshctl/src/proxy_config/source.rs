//! Where the configuration comes from: a proxy's `/config_dump`, or a file with such an answer.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use super::{list, text};
use crate::cli::ProxySource;
use crate::http_client::Server;
use crate::up::state;

/// The sections of an answer to `/config_dump?include_eds`.
pub(super) struct Dump {
    configs: Vec<Value>,
}

impl Dump {
    /// Reads it from the proxy or the file that the options name.
    pub(super) async fn load(source: &ProxySource) -> anyhow::Result<Self> {
        let value = match &source.file {
            Some(path) => read_file(path)?,
            None => {
                let server = server(source)?;
                server.get("/config_dump?include_eds").await?
            }
        };
        Self::new(value)
    }

    /// Takes the parsed answer.
    pub(super) fn new(mut value: Value) -> anyhow::Result<Self> {
        match value.get_mut("configs").map(Value::take) {
            Some(Value::Array(configs)) => Ok(Self { configs }),
            _ => bail!(
                "this is no configuration dump: it has no array `configs`; take it from /config_dump?include_eds"
            ),
        }
    }

    /// The section of this type, e.g. `ListenersConfigDump`; null if there is none.
    pub(super) fn section(&self, type_name: &str) -> &Value {
        self.configs
            .iter()
            .find(|section| text(section, &["@type"]).rsplit('.').next() == Some(type_name))
            .unwrap_or(&Value::Null)
    }

    /// The resources of a section: static ones, and the active state of dynamic ones.
    pub(super) fn resources(&self, type_name: &str, kind: &str) -> Vec<Value> {
        let section = self.section(type_name);
        let fixed = list(&section[format!("static_{kind}s")]);
        // Listeners keep their active state apart from the warming one, and are in two arrays depending on the type.
        let dynamic = list(&section[format!("dynamic_{kind}s")])
            .chain(list(&section[format!("dynamic_active_{kind}s")]));
        fixed
            .chain(dynamic)
            .map(|entry| {
                let active = &entry["active_state"];
                let state = if active.is_null() { entry } else { active };
                state[kind].clone()
            })
            .filter(|resource| !resource.is_null())
            .collect()
    }
}

fn read_file(path: &Path) -> anyhow::Result<Value> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}

/// The admin interface that the options name.
pub(super) fn server(source: &ProxySource) -> anyhow::Result<Server> {
    let Some(proxy) = &source.proxy else {
        bail!("name a proxy, or a file with --file");
    };
    let (address, hint) = if proxy
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        (
            proxy.clone(),
            "is this the admin address of a running proxy? mosn's bootstrap names it under `admin`",
        )
    } else {
        (
            state::proxy_admin(source.dir.as_deref(), proxy)?,
            "its mesh seems to have stopped; `meshctl up` starts one",
        )
    };
    Ok(Server {
        address,
        what: "the proxy",
        hint: hint.to_owned(),
        token: None,
    })
}
