//! The tree of nodes with its watches, without connections and clocks: requests go in, events for sessions come out.

use std::collections::{BTreeSet, HashMap, HashSet};

use wire::jute::{EventType, Stat, Writer, code, xid};

/// Nodes in the tree.
const NODES: usize = 2_000_000;
/// Bytes of a node's data.
const DATA_BYTES: usize = 1 << 20;
/// Watches of one session.
const WATCHES: usize = 200_000;

/// Number of a session.
pub(super) type SessionId = i64;

/// Whose a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody's: it stays.
    Persistent,
    /// It goes with the session.
    Session(SessionId),
    /// The directory's: it says what another registry holds.
    Directory,
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) data: Vec<u8>,
    pub(super) owner: Owner,
    pub(super) children: BTreeSet<String>,
    stat: Stat,
}

impl Node {
    /// What is said of it.
    pub(super) fn stat(&self) -> Stat {
        Stat {
            ephemeral_owner: match self.owner {
                Owner::Session(session) => session,
                Owner::Persistent | Owner::Directory => 0,
            },
            data_length: i32::try_from(self.data.len()).unwrap_or(i32::MAX),
            num_children: i32::try_from(self.children.len()).unwrap_or(i32::MAX),
            ..self.stat
        }
    }
}

/// How long a watch lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Until it is removed, of one node and its children.
    Persistent,
    /// Until it is removed, of a node and all below it.
    Recursive,
}

/// An event of a watch for a session: a whole frame.
pub(super) type Event = (SessionId, Vec<u8>);

/// All nodes and watches.
pub(super) struct Tree {
    nodes: HashMap<String, Node>,
    data_watches: HashMap<String, HashSet<SessionId>>,
    child_watches: HashMap<String, HashSet<SessionId>>,
    lasting: HashMap<String, HashMap<SessionId, Mode>>,
    /// Watched paths by session, for its end and its limit.
    watched: HashMap<SessionId, HashSet<String>>,
    /// Ephemeral nodes by session.
    ephemerals: HashMap<SessionId, BTreeSet<String>>,
    events: Vec<Event>,
    zxid: i64,
    now_ms: i64,
}

/// A request's failure: a `KeeperException.Code`.
pub(super) type Code = i32;

impl Tree {
    /// A tree whose transactions are numbered from `zxid`.
    pub(super) fn new(zxid: i64) -> Tree {
        let mut tree = Tree {
            nodes: HashMap::new(),
            data_watches: HashMap::new(),
            child_watches: HashMap::new(),
            lasting: HashMap::new(),
            watched: HashMap::new(),
            ephemerals: HashMap::new(),
            events: Vec::new(),
            zxid,
            now_ms: 0,
        };
        tree.insert("/", Vec::new(), Owner::Persistent);
        for path in ["/zookeeper", "/zookeeper/config", "/zookeeper/quota"] {
            tree.insert(path, Vec::new(), Owner::Persistent);
            tree.nodes
                .get_mut(parent(path))
                .map(|p| p.children.insert(name(path).to_owned()));
        }
        tree
    }

    /// The last transaction.
    pub(super) fn zxid(&self) -> i64 {
        self.zxid
    }

