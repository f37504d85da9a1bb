//! Requests of a session.

use std::collections::BTreeSet;
use std::sync::Arc;

use wire::jute::{Malformed, Reader, Writer, code, op};

use super::tree::{Code, Mode, Owner, SessionId, is_path, parent};
use super::{Server, State, provider};

/// Requests in one transaction.
const TRANSACTION: usize = 1000;
/// Where Dubbo says which applications serve an interface. Nothing is kept there: consumers would then look only at
/// applications of this registry, and never at the interface, where those of all registries are.
const MAPPING: &str = "/dubbo/mapping";
/// Bits of a create's flags.
const EPHEMERAL: i32 = 1;
const SEQUENTIAL: i32 = 2;
/// Flags of nodes that go when they have no children, or after a time: here they stay.
const CONTAINER: i32 = 4;

/// What has to be done besides.
enum Effect {
    Written(String, Vec<u8>, Owner),
    Gone(String),
}

fn unreadable(_: Malformed) -> Code {
    code::MARSHALLING
}

/// Takes an `addauth`. Only `digest` can be checked; without credentials to check any is taken.
pub(super) fn authenticate(server: &Server, session: SessionId, mut reader: Reader<'_>) -> bool {
    let mut read = || -> Result<_, Malformed> {
        reader.int()?;
        Ok((reader.string()?, reader.buffer()?))
    };
    let Ok((scheme, given)) = read() else {
        return false;
    };
    let Some(digest) = &server.digest else {
        return true;
    };
    let Ok(password) = digest.password() else {
        return false;
    };
    let wanted = format!("{}:{}", digest.username, password.reveal());
    let same = given.len() == wanted.len()
        && given
            .iter()
            .zip(wanted.as_bytes())
            .fold(0, |all, (a, b)| all | (a ^ b))
            == 0;
    if scheme != "digest" || !same {
        return false;
    }
    if let Some(session) = server.state().sessions.get_mut(session) {
        session.trusted = true;
    }
    true
}

/// Answers a request with the body of its reply.
pub(super) async fn answer(
    server: &Arc<Server>,
    session: SessionId,
    kind: i32,
    reader: Reader<'_>,
) -> Result<Vec<u8>, Code> {
    let mut effects = Vec::new();
    let answer = {
        let mut state = server.state();
        let known = state.sessions.get_mut(session).ok_or(code::NO_AUTH)?;
        if server.digest.is_some() && !known.trusted {
            return Err(code::NO_AUTH);
        }
        let mut reader = reader;
        match kind {
            op::MULTI => transaction(&mut state, session, reader, &mut effects),
            kind => one(&mut state, session, kind, &mut reader, &mut effects),
        }
    };
    for effect in effects {
        match effect {
            Effect::Written(path, data, owner) => {
                provider::register(server, &path, &data, owner).await?;
            }
            Effect::Gone(path) => {
                let gone = provider::withdraw(&mut server.state(), server, &BTreeSet::from([path]));
                provider::deregister(server, gone).await;
            }
        }
    }
    answer
}

fn path<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Code> {
    reader.string().map_err(unreadable)
}

