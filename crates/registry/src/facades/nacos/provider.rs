//! What clients hold: it is shown as they said it, and registered as long as they live.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::settle;
use super::configs::Key;
use super::directory::{NAMESPACE, Name, Owner, Slot};
use super::{Server, State};
use crate::dubbo_metadata;
use crate::limits::Limits;
use crate::model::{Instance, InstanceRef, ServiceKey};
use crate::nacos::{Host, PUBLIC, grouped_name};
use crate::naming::dubbo_application::entry::of_all_protocols;
use crate::naming::dubbo_application::{MetadataInfo, Provider};
use crate::naming::nacos::{Said, said};

/// How often it is looked whose beats are missing.
const TICK: Duration = Duration::from_millis(500);
/// How often an application is asked what it serves, and how long it waits between.
const ASKED: (u32, Duration) = (5, Duration::from_secs(2));
/// Ids of what is registered here end so.
const SUFFIX: &str = "@nacos";
/// Bytes of an address.
const ADDRESS_BYTES: usize = 253;
/// After how long without a beat an instance is ill, and gone; and the metadata that say otherwise, in milliseconds.
const ILL: (Duration, &str) = (Duration::from_secs(15), "preserved.heart.beat.timeout");
const GONE: (Duration, &str) = (Duration::from_secs(30), "preserved.ip.delete.timeout");
/// How often clients send beats, and the metadata that say otherwise.
pub(super) const BEAT_MS: u64 = 5000;
const BEAT_INTERVAL: &str = "preserved.heart.beat.interval";

/// When each instance that lives by beats had its last.
pub(super) type Beats = HashMap<(Arc<str>, Slot), Instant>;

/// Why a client cannot hold an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// It is not well formed.
    #[error("{0}")]
    Malformed(String),
    /// The registry failed, or it is full.
    #[error("{0}")]
    Failed(String),
}

/// What an entry registers.
enum Registers {
    Nothing,
    Instance(Box<Instance>),
    Application(Box<Provider>),
}

/// How long clients wait between the beats of an instance.
pub(super) fn beat_ms(host: &Host) -> u64 {
    millis(host, BEAT_INTERVAL).unwrap_or(BEAT_MS)
}

fn millis(host: &Host, key: &str) -> Option<u64> {
    host.metadata.get(key)?.parse().ok()
}

fn limit(host: &Host, (usual, key): (Duration, &str)) -> Duration {
    millis(host, key).map_or(usual, Duration::from_millis)
}

/// What is not for everybody's eyes is refused, and what would not fit.
fn check(limits: &Limits, name: &Name, host: &Host) -> Result<(), Refused> {
    let refuse = |what: &str| Err(Refused::Malformed(what.to_owned()));
    if name.service.is_empty() {
        return refuse("Param 'serviceName' is required.");
    }
    let of_name = [&name.service, &name.group, &name.namespace];
    if of_name.iter().any(|part| part.len() > limits.name_bytes) {
        return refuse("Param 'serviceName' is too long.");
    }
    if host.ip.is_empty() {
        return refuse("Param 'ip' is required.");
    }
    if host.ip.len() > ADDRESS_BYTES || host.cluster_name.len() > limits.name_bytes {
        return refuse("Param 'ip' or 'clusterName' is too long.");
    }
    if !(host.weight >= 0.0 && host.weight <= 10_000.0) {
        return refuse("instance format invalid: The weights range from 0.0 to 10000.0");
    }
    let pairs = host.metadata.iter();
    let bytes: usize = pairs.map(|(key, value)| key.len() + value.len()).sum();
    if host.metadata.len() > limits.metadata_pairs || bytes > limits.metadata_bytes {
        return refuse("the metadata of the instance are over the limit");
    }
    Ok(())
}

fn registers(
    limits: &Limits,
    name: &Name,
    owner: Owner,
    host: &Host,
) -> Result<Registers, Refused> {
    check(limits, name, host)?;
    let said = said(&name.group, &name.service, host);
    match said.map_err(|error| Refused::Malformed(error.to_string()))? {
        Said::Nothing => Ok(Registers::Nothing),
        Said::Application(provider) => Ok(Registers::Application(Box::new(provider))),
        Said::Instance(instance) => {
            let instance = registered(limits, name, owner, instance);
            let checked = limits.check(&instance);
            checked.map_err(|error| Refused::Malformed(error.to_string()))?;
            Ok(Registers::Instance(Box::new(instance)))
        }
    }
}

/// With an id and a lease.
fn registered(limits: &Limits, name: &Name, owner: Owner, mut instance: Instance) -> Instance {
    instance.ttl = match owner {
        Owner::Nobody => None,
        Owner::Connection(_) | Owner::Beats => Some(settle::ttl(limits)),
    };
    instance.id = if *name.namespace == *PUBLIC {
        format!("{}{SUFFIX}", instance.default_id()).into()
    } else {
        let pairs = instance
            .metadata
            .iter()
            .chain([(NAMESPACE, &*name.namespace)]);
        instance.metadata = pairs.collect();
        format!("{}@{}{SUFFIX}", instance.default_id(), name.namespace).into()
    };
    instance
}

