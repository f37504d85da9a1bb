//! LDS: listeners, which start when the routes they name have come.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::envoy::config::listener::v3::Listener;
use api::google::protobuf::Any;
use base::FieldError;
use prost::Message;

use super::{Compiled, Manager, Origin, Rejected, Source};
use crate::config;
use crate::listener::ListenerConfig;
use crate::server::Event;
use crate::worker::Command;

const LISTENER: &str = "envoy.config.listener.v3.Listener";

/// How long a listener waits for its routes: Envoy's default `initial_fetch_timeout`.
const WARMING_LIMIT: Duration = Duration::from_secs(15);

/// A listener: what serves, and what will once its routes are known.
#[derive(Default)]
pub struct ListenerEntry {
    /// What the workers have.
    pub active: Option<Compiled<ListenerConfig>>,
    /// What waits for its routes.
    pub warming: Option<WarmingListener>,
    /// The address that the sockets have (with the port the kernel chose for 0), once they are open.
    pub bound: Option<SocketAddr>,
}

/// A listener that waits for its routes, with its sockets already open.
pub struct WarmingListener {
    /// The listener.
    pub listener: Compiled<ListenerConfig>,
    sockets: Vec<std::net::TcpListener>,
    generation: u64,
}

impl ListenerEntry {
    pub(super) fn configs(&self) -> impl Iterator<Item = &Arc<ListenerConfig>> {
        let warming = self.warming.as_ref().map(|w| &w.listener.config);
        warming
            .into_iter()
            .chain(self.active.as_ref().map(|a| &a.config))
    }

    fn newest(&self) -> Option<&Compiled<ListenerConfig>> {
        self.warming
            .as_ref()
            .map(|w| &w.listener)
            .or(self.active.as_ref())
    }

    fn is_dynamic(&self) -> bool {
        self.newest()
            .is_some_and(|c| c.source.origin == Origin::Dynamic)
    }
}

/// A listener that compiled and whose sockets are open.
struct Prepared {
    name: String,
    compiled: Compiled<ListenerConfig>,
    sockets: Vec<std::net::TcpListener>,
}

impl Manager {
    /// Adds a listener of the bootstrap.
    pub fn add_static_listener(&mut self, listener: &Listener) -> Result<(), FieldError> {
        let resource = Any {
            type_url: format!("type.googleapis.com/{LISTENER}"),
            value: listener.encode_to_vec(),
        };
        let source = Source {
            origin: Origin::Static,
            resource,
            version: String::new(),
            updated: SystemTime::now(),
        };
        let prepared = self.prepare(listener, source)?;
        if self.listeners.contains_key(&prepared.name) {
            return Err(FieldError::at(
                "name",
                format!("{:?} is there twice", prepared.name),
            ));
        }
        self.set_listener(prepared);
        self.start_warm_listeners();
        self.update_gauges();
        Ok(())
    }

    /// Takes an LDS response whole, or refuses it whole.
    pub fn apply_listeners(&mut self, version: &str, resources: &[Any]) -> Result<(), Rejected> {
        let mut names = BTreeSet::new();
        let mut prepared = Vec::new();
        for (i, any) in resources.iter().enumerate() {
            let fallback = |error| Rejected {
                resource: format!("resources[{i}]"),
                error,
            };
            let listener: Listener = config::unpack(any, LISTENER).map_err(fallback)?;
            let name = if listener.name.is_empty() {
                format!("resources[{i}]")
            } else {
                listener.name.clone()
            };
            let refused = |error| Rejected {
                resource: name.clone(),
                error,
            };
            if !names.insert(name.clone()) {
                return Err(refused(FieldError::at(
                    "name",
                    "is there twice in one response",
                )));
            }
            if let Some(current) = self.listeners.get(&name).and_then(|e| e.newest())
                && (current.source.origin == Origin::Static
                    || current.source.resource.value == any.value)
            {
                continue;
            }
            let source = Source {
                origin: Origin::Dynamic,
                resource: any.clone(),
                version: version.to_owned(),
                updated: SystemTime::now(),
            };
            let prepared_one = api::validate::message::<Listener>(&any.value)
                .and_then(|()| self.prepare(&listener, source));
            match prepared_one {
                Ok(p) => prepared.push(p),
                Err(error) => {
                    self.manager_stats.listener_create_failure.inc();
                    return Err(refused(error));
                }
            }
        }
        let gone: Vec<String> = self
            .listeners
            .iter()
            .filter(|(n, e)| e.is_dynamic() && !names.contains(*n))
            .map(|(n, _)| n.clone())
            .collect();
        for name in gone {
            self.listeners.remove(&name);
            self.manager_stats.listener_removed.inc();
            let name: Arc<str> = name.into();
            self.tell(|| Command::RemoveListener(name.clone()));
        }
        for p in prepared {
            self.set_listener(p);
        }
        self.start_warm_listeners();
        self.drop_unwanted_routes();
        self.update_gauges();
        Ok(())
    }

