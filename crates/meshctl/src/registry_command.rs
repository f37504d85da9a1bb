//! `meshctl registry`: the Open Service Registry by its HTTP interface.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use tokio_stream::StreamExt;

use crate::cli::{
    Format, PilotAddress, RegistryAddress, RegistryCommand, RegistryOptions, SelectorOptions,
};
use crate::http_client::Server;
use crate::output::{self, Colour, Table};
use crate::up::state;

/// Pilot's HTTP address when none is named and no mesh of `meshctl up` runs.
const DEFAULT_PILOT: &str = "127.0.0.1:8080";

/// Pilot's HTTP interface, as the options name it.
pub(crate) fn pilot(options: &PilotAddress) -> Server {
    let address = options
        .pilot
        .clone()
        .or_else(|| state::pilot(options.dir.as_deref()))
        .unwrap_or_else(|| DEFAULT_PILOT.to_owned());
    Server {
        address,
        what: "pilot",
        hint: "start a mesh with `meshctl up`, or name pilot's HTTP address with --pilot"
            .to_owned(),
        token: None,
    }
}

/// The registry, with the token that the options name.
fn registry(options: &RegistryAddress) -> anyhow::Result<Server> {
    with_token(&options.pilot, options.token_file.as_deref())
}

fn with_token(address: &PilotAddress, file: Option<&Path>) -> anyhow::Result<Server> {
    let token = match file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("--token-file {}", file.display()))?;
            Some(text.trim().to_owned())
        }
    };
    Ok(Server {
        token,
        ..pilot(address)
    })
}

/// Runs the command.
pub(crate) async fn run(options: &RegistryOptions) -> anyhow::Result<()> {
    match &options.what {
        RegistryCommand::List {
            selector,
            registry: address,
            output,
        } => {
            let server = registry(address)?;
            let instances = list(&server, selector, &address.namespace).await?;
            match output {
                Format::Table => {
                    let mut table = Table::new([
                        "PROTOCOL", "SERVICE", "VERSION", "GROUP", "ID", "ADDRESS", "WEIGHT",
                        "STATE",
                    ]);
                    for instance in &instances {
                        table.row(row(instance));
                    }
                    table.sort();
                    if table.is_empty() {
                        return output::write("nothing is registered\n");
                    }
                    output::table(&table, |column, cell| match (column, cell) {
                        (7, "healthy") => Some(Colour::Green),
                        (7, _) => Some(Colour::Red),
                        _ => None,
                    })
                }
                Format::Json | Format::Yaml => output::document(&Value::Array(instances), *output),
            }
        }
        RegistryCommand::Register {
            protocol,
            service,
            address,
            port,
            version,
            group,
            weight,
            metadata,
            ttl,
            registry: server,
        } => {
            let metadata: Map<String, Value> = metadata
                .iter()
                .map(|(key, value)| (key.clone(), json!(value)))
                .collect();
            let mut instance = json!({
                "namespace": server.namespace,
                "protocol": protocol,
                "service": service,
                "address": address,
                "port": port,
                "version": version.as_deref().unwrap_or_default(),
                "group": group.as_deref().unwrap_or_default(),
                "metadata": metadata,
                "ttlSeconds": ttl,
            });
            if let Some(weight) = weight {
                instance["weight"] = json!(weight);
            }
            let body = json!({ "instances": [instance] });
            let answer = registry(server)?
                .json(Method::POST, "/v1/register", Some(&body))
                .await?;
            let registered = &answer["registered"][0];
            let word = if registered["created"] == true {
                "registered"
            } else {
                "replaced"
            };
            output::write(&format!(
                "{word} {protocol}/{service} {}\n",
                text(registered, "id")
            ))
        }
        RegistryCommand::Deregister {
            protocol,
            service,
            id,
            registry: server,
        } => {
            let reference = json!({
                "namespace": server.namespace,
                "protocol": protocol,
                "service": service,
                "id": id,
            });
            let body = json!({ "instances": [reference] });
            let answer = registry(server)?
                .json(Method::POST, "/v1/deregister", Some(&body))
                .await?;
            if answer["removed"] == 0 {
                bail!(
                    "{protocol}/{service} has no instance {id}; `meshctl registry list` shows those that are there"
                );
            }
            output::write(&format!("deregistered {protocol}/{service} {id}\n"))
        }
        RegistryCommand::Snapshot {
            file,
            pilot,
            token_file,
        } => {
            let server = with_token(pilot, token_file.as_deref())?;
            let bytes = save(&server, file).await?;
            output::write(&format!("saved {bytes} bytes to {}\n", file.display()))
        }
        RegistryCommand::Restore {
            file,
            pilot,
            token_file,
        } => {
            let server = with_token(pilot, token_file.as_deref())?;
            let bytes = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
            let answer = server.upload("/v1/snapshot", bytes).await?;
            output::write(&format!(
                "restored {} instances and {} descriptions\n",
                answer["instances"], answer["interfaces"]
            ))
        }
        RegistryCommand::Watch {
            selector,
            registry: address,
            output,
        } => {
            let server = registry(address)?;
            watch(&server, selector, &address.namespace, *output).await
        }
    }
}