/// An owner holds these instances of a service from now on; a connection none but these.
pub(super) async fn register(
    server: &Arc<Server>,
    name: &Name,
    owner: Owner,
    hosts: Vec<Host>,
) -> Result<(), Refused> {
    let limits = server.registry.limits();
    let given = hosts.clone();
    let mut entries = Vec::new();
    for host in hosts {
        entries.push((registers(limits, name, owner, &host)?, host));
    }
    let mut applications = Vec::new();
    let touched = {
        let mut state = server.state();
        let state = &mut *state;
        let mut touched = BTreeSet::new();
        let mut gone: BTreeSet<Slot> = match owner {
            Owner::Connection(id) => {
                let Some(connection) = state.connections.get_mut(&id) else {
                    return Err(Refused::Failed("Connection is unregistered.".to_owned()));
                };
                connection.holds(name);
                state.directory.held_by(owner, name).into_iter().collect()
            }
            Owner::Beats | Owner::Nobody => BTreeSet::new(),
        };
        for (registers, host) in entries {
            let slot = Slot::new(owner, name, &host);
            gone.remove(&slot);
            if owner == Owner::Beats {
                let beat = (name.service.clone(), slot.clone());
                state.beats.insert(beat, Instant::now());
            }
            if let Some(known) = state.directory.held(&name.service, &slot) {
                if *known.host == host {
                    continue;
                }
                let number = known.number;
                state.directory.applications.remove(number);
                touched.extend(state.holders.remove(number));
            }
            let held = state.directory.hold(name, owner, host);
            match registers {
                Registers::Nothing => {}
                Registers::Instance(instance) => {
                    touched.extend(state.holders.put(held.number, vec![*instance], true));
                }
                Registers::Application(provider) => {
                    applications.push((slot, held.number, provider));
                }
            }
        }
        for slot in gone {
            touched.extend(release(state, &name.service, &slot));
        }
        show(server, state, &touched);
        touched
    };
    let settled = server.settle.settle(touched).await;
    if let Err(error) = settled {
        tracing::warn!(
            service = &*name.service,
            error,
            "an instance cannot be registered"
        );
        for host in &given {
            deregister(server, name, owner, Some(host)).await;
        }
        return Err(Refused::Failed(error));
    }
    for (slot, number, provider) in applications {
        let (server, name) = (server.clone(), name.clone());
        tokio::spawn(async move { ask(&server, &name, &slot, number, &provider).await });
    }
    Ok(())
}

fn release(state: &mut State, service: &Arc<str>, slot: &Slot) -> Vec<InstanceRef> {
    state.beats.remove(&(service.clone(), slot.clone()));
    match state.directory.release(service, slot) {
        Some(held) => {
            state.directory.applications.remove(held.number);
            state.holders.remove(held.number)
        }
        None => Vec::new(),
    }
}

fn show(server: &Server, state: &mut State, touched: &BTreeSet<InstanceRef>) {
    let keys = touched.iter().map(|reference| reference.service.clone());
    // What an interface of Dubbo is shown at depends on its providers of all protocols.
    let keys: BTreeSet<ServiceKey> = keys.flat_map(of_all_protocols).collect();
    server.show(state, keys);
}

/// An owner holds this instance of a service no more; without one, none of the service's.
pub(super) async fn deregister(server: &Server, name: &Name, owner: Owner, host: Option<&Host>) {
    let mut touched = BTreeSet::new();
    {
        let mut state = server.state();
        let slots = match host {
            Some(host) => vec![Slot::new(owner, name, host)],
            None => state.directory.held_by(owner, name),
        };
        for slot in slots {
            touched.extend(release(&mut state, &name.service, &slot));
        }
        if let Some(host) = host {
            // A pilot that has started anew knows of it only what the registry has.
            let limits = server.registry.limits();
            if let Ok(Registers::Instance(instance)) = registers(limits, name, owner, host) {
                touched.insert(instance.reference());
            }
        }
        show(server, &mut state, &touched);
    }
    // Otherwise their leases run out.
    if let Err(error) = server.settle.settle(touched).await {
        tracing::warn!(
            service = &*name.service,
            error,
            "an instance cannot be deregistered"
        );
    }
}

/// A connection has ended: all that it held goes.
pub(super) async fn end(server: &Server, id: u64, names: BTreeSet<Name>) {
    let mut touched = BTreeSet::new();
    {
        let mut state = server.state();
        for name in names {
            for slot in state.directory.held_by(Owner::Connection(id), &name) {
                touched.extend(release(&mut state, &name.service, &slot));
            }
        }
        show(server, &mut state, &touched);
    }
    if let Err(error) = server.settle.settle(touched).await {
        tracing::warn!(error, "what a connection held cannot be deregistered");
    }
}

/// Changes an instance that a client holds by HTTP or that holds itself; false: there is none.
pub(super) async fn alter(
    server: &Arc<Server>,
    name: &Name,
    owner: Owner,
    of: &Host,
    change: impl FnOnce(&mut Host),
) -> Result<bool, Refused> {
    let slot = Slot::new(owner, name, of);
    let known = server.state().directory.held(&name.service, &slot).cloned();
    let Some(held) = known else {
        return Ok(false);
    };
    let mut host = (*held.host).clone();
    change(&mut host);
    register(server, name, owner, vec![host]).await?;
    Ok(true)
}