    /// Warming has lasted too long: the listener goes on and answers 404 until its routes come, as in Envoy.
    pub fn listener_warming_timed_out(&mut self, listener: &str, generation: u64) {
        let waiting = self
            .listeners
            .get(listener)
            .and_then(|e| e.warming.as_ref());
        if waiting.is_some_and(|w| w.generation == generation) {
            tracing::warn!(listener, "no routes within initial_fetch_timeout");
            self.activate(listener);
            self.update_gauges();
        }
    }

    /// Asks the connections of all listeners to finish.
    pub fn drain_listeners(&self) {
        self.tell(|| Command::DrainListeners);
    }

    fn prepare(&mut self, listener: &Listener, source: Source) -> Result<Prepared, FieldError> {
        let config = Arc::new(ListenerConfig::compile(listener, &self.context())?);
        let name = config.name.to_string();
        let reuses = self
            .listeners
            .get(&name)
            .and_then(|e| e.newest())
            .is_some_and(|current| {
                current.config.address == config.address
                    && current.config.bind_to_port == config.bind_to_port
            });
        // without workers the configuration is only checked
        let sockets = if reuses || !config.bind_to_port || self.workers.is_empty() {
            Vec::new()
        } else {
            net::listen_for_workers(config.address, config.backlog, self.workers.len()).map_err(
                |e| FieldError::at("address", format!("cannot bind {}: {e}", config.address)),
            )?
        };
        Ok(Prepared {
            name,
            compiled: Compiled { config, source },
            sockets,
        })
    }

    fn set_listener(&mut self, prepared: Prepared) {
        let generation = self.next_generation();
        let Prepared {
            name,
            compiled,
            mut sockets,
        } = prepared;
        let is_new = !self.listeners.contains_key(&name);
        let entry = self.listeners.entry(name.clone()).or_default();
        if let Some(superseded) = entry.warming.take()
            && sockets.is_empty()
        {
            sockets = superseded.sockets;
        }
        if let Some(socket) = sockets.first() {
            entry.bound = socket.local_addr().ok();
        }
        entry.warming = Some(WarmingListener {
            listener: compiled,
            sockets,
            generation,
        });
        if is_new {
            self.manager_stats.listener_added.inc();
        } else {
            self.manager_stats.listener_modified.inc();
        }
        self.later(
            WARMING_LIMIT,
            Event::ListenerWarmingTimeout {
                listener: name,
                generation,
            },
        );
    }

    /// Starts every listener whose routes are all there.
    pub(super) fn start_warm_listeners(&mut self) {
        let ready: Vec<String> = self
            .listeners
            .iter()
            .filter(|(_, e)| {
                e.warming.as_ref().is_some_and(|w| {
                    w.listener
                        .config
                        .rds_names()
                        .all(|n| self.routes.contains_key(n))
                })
            })
            .map(|(n, _)| n.clone())
            .collect();
        for name in ready {
            self.activate(&name);
        }
    }

    fn activate(&mut self, name: &str) {
        let Some(entry) = self.listeners.get_mut(name) else {
            return;
        };
        let Some(warming) = entry.warming.take() else {
            return;
        };
        let config = warming.listener.config.clone();
        entry.active = Some(warming.listener);
        self.manager_stats.listener_create_success.inc();
        if warming.sockets.is_empty() {
            self.tell(|| Command::UpdateListener(config.clone()));
        } else {
            for (worker, socket) in self.workers.iter().zip(warming.sockets) {
                let _ = worker.send(Command::AddListener(config.clone(), socket));
            }
        }
        tracing::debug!(listener = name, address = %config.address, "listener is active");
    }
}
