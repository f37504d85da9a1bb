//! Reads all providers once, then whatever a watch says has changed: of a folder that changed only that folder, of its nodes
//! only the new ones.

use std::collections::{HashMap, HashSet, VecDeque};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use wire::jute::{EventType, Reader, code, op};

use super::Config;
use super::centre::Centres;
use super::layout::{Layout, application, roots};
use super::session::{Client, Failure, Reply};
use crate::adapters::application_level::{ApplicationLevel, ServedThere};
use crate::adapters::applications::{Applications, permits};
use crate::dubbo_metadata::Revisions;
use crate::naming::Malformed;
use crate::source::{Link, List, Report, Skipped, Trouble};

/// Requests under way at a time.
const REQUESTS: usize = 256;

/// A folder of applications: root and application.
pub(super) type Folder = (usize, String);

/// What there is to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// The services below a root.
    Root(usize),
    /// The providers of a service.
    Service(usize, String),
    /// The data of one of its nodes.
    Node(usize, String, String),
}

struct State<'a> {
    link: &'a Link,
    client: &'a Client,
    roots: Vec<(Layout, String)>,
    /// Path to what has to be read again when a watch on it fires.
    paths: HashMap<String, Work>,
    services: HashMap<usize, HashSet<String>>,
    applications: Applications<'a, Folder, Centres<'a>>,
    level: ApplicationLevel<Folder>,
    queue: VecDeque<Work>,
    queued: HashSet<Work>,
    synced: bool,
}

/// Reads until the connection ends.
pub(super) async fn run(
    config: &Config,
    link: &Link,
    client: &Client,
    revisions: &Revisions,
    mut events: mpsc::UnboundedReceiver<(EventType, String)>,
    tell: watch::Sender<ServedThere>,
) -> Failure {
    let roots = roots(config);
    let dubbo_roots = roots.iter().filter(|(layout, _)| *layout == Layout::Dubbo);
    let centres = Centres {
        client,
        roots: dubbo_roots.map(|(_, root)| root.clone()).collect(),
    };
    let permits = permits();
    let mut state = State {
        link,
        client,
        paths: HashMap::new(),
        services: HashMap::new(),
        applications: Applications::new(&centres, revisions, &permits),
        level: ApplicationLevel::new(tell),
        queue: VecDeque::new(),
        queued: HashSet::new(),
        synced: false,
        roots,
    };
    for index in 0..state.roots.len() {
        state.enqueue(Work::Root(index));
    }
    // Of two answers to one question only that to the later one counts.
    let mut asked: HashMap<Work, u64> = HashMap::new();
    let mut number = 0;
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < REQUESTS
            && let Some(work) = state.queue.pop_front()
        {
            state.queued.remove(&work);
            number += 1;
            asked.insert(work.clone(), number);
            under_way.push(ask(state.client, state.path(&work), work, number));
        }
        if under_way.is_empty() && state.applications.tried_all() && !state.synced {
            state.synced = true;
            state.level.tell();
            link.report(Report::Synced).await;
        }
        tokio::select! {
            Some((work, number, reply)) = under_way.next(), if !under_way.is_empty() => {
                if asked.get(&work) != Some(&number) {
                    continue;
                }
                asked.remove(&work);
                match reply {
                    None => return Failure::unreachable("the connection has ended"),
                    Some(Err(code::NO_AUTH)) => return Failure {
                        trouble: Trouble::Refused,
                        reason: format!("{} may not be read", state.path(&work)),
                    },
                    Some(reply) => state.take(work, reply).await,
                }
            }
            Some(folder) = state.applications.next() => state.tell_nodes(&folder).await,
            event = events.recv() => match event {
                None => return Failure::unreachable("the connection has ended"),
                Some((EventType::Other, _)) => {}
                Some((_, path)) => {
                    if let Some(work) = state.paths.get(&path).cloned() {
                        state.enqueue(work);
                    }
                }
            },
        }
    }
}

/// One question: children of a folder or data of a node, with a watch. Of what is not there the watch is on its coming.
async fn ask(client: &Client, path: String, work: Work, number: u64) -> (Work, u64, Option<Reply>) {
    let is_node = matches!(work, Work::Node(..));
    let question = if is_node {
        op::GET_DATA
    } else {
        op::GET_CHILDREN
    };
    let reply = ask_for(client, question, &path).await;
    if is_node || !matches!(reply, Some(Err(code::NO_NODE))) {
        return (work, number, reply);
    }
    match ask_for(client, op::EXISTS, &path).await {
        // It came between the two questions.
        Some(Ok(_)) => {
            let reply = ask_for(client, question, &path).await;
            (work, number, reply)
        }
        Some(Err(_)) => (work, number, reply),
        None => (work, number, None),
    }
}