/// A beat of an instance; `None`: it is not known. Otherwise how long the client may wait for the next.
pub(super) async fn beat(server: &Arc<Server>, name: &Name, of: &Host) -> Option<u64> {
    let slot = Slot::new(Owner::Beats, name, of);
    let host = {
        let mut state = server.state();
        let held = state.directory.held(&name.service, &slot)?;
        let host = held.host.clone();
        let key = (name.service.clone(), slot);
        state.beats.insert(key, Instant::now());
        host
    };
    let wait = beat_ms(&host);
    if !host.healthy {
        let host = Host {
            healthy: true,
            ..(*host).clone()
        };
        // A failure shows with the next beat.
        let _ = register(server, name, Owner::Beats, vec![host]).await;
    }
    Some(wait)
}

/// Looks whose beats are missing.
pub(super) async fn keep(server: &Arc<Server>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        miss(server).await;
    }
}

async fn miss(server: &Arc<Server>) {
    let now = Instant::now();
    let (mut ill, mut gone) = (Vec::new(), Vec::new());
    {
        let state = server.state();
        for ((service, slot), last) in &state.beats {
            let Some(held) = state.directory.held(service, slot) else {
                continue;
            };
            let silent = now.saturating_duration_since(*last);
            let name = Name {
                namespace: slot.namespace.clone(),
                group: slot.group.clone(),
                service: service.clone(),
            };
            if silent > limit(&held.host, GONE) {
                gone.push((name, held.host.clone()));
            } else if silent > limit(&held.host, ILL) && held.host.healthy {
                ill.push((name, slot.clone(), *last, held.host.clone()));
            }
        }
    }
    for (name, host) in gone {
        tracing::info!(
            service = &*name.service,
            ip = host.ip,
            "no beats: deregistered"
        );
        deregister(server, &name, Owner::Beats, Some(&host)).await;
    }
    for (name, slot, last, host) in ill {
        let host = Host {
            healthy: false,
            ..(*host).clone()
        };
        // What fails is tried again with the next tick.
        let _ = register(server, &name, Owner::Beats, vec![host]).await;
        let mut state = server.state();
        // It was no beat.
        if let Some(known) = state.beats.get_mut(&(name.service, slot)) {
            *known = last;
        }
    }
}

/// Asks a Dubbo application what it serves, as long as its entry is there.
async fn ask(server: &Arc<Server>, name: &Name, slot: &Slot, number: u64, provider: &Provider) {
    let (attempts, pause) = ASKED;
    for _ in 0..attempts {
        let answer = match provider.remote {
            true => of_metadata_centre(server, name, provider),
            false => dubbo_metadata::ask(provider).await,
        };
        match answer {
            Ok(info) => return serve(server, name, slot, number, provider, &info).await,
            Err(error) => {
                let application = provider.application.as_str();
                tracing::warn!(
                    application,
                    error,
                    "an application does not say what it serves"
                );
            }
        }
        tokio::time::sleep(pause).await;
        let state = server.state();
        let held = state.directory.held(&name.service, slot);
        if held.is_none_or(|held| held.number != number) {
            return;
        }
    }
}

/// Dubbo's metadata centre is the configurations.
fn of_metadata_centre(
    server: &Server,
    name: &Name,
    provider: &Provider,
) -> Result<MetadataInfo, String> {
    let (application, revision) = (&provider.application, &provider.revision);
    let key = Key::new(&name.namespace, revision, application);
    let found = server.configs.get(&key);
    let missing = || format!("there is no configuration {application} of the group {revision}");
    let found = found.ok_or_else(missing)?;
    MetadataInfo::from_json(found.text.as_bytes()).map_err(|error| error.to_string())
}

async fn serve(
    server: &Server,
    name: &Name,
    slot: &Slot,
    number: u64,
    provider: &Provider,
    info: &MetadataInfo,
) {
    let limits = server.registry.limits();
    let read = provider.instances(info).into_iter().filter_map(Result::ok);
    let instances: BTreeMap<InstanceRef, Instance> = read
        .map(|instance| registered(limits, name, slot.owner, instance))
        .filter(|instance| limits.check(instance).is_ok())
        .map(|instance| (instance.reference(), instance))
        .collect();
    let touched: BTreeSet<InstanceRef> = {
        let mut state = server.state();
        let held = state.directory.held(&name.service, slot);
        if held.is_none_or(|held| held.number != number) {
            return;
        }
        let instances: Vec<Instance> = instances.into_values().collect();
        let applications = &mut state.directory.applications;
        applications.put(number, name, &instances);
        let touched = state.holders.put(number, instances, false);
        let touched = touched.into_iter().collect();
        show(server, &mut state, &touched);
        touched
    };
    if let Err(error) = server.settle.settle(touched).await {
        let service = grouped_name(&name.group, &name.service);
        tracing::warn!(
            service,
            error,
            "what an application serves cannot be registered"
        );
    }
}
