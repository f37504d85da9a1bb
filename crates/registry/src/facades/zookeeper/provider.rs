//! Nodes that say providers: what they say is registered, leased for as long as their sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use wire::jute::code;

use super::tree::{Code, Owner};
use super::{Server, State};
use crate::adapters::zookeeper::{Said, said};
use crate::dubbo_metadata;
use crate::model::{Instance, InstanceRef};
use crate::naming::dubbo_application;

/// Leases; they are renewed three times as often.
const TTL: Duration = Duration::from_secs(30);
/// How often an application is asked what it serves, and how long it waits between.
const ASKED: (u32, Duration) = (5, Duration::from_secs(2));
/// Ids of what is registered here end so.
const SUFFIX: &str = "@zookeeper";
/// Instances that are renewed at a time.
const BATCH: usize = 1000;

/// What a node registered.
#[derive(Default)]
pub(super) struct Provider {
    instances: Vec<Instance>,
}

/// A node was made or written: registers what it says. Of what is no provider nothing is registered.
pub(super) async fn register(
    server: &Arc<Server>,
    path: &str,
    data: &[u8],
    owner: Owner,
) -> Result<(), Code> {
    let said = said(server.state().directory.config(), path, data);
    match said {
        None => Ok(()),
        Some(Err(error)) => {
            tracing::warn!(path, %error, "a node says no provider that is understood");
            Ok(())
        }
        Some(Ok(Said::Instance(instance))) => put(server, path, vec![instance], owner).await,
        Some(Ok(Said::Application(provider))) => {
            let (server, path) = (server.clone(), path.to_owned());
            tokio::spawn(async move { ask(&server, &path, &provider, owner).await });
            Ok(())
        }
    }
}

/// Asks an application what it serves, as long as its node is there.
async fn ask(
    server: &Arc<Server>,
    path: &str,
    provider: &dubbo_application::Provider,
    owner: Owner,
) {
    let (attempts, pause) = ASKED;
    for _ in 0..attempts {
        if server.state().tree.get(path).is_none() {
            return;
        }
        match dubbo_metadata::ask(provider).await {
            Ok(info) => {
                let read = provider.instances(&info).into_iter().filter_map(Result::ok);
                // A failure is the registry's limit, which its metrics show.
                let _ = put(server, path, read.collect(), owner).await;
                return;
            }
            Err(error) => {
                tracing::warn!(path, error, "an application does not say what it serves");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn put(
    server: &Arc<Server>,
    path: &str,
    mut instances: Vec<Instance>,
    owner: Owner,
) -> Result<(), Code> {
    let limits = server.registry.limits();
    let ttl = matches!(owner, Owner::Session(_)).then(|| TTL.clamp(limits.ttl_min, limits.ttl_max));
    for instance in &mut instances {
        instance.id = format!("{}{SUFFIX}", instance.default_id()).into();
        instance.ttl = ttl;
    }
    let before = {
        let mut state = server.state();
        let still_there = state.tree.get(path).is_some_and(|node| node.owner == owner);
        if !still_there {
            return Ok(());
        }
        for instance in &instances {
            state.directory.say(instance);
        }
        let provider = Provider {
            instances: instances.clone(),
        };
        let before = state.providers.insert(path.to_owned(), provider);
        let mut gone = unsay(&mut state, &before.unwrap_or_default());
        gone.retain(|old| instances.iter().all(|new| new.reference() != *old));
        show(&mut state, server, instances.iter());
        gone
    };
    let done = server.registry.register(instances).await;
    deregister(server, before).await;
    if let Err(error) = done {
        tracing::warn!(path, %error, "a provider cannot be registered");
        let gone = {
            let mut state = server.state();
            let _ = state.tree.delete(path, -1);
            withdraw(&mut state, server, &BTreeSet::from([path.to_owned()]))
        };
        deregister(server, gone).await;
        return Err(code::BAD_ARGUMENTS);
    }
    Ok(())
}

/// Nodes are gone: what has to be taken out of the registry.
pub(super) fn withdraw(
    state: &mut State,
    server: &Server,
    paths: &BTreeSet<String>,
) -> Vec<InstanceRef> {
    let mut gone = Vec::new();
    for path in paths {
        if let Some(provider) = state.providers.remove(path) {
            gone.extend(unsay(state, &provider));
            show(state, server, provider.instances.iter());
        }
    }
    gone
}

/// What no node says any more.
fn unsay(state: &mut State, provider: &Provider) -> Vec<InstanceRef> {
    let last = |instance: &&Instance| state.directory.unsay(instance);
    provider
        .instances
        .iter()
        .filter(last)
        .map(Instance::reference)
        .collect()
}

fn show<'a>(state: &mut State, server: &Server, instances: impl Iterator<Item = &'a Instance>) {
    let services = server.hub.snapshot();
    let keys: BTreeSet<_> = instances.map(|instance| &instance.service).collect();
    for key in keys {
        state.directory.update(&mut state.tree, key, &services);
    }
}

/// Takes instances out of the registry.
pub(super) async fn deregister(server: &Server, gone: Vec<InstanceRef>) {
    if gone.is_empty() {
        return;
    }
    // Otherwise their leases run out.
    if let Err(error) = server.registry.deregister(gone).await {
        tracing::warn!(%error, "providers cannot be deregistered");
    }
}

/// Renews what sessions hold; what the registry lost is registered again.
pub(super) async fn renew(server: &Server) {
    let leased: Vec<Instance> = {
        let state = server.state();
        let held = state
            .providers
            .values()
            .flat_map(|provider| &provider.instances);
        held.filter(|instance| instance.ttl.is_some())
            .cloned()
            .collect()
    };
    for batch in leased.chunks(BATCH) {
        let references = batch.iter().map(Instance::reference).collect();
        let unknown = match server.registry.renew(references).await {
            Ok(done) => done.result.unknown,
            Err(error) => {
                tracing::warn!(%error, "providers cannot be renewed");
                return;
            }
        };
        if unknown.is_empty() {
            continue;
        }
        let lost = batch
            .iter()
            .filter(|instance| unknown.contains(&instance.reference()));
        if let Err(error) = server.registry.register(lost.cloned().collect()).await {
            tracing::warn!(%error, "providers cannot be registered again");
        }
    }
}