fn one(
    state: &mut State,
    session: SessionId,
    kind: i32,
    reader: &mut Reader<'_>,
    effects: &mut Vec<Effect>,
) -> Result<Vec<u8>, Code> {
    let mut out = Writer::default();
    match kind {
        op::CREATE | op::CREATE2 | op::CREATE_CONTAINER => {
            let made = create(state, session, reader, effects)?;
            out.buffer(made.as_bytes());
            if kind != op::CREATE {
                let node = state.tree.get(&made);
                node.map(|node| node.stat())
                    .unwrap_or_default()
                    .write(&mut out);
            }
        }
        op::DELETE => {
            let path = path(reader)?;
            let version = reader.int().map_err(unreadable)?;
            let node = state.tree.get(path).ok_or(code::NO_NODE)?;
            // What another registry holds is taken out there.
            if node.owner == Owner::Directory {
                return Err(code::NO_AUTH);
            }
            state.tree.delete(path, version)?;
            effects.push(Effect::Gone(path.to_owned()));
        }
        op::EXISTS => {
            let path = path(reader)?;
            if reader.bool().map_err(unreadable)? {
                state.tree.watch_data(path, session);
            }
            let node = state.tree.get(path).ok_or(code::NO_NODE)?;
            node.stat().write(&mut out);
        }
        op::GET_DATA => {
            let path = path(reader)?;
            let watch = reader.bool().map_err(unreadable)?;
            let node = state.tree.get(path).ok_or(code::NO_NODE)?;
            out.buffer(&node.data);
            node.stat().write(&mut out);
            if watch {
                state.tree.watch_data(path, session);
            }
        }
        op::SET_DATA => {
            let path = path(reader)?;
            let data = reader.buffer().map_err(unreadable)?;
            let version = reader.int().map_err(unreadable)?;
            let owner = state.tree.get(path).ok_or(code::NO_NODE)?.owner;
            if owner == Owner::Directory {
                return Err(code::NO_AUTH);
            }
            state.tree.set_data(path, data, version)?.write(&mut out);
            effects.push(Effect::Written(path.to_owned(), data.to_vec(), owner));
        }
        op::GET_CHILDREN | op::GET_CHILDREN2 => {
            let path = path(reader)?;
            let watch = reader.bool().map_err(unreadable)?;
            let node = state.tree.get(path).ok_or(code::NO_NODE)?;
            out.int(i32::try_from(node.children.len()).unwrap_or(i32::MAX));
            for child in &node.children {
                out.buffer(child.as_bytes());
            }
            if kind == op::GET_CHILDREN2 {
                node.stat().write(&mut out);
            }
            if watch {
                state.tree.watch_children(path, session);
            }
        }
        op::SYNC => {
            out.buffer(path(reader)?.as_bytes());
        }
        // Nodes have no permissions of their own: whoever may speak here may do all.
        op::GET_ACL => {
            let node = state.tree.get(path(reader)?).ok_or(code::NO_NODE)?;
            out.int(1)
                .int(wire::jute::PERM_ALL)
                .buffer(b"world")
                .buffer(b"anyone");
            node.stat().write(&mut out);
        }
        op::SET_ACL => {
            let node = state.tree.get(path(reader)?).ok_or(code::NO_NODE)?;
            node.stat().write(&mut out);
        }
        op::ADD_WATCH => {
            let path = path(reader)?;
            let mode = match reader.int().map_err(unreadable)? {
                0 => Mode::Persistent,
                1 => Mode::Recursive,
                _ => return Err(code::BAD_ARGUMENTS),
            };
            state.tree.watch_lasting(path, session, mode);
            // `ErrorResponse`
            out.int(code::OK);
        }
        op::CHECK_WATCHES | op::REMOVE_WATCHES => {
            let path = path(reader)?;
            if !state.tree.is_watched(path, session) {
                return Err(code::NO_WATCHER);
            }
            if kind == op::REMOVE_WATCHES {
                state.tree.unwatch(path, session);
            }
        }
        op::SET_WATCHES | op::SET_WATCHES2 => {
            let since = reader.long().map_err(unreadable)?;
            let mut paths = || reader.strings().map_err(unreadable);
            let (data, exist, children) = (paths()?, paths()?, paths()?);
            state.tree.missed(session, since, &data, &exist, &children);
            if kind == op::SET_WATCHES2 {
                for path in paths()? {
                    state.tree.watch_lasting(&path, session, Mode::Persistent);
                }
                for path in paths()? {
                    state.tree.watch_lasting(&path, session, Mode::Recursive);
                }
            }
        }
        op::GET_EPHEMERALS => {
            let prefix = path(reader)?;
            let paths: Vec<&str> = state
                .tree
                .ephemerals(session)
                .filter(|path| path.starts_with(prefix))
                .collect();
            out.int(i32::try_from(paths.len()).unwrap_or(i32::MAX));
            for path in paths {
                out.buffer(path.as_bytes());
            }
        }
        op::CHECK => {
            let path = path(reader)?;
            let version = reader.int().map_err(unreadable)?;
            let stat = state.tree.get(path).ok_or(code::NO_NODE)?.stat();
            if version != -1 && version != stat.version {
                return Err(code::BAD_VERSION);
            }
        }
        _ => return Err(code::UNIMPLEMENTED),
    }
    Ok(out.take())
}

