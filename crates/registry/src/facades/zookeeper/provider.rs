//! Nodes that say providers: what they say is registered, leased for as long as their sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use wire::jute::code;

use super::super::settle;
use super::tree::{Code, Owner};
use super::{Server, State};
use crate::adapters::zookeeper::{Said, said};
use crate::dubbo_metadata;
use crate::model::{Instance, InstanceRef};
use crate::naming::dubbo_application::{MetadataInfo, Provider};

/// How often an application is asked what it serves, and how long it waits between.
const ASKED: (u32, Duration) = (5, Duration::from_secs(2));
/// Ids of what is registered here end so.
const SUFFIX: &str = "@zookeeper";

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
async fn ask(server: &Arc<Server>, path: &str, provider: &Provider, owner: Owner) {
    let (attempts, pause) = ASKED;
    for _ in 0..attempts {
        if server.state().tree.get(path).is_none() {
            return;
        }
        let answer = if provider.remote {
            of_centre(&server.state(), provider)
        } else {
            dubbo_metadata::ask(provider).await
        };
        match answer {
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

/// What an application put into the metadata centre that is in this tree.
fn of_centre(state: &State, provider: &Provider) -> Result<MetadataInfo, String> {
    let (application, revision) = (&provider.application, &provider.revision);
    let mut roots = state.directory.config().dubbo_roots.iter();
    let node = roots.find_map(|root| {
        let path = format!("{root}/metadata/{application}/{revision}");
        state.tree.get(&path)
    });
    let node = node.ok_or("its revision is not in the metadata centre")?;
    MetadataInfo::from_json(&node.data).map_err(|error| error.to_string())
}

async fn put(
    server: &Arc<Server>,
    path: &str,
    mut instances: Vec<Instance>,
    owner: Owner,
) -> Result<(), Code> {
    let limits = server.registry.limits();
    let ttl = matches!(owner, Owner::Session(_)).then(|| settle::ttl(limits));
    for instance in &mut instances {
        instance.id = format!("{}{SUFFIX}", instance.default_id()).into();
        instance.ttl = ttl;
    }
    let touched = {
        let mut state = server.state();
        let still_there = state.tree.get(path).is_some_and(|node| node.owner == owner);
        if !still_there {
            return Ok(());
        }
        for instance in &instances {
            state.directory.say(path, instance);
        }
        let path = path.to_owned();
        for before in state.claims.of(&path) {
            state.directory.unsay(&path, &before);
        }
        let touched = state.claims.put(&path, &instances);
        show(&mut state, server, &touched);
        touched
    };
    if let Err(error) = server.settle.settle(touched).await {
        tracing::warn!(path, error, "a provider cannot be registered");
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

/// Nodes are gone: what may have to be taken out of the registry.
pub(super) fn withdraw(
    state: &mut State,
    server: &Server,
    paths: &BTreeSet<String>,
) -> BTreeSet<InstanceRef> {
    let mut gone = BTreeSet::new();
    for path in paths {
        for instance in state.claims.of(path) {
            state.directory.unsay(path, &instance);
        }
        gone.extend(state.claims.remove(path));
    }
    show(state, server, &gone);
    gone
}

fn show(state: &mut State, server: &Server, touched: &BTreeSet<InstanceRef>) {
    let services = server.hub.snapshot();
    let keys: BTreeSet<_> = touched.iter().map(|reference| &reference.service).collect();
    for key in keys {
        state.directory.update(&mut state.tree, key, &services);
    }
}

/// Has what nothing says any more taken out of the registry.
pub(super) async fn deregister(server: &Server, gone: BTreeSet<InstanceRef>) {
    // Otherwise their leases run out.
    if let Err(error) = server.settle.settle(gone).await {
        tracing::warn!(error, "providers cannot be deregistered");
    }
}