async fn ask_for(client: &Client, op: i32, path: &str) -> Option<Reply> {
    client
        .call(op, |writer| {
            writer.buffer(path.as_bytes()).bool(true);
        })
        .await
}

impl State<'_> {
    fn enqueue(&mut self, work: Work) {
        if self.queued.insert(work.clone()) {
            self.paths.insert(self.path(&work), work.clone());
            self.queue.push_back(work);
        }
    }

    fn path(&self, work: &Work) -> String {
        let root = |index: &usize| {
            let root = self.roots.get(*index);
            root.map_or((Layout::Dubbo, ""), |(layout, root)| {
                (*layout, root.as_str())
            })
        };
        match work {
            Work::Root(index) => root(index).1.to_owned(),
            Work::Service(index, service) => {
                let (layout, root) = root(index);
                layout.folder(root, service)
            }
            Work::Node(index, service, node) => {
                let (layout, root) = root(index);
                format!("{}/{node}", layout.folder(root, service))
            }
        }
    }

    async fn take(&mut self, work: Work, reply: Reply) {
        match work {
            Work::Root(index) => {
                let children = children(&reply);
                self.services_of(index, children).await;
            }
            Work::Service(index, service) => {
                let layout = self.roots.get(index).map(|(layout, _)| *layout);
                match layout {
                    Some(Layout::Applications) => {
                        self.nodes_of(index, service, &children(&reply)).await
                    }
                    Some(layout) => {
                        let path = self.path(&Work::Service(index, service.clone()));
                        let list = providers(layout, path, &service, &children(&reply));
                        self.link.report(Report::List(list)).await;
                    }
                    None => {}
                }
            }
            Work::Node(index, service, node) => {
                let said = match reply.as_deref().map(data) {
                    Ok(Some(data)) => Some(application(&service, data)),
                    Ok(None) => Some(Err(Malformed::new("its data cannot be read"))),
                    // It went meanwhile; the folder's watch says so too.
                    Err(_) => None,
                };
                let folder = (index, service);
                self.applications.said(&folder, &node, said);
                self.tell_nodes(&folder).await;
            }
        }
    }

    async fn services_of(&mut self, index: usize, children: Vec<String>) {
        let Some((layout, _)) = self.roots.get(index) else {
            return;
        };
        let layout = *layout;
        let now: HashSet<String> = children
            .into_iter()
            .filter(|name| layout.is_service(name))
            .collect();
        let before = self.services.insert(index, now.clone()).unwrap_or_default();
        for service in now.difference(&before) {
            self.enqueue(Work::Service(index, service.clone()));
        }
        for service in before.difference(&now) {
            let path = self.path(&Work::Service(index, service.clone()));
            self.paths.remove(&path);
            let folder = (index, service.clone());
            self.applications.remove(&folder);
            self.level.set(&folder, &[], self.synced);
            let list = providers(layout, path, service, &[]);
            self.link.report(Report::List(list)).await;
        }
    }

    /// The nodes of a folder of applications: those that are new are read.
    async fn nodes_of(&mut self, index: usize, service: String, children: &[String]) {
        let folder = (index, service);
        let (new, gone) = self.applications.nodes(&folder, children);
        let (index, service) = &folder;
        for name in new {
            self.enqueue(Work::Node(*index, service.clone(), name));
        }
        for name in gone {
            let path = self.path(&Work::Node(*index, service.clone(), name));
            self.paths.remove(&path);
        }
        self.tell_nodes(&folder).await;
    }

    async fn tell_nodes(&mut self, folder: &Folder) {
        // What is not read yet must not look like what is gone.
        let Some((instances, skipped)) = self.applications.list(folder, self.synced) else {
            return;
        };
        self.level.set(folder, &instances, self.synced);
        let (index, service) = folder;
        let list = List {
            name: self.path(&Work::Service(*index, service.clone())).into(),
            instances,
            skipped,
            certain: true,
        };
        self.link.report(Report::List(list)).await;
    }
}

fn children(reply: &Reply) -> Vec<String> {
    match reply {
        Ok(body) => Reader::new(body).strings().unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

fn data(body: &[u8]) -> Option<&[u8]> {
    Reader::new(body).buffer().ok()
}

/// A folder of URLs.
fn providers(layout: Layout, path: String, service: &str, children: &[String]) -> List {
    let (mut instances, mut skipped) = (Vec::new(), Vec::new());
    for node in children {
        match layout.instance(service, node) {
            Ok(instance) => instances.push(instance),
            Err(error) => skipped.push(Skipped::new(node, &error)),
        }
    }
    List {
        name: path.into(),
        instances,
        skipped,
        certain: true,
    }
}