fn create(
    state: &mut State,
    session: SessionId,
    reader: &mut Reader<'_>,
    effects: &mut Vec<Effect>,
) -> Result<String, Code> {
    let path = path(reader)?.to_owned();
    let data = reader.buffer().map_err(unreadable)?.to_vec();
    let permissions = reader.int().map_err(unreadable)?;
    for _ in 0..permissions.max(0) {
        reader.int().map_err(unreadable)?;
        reader.string().map_err(unreadable)?;
        reader.string().map_err(unreadable)?;
    }
    let flags = reader.int().map_err(unreadable)?;
    let (ephemeral, sequential) = match flags {
        0 | CONTAINER => (false, false),
        EPHEMERAL => (true, false),
        SEQUENTIAL => (false, true),
        flags if flags == EPHEMERAL | SEQUENTIAL => (true, true),
        _ => return Err(code::BAD_ARGUMENTS),
    };
    if !sequential && !is_path(&path) {
        return Err(code::BAD_ARGUMENTS);
    }
    if parent(&path) == MAPPING {
        return Ok(path);
    }
    let owner = if ephemeral {
        Owner::Session(session)
    } else {
        Owner::Persistent
    };
    let made = state.tree.create(&path, &data, owner, sequential)?;
    effects.push(Effect::Written(made.clone(), data, owner));
    Ok(made)
}

/// Several requests, all or none. Each is checked against the tree as it is before the first: what ZooKeeper's clients put into one
/// transaction does not build on itself.
fn transaction(
    state: &mut State,
    session: SessionId,
    mut reader: Reader<'_>,
    effects: &mut Vec<Effect>,
) -> Result<Vec<u8>, Code> {
    let mut requests = Vec::new();
    loop {
        let kind = reader.int().map_err(unreadable)?;
        let done = reader.bool().map_err(unreadable)?;
        reader.int().map_err(unreadable)?;
        if done {
            break;
        }
        if requests.len() >= TRANSACTION {
            return Err(code::BAD_ARGUMENTS);
        }
        let body = reader;
        skip(kind, &mut reader)?;
        requests.push((kind, body));
    }
    let failed = requests
        .iter()
        .position(|(kind, body)| check(state, *kind, *body).is_err());
    let mut out = Writer::default();
    for (index, (kind, mut body)) in requests.into_iter().enumerate() {
        match failed {
            None => {
                let answer = one(state, session, kind, &mut body, effects)?;
                out.int(kind).bool(false).int(code::OK).raw(&answer);
            }
            Some(failed) => {
                let err = match index.cmp(&failed) {
                    std::cmp::Ordering::Less => code::OK,
                    std::cmp::Ordering::Equal => check(state, kind, body)
                        .err()
                        .unwrap_or(code::RUNTIME_INCONSISTENCY),
                    std::cmp::Ordering::Greater => code::RUNTIME_INCONSISTENCY,
                };
                out.int(op::ERROR).bool(false).int(err).int(err);
            }
        }
    }
    out.int(-1).bool(true).int(-1);
    Ok(out.take())
}

/// Reads over one request of a transaction.
fn skip(kind: i32, reader: &mut Reader<'_>) -> Result<(), Code> {
    let mut skip = || -> Result<(), Malformed> {
        reader.string()?;
        match kind {
            op::CREATE | op::CREATE2 | op::CREATE_CONTAINER => {
                reader.buffer()?;
                for _ in 0..reader.int()?.max(0) {
                    reader.int()?;
                    reader.string()?;
                    reader.string()?;
                }
                reader.int()?;
            }
            op::SET_DATA => {
                reader.buffer()?;
                reader.int()?;
            }
            _ => {
                reader.int()?;
            }
        }
        Ok(())
    };
    match kind {
        op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::SET_DATA | op::DELETE | op::CHECK => {
            skip().map_err(unreadable)
        }
        _ => Err(code::UNIMPLEMENTED),
    }
}

/// Whether a request of a transaction could be done.
fn check(state: &State, kind: i32, mut reader: Reader<'_>) -> Result<(), Code> {
    let path = path(&mut reader)?;
    let node = state.tree.get(path);
    match kind {
        op::CREATE | op::CREATE2 | op::CREATE_CONTAINER => {
            if node.is_some_and(|node| node.owner != Owner::Directory) {
                return Err(code::NODE_EXISTS);
            }
            state
                .tree
                .get(parent(path))
                .map(|_| ())
                .ok_or(code::NO_NODE)
        }
        kind => {
            let node = node.ok_or(code::NO_NODE)?;
            if kind != op::CHECK && node.owner == Owner::Directory {
                return Err(code::NO_AUTH);
            }
            if kind == op::DELETE && !node.children.is_empty() {
                return Err(code::NOT_EMPTY);
            }
            if kind == op::SET_DATA {
                reader.buffer().map_err(unreadable)?;
            }
            let version = reader.int().map_err(unreadable)?;
            if version != -1 && version != node.stat().version {
                return Err(code::BAD_VERSION);
            }
            Ok(())
        }
    }
}