    /// What happened to watches since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The time that nodes made from now on are said to be made at.
    pub(super) fn set_now(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// A node.
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    fn insert(&mut self, path: &str, data: Vec<u8>, owner: Owner) {
        let stat = Stat {
            czxid: self.zxid,
            mzxid: self.zxid,
            pzxid: self.zxid,
            ctime: self.now_ms,
            mtime: self.now_ms,
            ..Stat::default()
        };
        let node = Node {
            data,
            owner,
            children: BTreeSet::new(),
            stat,
        };
        self.nodes.insert(path.to_owned(), node);
    }

    /// Makes a node; with `sequential` its name gets the next number of its parent. Answers its path.
    pub(super) fn create(
        &mut self,
        path: &str,
        data: &[u8],
        owner: Owner,
        sequential: bool,
    ) -> Result<String, Code> {
        if data.len() > DATA_BYTES || self.nodes.len() >= NODES {
            return Err(code::BAD_ARGUMENTS);
        }
        let above = self.nodes.get(parent(path)).ok_or(code::NO_NODE)?;
        if matches!(above.owner, Owner::Session(_)) {
            return Err(code::NO_CHILDREN_FOR_EPHEMERALS);
        }
        let path = match sequential {
            true => format!("{path}{:010}", above.stat.cversion),
            false => path.to_owned(),
        };
        if !is_path(&path) || path == "/" {
            return Err(code::BAD_ARGUMENTS);
        }
        if let Some(node) = self.nodes.get_mut(&path) {
            // One that the directory shows is told anew by the application itself.
            if node.owner != Owner::Directory || owner == Owner::Directory {
                return Err(code::NODE_EXISTS);
            }
            node.owner = owner;
            self.keep_ephemeral(&path, owner);
            self.set_data(&path, data, -1)?;
            return Ok(path);
        }
        self.zxid += 1;
        self.insert(&path, data.to_vec(), owner);
        self.keep_ephemeral(&path, owner);
        let zxid = self.zxid;
        if let Some(above) = self.nodes.get_mut(parent(&path)) {
            above.children.insert(name(&path).to_owned());
            above.stat.cversion = above.stat.cversion.wrapping_add(1);
            above.stat.pzxid = zxid;
        }
        self.tell(EventType::Created, &path);
        self.tell(EventType::ChildrenChanged, parent(&path));
        Ok(path)
    }

    fn keep_ephemeral(&mut self, path: &str, owner: Owner) {
        if let Owner::Session(session) = owner {
            self.ephemerals
                .entry(session)
                .or_default()
                .insert(path.to_owned());
        }
    }

    /// Makes the nodes above `path` that are not there.
    pub(super) fn create_parents(&mut self, path: &str) -> Result<(), Code> {
        let above = parent(path);
        if above == "/" || self.nodes.contains_key(above) {
            return Ok(());
        }
        let above = above.to_owned();
        self.create_parents(&above)?;
        self.create(&above, &[], Owner::Persistent, false)
            .map(|_| ())
    }

    /// Deletes a node of this version, -1: of any.
    pub(super) fn delete(&mut self, path: &str, version: i32) -> Result<(), Code> {
        let node = self.nodes.get(path).ok_or(code::NO_NODE)?;
        if version != -1 && version != node.stat.version {
            return Err(code::BAD_VERSION);
        }
        if !node.children.is_empty() {
            return Err(code::NOT_EMPTY);
        }
        if path == "/" {
            return Err(code::BAD_ARGUMENTS);
        }
        self.zxid += 1;
        if let Some(Node {
            owner: Owner::Session(session),
            ..
        }) = self.nodes.remove(path)
            && let Some(paths) = self.ephemerals.get_mut(&session)
        {
            paths.remove(path);
        }
        let zxid = self.zxid;
        if let Some(above) = self.nodes.get_mut(parent(path)) {
            above.children.remove(name(path));
            above.stat.cversion = above.stat.cversion.wrapping_add(1);
            above.stat.pzxid = zxid;
        }
        self.tell(EventType::Deleted, path);
        self.tell(EventType::ChildrenChanged, parent(path));
        Ok(())
    }

    /// Writes a node of this version, -1: of any.
    pub(super) fn set_data(&mut self, path: &str, data: &[u8], version: i32) -> Result<Stat, Code> {
        if data.len() > DATA_BYTES {
            return Err(code::BAD_ARGUMENTS);
        }
        let node = self.nodes.get_mut(path).ok_or(code::NO_NODE)?;
        if version != -1 && version != node.stat.version {
            return Err(code::BAD_VERSION);
        }
        self.zxid += 1;
        node.data = data.to_vec();
        node.stat.version = node.stat.version.wrapping_add(1);
        node.stat.mzxid = self.zxid;
        node.stat.mtime = self.now_ms;
        let stat = node.stat();
        self.tell(EventType::DataChanged, path);
        Ok(stat)
    }

    /// Watches a node's data, whether it is there or not.
    pub(super) fn watch_data(&mut self, path: &str, session: SessionId) {
        if self.may_watch(path, session) {
            self.data_watches
                .entry(path.to_owned())
                .or_default()
                .insert(session);
        }
    }

    /// Watches a node's children.
    pub(super) fn watch_children(&mut self, path: &str, session: SessionId) {
        if self.may_watch(path, session) {
            self.child_watches
                .entry(path.to_owned())
                .or_default()
                .insert(session);
        }
    }

    /// Watches until that is taken back.
    pub(super) fn watch_lasting(&mut self, path: &str, session: SessionId, mode: Mode) {
        if self.may_watch(path, session) {
            self.lasting
                .entry(path.to_owned())
                .or_default()
                .insert(session, mode);
        }
    }

    /// Whether a session has a watch on a path.
    pub(super) fn is_watched(&self, path: &str, session: SessionId) -> bool {
        self.watched
            .get(&session)
            .is_some_and(|paths| paths.contains(path))
    }

    fn may_watch(&mut self, path: &str, session: SessionId) -> bool {
        let watched = self.watched.entry(session).or_default();
        if watched.len() >= WATCHES && !watched.contains(path) {
            return false;
        }
        watched.insert(path.to_owned());
        true
    }

    /// Takes back all watches of a session on a path.
    pub(super) fn unwatch(&mut self, path: &str, session: SessionId) {
        for watches in [&mut self.data_watches, &mut self.child_watches] {
            if let Some(sessions) = watches.get_mut(path) {
                sessions.remove(&session);
                if sessions.is_empty() {
                    watches.remove(path);
                }
            }
        }
        if let Some(sessions) = self.lasting.get_mut(path) {
            sessions.remove(&session);
            if sessions.is_empty() {
                self.lasting.remove(path);
            }
        }
        if let Some(paths) = self.watched.get_mut(&session) {
            paths.remove(path);
        }
    }

    /// The connection of a session ended: its watches are set again by the client.
    pub(super) fn unwatch_all(&mut self, session: SessionId) {
        for path in self.watched.remove(&session).unwrap_or_default() {
            self.unwatch(&path, session);
        }
    }

    /// The session is over: its nodes go. Answers them.
    pub(super) fn end_session(&mut self, session: SessionId) -> BTreeSet<String> {
        self.unwatch_all(session);
        let paths = self.ephemerals.remove(&session).unwrap_or_default();
        for path in &paths {
            // Nobody else deletes them, and they have no children.
            let _ = self.delete(path, -1);
        }
        paths
    }

    /// Paths of a session's nodes.
    pub(super) fn ephemerals(&self, session: SessionId) -> impl Iterator<Item = &str> {
        self.ephemerals
            .get(&session)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    fn tell(&mut self, kind: EventType, path: &str) {
        let mut sessions = HashSet::new();
        let once = match kind {
            EventType::ChildrenChanged => [self.child_watches.remove(path), None],
            EventType::Deleted => [
                self.data_watches.remove(path),
                self.child_watches.remove(path),
            ],
            _ => [self.data_watches.remove(path), None],
        };
        for session in once.into_iter().flatten().flatten() {
            sessions.insert(session);
        }
        if let Some(lasting) = self.lasting.get(path) {
            let takes = |mode| kind != EventType::ChildrenChanged || mode == Mode::Persistent;
            sessions.extend(
                lasting
                    .iter()
                    .filter(|(_, mode)| takes(**mode))
                    .map(|(id, _)| *id),
            );
        }
        if kind != EventType::ChildrenChanged && !self.lasting.is_empty() {
            let mut above = path;
            while above != "/" {
                above = parent(above);
                let lasting = self.lasting.get(above).into_iter().flatten();
                let recursive = lasting.filter(|(_, mode)| **mode == Mode::Recursive);
                sessions.extend(recursive.map(|(session, _)| *session));
            }
        }
        if sessions.is_empty() {
            return;
        }
        let frame = event(kind, path);
        self.events
            .extend(sessions.into_iter().map(|session| (session, frame.clone())));
    }

    /// What a client that was away missed: events of the watches that it sets again.
    pub(super) fn missed(
        &mut self,
        session: SessionId,
        since: i64,
        data: &[String],
        exist: &[String],
        children: &[String],
    ) {
        let mut missed = Vec::new();
        for path in data {
            match self.nodes.get(path) {
                None => missed.push((EventType::Deleted, path)),
                Some(node) if node.stat.mzxid > since => {
                    missed.push((EventType::DataChanged, path))
                }
                Some(_) => self.watch_data(path, session),
            }
        }
        for path in exist {
            match self.nodes.get(path) {
                Some(_) => missed.push((EventType::Created, path)),
                None => self.watch_data(path, session),
            }
        }
        for path in children {
            match self.nodes.get(path) {
                None => missed.push((EventType::Deleted, path)),
                Some(node) if node.stat.pzxid > since => {
                    missed.push((EventType::ChildrenChanged, path));
                }
                Some(_) => self.watch_children(path, session),
            }
        }
        let frames = missed
            .into_iter()
            .map(|(kind, path)| (session, event(kind, path)));
        self.events.extend(frames);
    }
}

fn event(kind: EventType, path: &str) -> Vec<u8> {
    let number = match kind {
        EventType::Created => 1,
        EventType::Deleted => 2,
        EventType::DataChanged => 3,
        EventType::ChildrenChanged => 4,
        EventType::Other => -1,
    };
    /// `KeeperState.SyncConnected`
    const CONNECTED: i32 = 3;
    let mut frame = Writer::frame();
    frame.int(xid::EVENT).long(-1).int(code::OK);
    frame.int(number).int(CONNECTED).buffer(path.as_bytes());
    frame.finish()
}

/// The path above.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => path.get(..at).unwrap_or("/"),
    }
}