/// Saves the registry to a file, which is there only when it is whole; tells its size.
async fn save(server: &Server, file: &Path) -> anyhow::Result<u64> {
    let context = || format!("{}", file.display());
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut new =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).with_context(context)?;
    let mut body = server.stream("/v1/snapshot").await?.into_data_stream();
    let mut bytes = 0;
    while let Some(data) = body.next().await {
        let data = data.context("the snapshot broke off")?;
        new.write_all(&data).with_context(context)?;
        bytes += data.len() as u64;
    }
    new.as_file().sync_all().with_context(context)?;
    new.persist(file).with_context(context)?;
    Ok(bytes)
}

/// All instances at one moment: a watch that is ended when it has told what is there.
async fn list(
    server: &Server,
    selector: &SelectorOptions,
    namespace: &str,
) -> anyhow::Result<Vec<Value>> {
    let mut events = Events::open(server, selector, namespace).await?;
    let mut instances = Vec::new();
    while let Some(event) = events.next().await? {
        match text(&event, "type") {
            // A list begins, anew if the registry changed faster than it was read.
            "reset" => instances.clear(),
            "put" => instances.push(event["instance"].clone()),
            "synced" => return Ok(instances),
            _ => {}
        }
    }
    bail!(
        "pilot at {} broke off before the list was complete",
        server.address
    )
}

async fn watch(
    server: &Server,
    selector: &SelectorOptions,
    namespace: &str,
    format: Format,
) -> anyhow::Result<()> {
    let mut events = Events::open(server, selector, namespace).await?;
    while let Some(event) = events.next().await? {
        if format == Format::Json {
            output::write(&format!("{event}\n"))?;
            continue;
        }
        if format == Format::Yaml {
            output::write("---\n")?;
            output::document(&event, format)?;
            continue;
        }
        let kind = text(&event, "type");
        if matches!(kind, "put" | "deregistered" | "lapsed") {
            let [
                protocol,
                service,
                version,
                group,
                id,
                address,
                weight,
                state,
            ] = row(&event["instance"]);
            let time = chrono::Local::now().format("%H:%M:%S%.3f");
            let group = if group == "-" {
                String::new()
            } else {
                format!(" group {group}")
            };
            let version = if version == "-" {
                String::new()
            } else {
                format!(" version {version}")
            };
            output::write(&format!(
                "{time} {kind:<12} {protocol}/{service}{version}{group} {id} at {address} weight {weight} {state}\n"
            ))?;
        }
    }
    bail!("pilot at {} ended the watch", server.address)
}

/// The lines of a watch.
struct Events {
    body: http_body_util::BodyDataStream<Incoming>,
    pending: Vec<u8>,
}

impl Events {
    async fn open(
        server: &Server,
        selector: &SelectorOptions,
        namespace: &str,
    ) -> anyhow::Result<Self> {
        let pairs = [
            ("namespace", Some(namespace)),
            ("protocol", selector.protocol.as_deref()),
            ("service", selector.service.as_deref()),
            ("version", selector.version.as_deref()),
            ("group", selector.group.as_deref()),
        ];
        let query: Vec<String> = pairs
            .iter()
            .filter_map(|(name, value)| {
                let value = utf8_percent_encode((*value)?, NON_ALPHANUMERIC);
                Some(format!("{name}={value}"))
            })
            .collect();
        let path = format!("/v1/watch?{}", query.join("&"));
        Ok(Self {
            body: server.stream(&path).await?.into_data_stream(),
            pending: Vec::new(),
        })
    }

    /// The next event; `None` when the server has ended the watch.
    async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.body.next().await {
                Some(chunk) => self.pending.extend_from_slice(&chunk?),
                None => return Ok(None),
            }
        }
    }
}

fn row(instance: &Value) -> [String; 8] {
    let or_dash = |key: &str| match text(instance, key) {
        "" => "-".to_owned(),
        text => text.to_owned(),
    };
    let state = if instance["healthy"] == true {
        "healthy"
    } else {
        "unhealthy"
    };
    let protocol = match text(instance, "namespace") {
        "" | "default" => or_dash("protocol"),
        namespace => format!("{namespace}:{}", text(instance, "protocol")),
    };
    [
        protocol,
        or_dash("service"),
        or_dash("version"),
        or_dash("group"),
        or_dash("id"),
        format!("{}:{}", text(instance, "address"), instance["port"]),
        instance["weight"].to_string(),
        state.to_owned(),
    ]
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
