//! The list of a service as it is written: once for each change, and shared by all who get it. A service of a hundred thousand
//! instances has twenty megabytes and takes a second of work; of such services one is written at a time.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Server;
use super::directory::{List, Name, Version};
use crate::nacos::{Host, ServiceInfo};

/// How long a list says that it may be used; whoever listens to it is told in time.
pub(super) const CACHE_MS: u64 = 10_000;
/// Instances of a service that is written apart from the others.
const LARGE: usize = 1000;
/// Bytes of all lists that are kept.
const KEPT_BYTES: usize = 64 << 20;
/// A large list is pushed again only after so many times as long as it took to write it: changes in between are pushed as one.
const PAUSE_FACTOR: u32 = 4;

/// Which list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub(super) name: Name,
    /// Between commas; empty for all.
    pub(super) clusters: String,
    pub(super) healthy_only: bool,
}

/// A list that is written.
pub(super) struct Written {
    /// The JSON array of the instances.
    pub(super) hosts: Bytes,
    /// Of that; never 0.
    pub(super) digest: u64,
    /// Time of the last change, in milliseconds.
    changed_ms: u64,
    version: Version,
    /// Until then nobody needs to be told of the next change.
    rests: Option<Instant>,
}

impl Written {
    /// The `ServiceInfo` of the list, with this name of the service.
    pub(super) fn info(&self, asked: &Asked, name: &str, cache_millis: u64) -> Vec<u8> {
        let head = ServiceInfo {
            name: name.to_owned(),
            group_name: asked.name.group.to_string(),
            clusters: asked.clusters.clone(),
            cache_millis,
            last_ref_time: i64::try_from(self.changed_ms).unwrap_or(i64::MAX),
            ..ServiceInfo::default()
        };
        head.write_with(&self.hosts)
    }

    /// What it takes to keep it.
    fn bytes(&self, asked: &Asked) -> usize {
        const ENTRY: usize = 512;
        ENTRY + asked.clusters.len() + self.hosts.len()
    }
}

/// Lists that were written.
#[derive(Default)]
pub(super) struct Kept {
    lists: HashMap<Asked, Arc<Written>>,
    bytes: usize,
}

impl Kept {
    fn keep(&mut self, asked: &Asked, written: &Arc<Written>) {
        if let Some(before) = self.lists.remove(asked) {
            self.bytes -= before.bytes(asked);
        }
        let bytes = written.bytes(asked);
        if self.bytes + bytes > KEPT_BYTES {
            // They are written again when somebody needs them.
            self.lists.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.lists.insert(asked.clone(), written.clone());
    }
}

/// What there is of a list.
enum Found {
    Written(Arc<Written>),
    /// It has to be written.
    List(List),
}

fn find(server: &Server, asked: &Asked) -> Found {
    let state = server.state();
    let version = state.directory.version(&asked.name);
    match state.kept.lists.get(asked) {
        Some(known) if known.version == version => Found::Written(known.clone()),
        _ => Found::List(state.directory.list(&asked.name)),
    }
}

/// How long a change of a list may wait to be pushed: a large one that has just been written takes others along.
pub(super) fn rest(server: &Server, asked: &Asked) -> Duration {
    let state = server.state();
    let last = state.kept.lists.get(asked);
    let old = last.filter(|last| last.version != state.directory.version(&asked.name));
    let until = old.and_then(|old| old.rests);
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    until.map_or(Duration::ZERO, left)
}

/// A list as it is now.
pub(super) async fn written(server: &Server, asked: &Asked) -> Arc<Written> {
    let list = match find(server, asked) {
        Found::Written(known) => return known,
        // Anybody may ask for any name.
        Found::List(list) if list.len() == 0 => return Arc::new(write(asked, &list)),
        Found::List(list) if list.len() < LARGE => return keep(server, asked, write(asked, &list)),
        Found::List(list) => list,
    };
    drop(list);
    let _alone = server.writing.lock().await;
    // The one before may have written it.
    let list = match find(server, asked) {
        Found::Written(known) => return known,
        Found::List(list) => list,
    };
    let of = asked.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let mut written = write(&of, &list);
        written.rests = Some(Instant::now() + began.elapsed() * PAUSE_FACTOR);
        written
    });
    match writing.await {
        Ok(written) => keep(server, asked, written),
        // The runtime ends.
        Err(_) => std::future::pending().await,
    }
}

fn keep(server: &Server, asked: &Asked, written: Written) -> Arc<Written> {
    let written = Arc::new(written);
    server.state().kept.keep(asked, &written);
    written
}

fn write(asked: &Asked, list: &List) -> Written {
    let wanted: Vec<&str> = asked
        .clusters
        .split(',')
        .filter(|w| !w.is_empty())
        .collect();
    let is_meant = |host: &Host| {
        let in_cluster = wanted.is_empty() || wanted.contains(&host.cluster_name.as_str());
        in_cluster && host.enabled && (host.healthy || !asked.healthy_only)
    };
    let hosts: Vec<Host> = list.hosts().into_iter().filter(is_meant).collect();
    // A weight that is no number is not registered: what cannot be written is not there.
    let hosts = serde_json::to_vec(&hosts).unwrap_or_else(|_| b"[]".to_vec());
    let mut hasher = DefaultHasher::new();
    hosts.hash(&mut hasher);
    Written {
        hosts: hosts.into(),
        digest: hasher.finish().max(1),
        changed_ms: list.changed_ms(),
        version: list.version(),
        rests: None,
    }
}