/// The last part.
pub(super) fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether ZooKeeper takes it for a path.
pub(super) fn is_path(path: &str) -> bool {
    if path == "/" {
        return true;
    }
    path.starts_with('/')
        && !path.contains(char::is_control)
        && path
            .split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(tree: &mut Tree) -> Vec<(SessionId, i32, String)> {
        let read = |(session, frame): Event| {
            let mut reader = wire::jute::Reader::new(&frame[20..]);
            let kind = reader.int().expect("a type");
            reader.int().expect("a state");
            (session, kind, reader.string().expect("a path").to_owned())
        };
        let mut events: Vec<_> = tree.take_events().into_iter().map(read).collect();
        events.sort();
        events
    }

    #[test]
    fn watches_fire_once_and_lasting_ones_always() {
        let mut tree = Tree::new(1);
        tree.create("/a", b"", Owner::Persistent, false)
            .expect("made");
        tree.watch_children("/a", 1);
        tree.watch_data("/a/b", 2);
        tree.watch_lasting("/a", 3, Mode::Recursive);
        tree.create("/a/b", b"", Owner::Session(9), false)
            .expect("made");
        let b = "/a/b".to_owned();
        assert_eq!(
            events(&mut tree),
            [
                (1, 4, "/a".to_owned()),
                (2, 1, b.clone()),
                (3, 1, b.clone())
            ]
        );
        tree.set_data("/a/b", b"x", 0).expect("written");
        assert_eq!(tree.set_data("/a/b", b"x", 0), Err(code::BAD_VERSION));
        assert_eq!(events(&mut tree), [(3, 3, b.clone())]);
        assert_eq!(
            tree.create("/a/b/c", b"", Owner::Persistent, false),
            Err(code::NO_CHILDREN_FOR_EPHEMERALS)
        );
        assert_eq!(tree.delete("/a", -1), Err(code::NOT_EMPTY));
        tree.end_session(9);
        assert_eq!(events(&mut tree), [(3, 2, b)]);
        assert!(tree.get("/a/b").is_none());
    }

    #[test]
    fn sequence_numbers_go_up_and_bad_paths_are_refused() {
        let mut tree = Tree::new(1);
        let first = tree
            .create("/n-", b"", Owner::Persistent, true)
            .expect("made");
        let second = tree
            .create("/n-", b"", Owner::Persistent, true)
            .expect("made");
        assert!(first < second, "{first} {second}");
        for path in ["", "a", "/a/", "//", "/./b", "/a\u{0}"] {
            assert!(
                tree.create(path, b"", Owner::Persistent, false).is_err(),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_client_that_was_away_hears_what_it_missed() {
        let mut tree = Tree::new(1);
        tree.create("/a", b"", Owner::Persistent, false)
            .expect("made");
        let since = tree.zxid();
        tree.create("/a/b", b"", Owner::Persistent, false)
            .expect("made");
        tree.missed(
            1,
            since,
            &["/a".into(), "/gone".into()],
            &["/a/b".into()],
            &["/a".into()],
        );
        assert_eq!(
            events(&mut tree),
            [
                (1, 1, "/a/b".to_owned()),
                (1, 2, "/gone".to_owned()),
                (1, 4, "/a".to_owned())
            ]
        );
    }
}
