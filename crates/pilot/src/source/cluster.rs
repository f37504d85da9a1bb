//! What a Kubernetes cluster says, and what of it is in force: an object that becomes invalid keeps its last good version.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::kubernetes::{Cluster, Objects, Told, follow};
use registry::{Secret, SecretKey};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Problem;
use crate::istio::{Kind, Object, ObjectId, document};
use crate::world::Config;

/// What is told as the file of an object.
const FILE: &str = "kubernetes";
/// Of the cluster that may wait.
const NEWS: usize = 256;

/// What something in the cluster is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// Objects of a kind.
    Kind(Kind),
    /// A Secret that an object names.
    Secret(SecretName),
}

/// Something from the cluster.
pub type News = (About, Told);
/// Namespace and name.
type SecretName = (String, String);

/// All objects of a cluster that pilot acts on.
pub struct ClusterStore {
    cluster: Cluster,
    news: mpsc::Sender<News>,
    kinds: BTreeMap<Kind, Read>,
    objects: BTreeMap<ObjectId, Entry>,
    secrets: HashMap<SecretName, Watched>,
}

/// How far a kind was read.
#[derive(Debug, Default)]
struct Read {
    /// All of its objects were told once.
    is_told: bool,
    /// It may not be read: the other kinds are not to wait for it.
    is_refused: bool,
    failure: Option<String>,
}

impl Read {
    fn is_read(&self) -> bool {
        self.is_told || self.is_refused
    }
}

/// An object as it is written, and what is in force of it.
#[derive(Default)]
struct Entry {
    value: Value,
    good: Option<Arc<Object>>,
    problem: Option<Problem>,
    secrets: BTreeSet<SecretName>,
}

/// A Secret that objects name.
struct Watched {
    content: Content,
    task: JoinHandle<()>,
}

enum Content {
    /// Nothing was told yet.
    Unread,
    /// It is not there, or cannot be read.
    None(String),
    /// Its words by their keys.
    Words(BTreeMap<String, Secret>),
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ClusterStore {
    /// Begins to read a cluster; what it says has to be given to [`ClusterStore::take`].
    pub fn start(cluster: Cluster) -> (ClusterStore, mpsc::Receiver<News>) {
        let (news, received) = mpsc::channel(NEWS);
        for kind in Kind::ALL {
            let (cluster, news) = (cluster.clone(), news.clone());
            let objects = Objects {
                group: kind.group().to_owned(),
                versions: kind.versions().iter().map(|v| (*v).to_owned()).collect(),
                kind: kind.to_string(),
                plural: kind.plural().to_owned(),
                namespace: None,
                name: None,
            };
            tokio::spawn(async move { follow(&cluster, &objects, About::Kind(kind), news).await });
        }
        let store = ClusterStore {
            cluster,
            news,
            kinds: Kind::ALL.map(|kind| (kind, Read::default())).into(),
            objects: BTreeMap::new(),
            secrets: HashMap::new(),
        };
        (store, received)
    }

    /// Whether every kind was read, or may not be read.
    pub fn is_read(&self) -> bool {
        self.kinds.values().all(Read::is_read)
    }

    /// Why it is not, as far as that is known.
    pub fn failure(&self) -> Option<&str> {
        let unread = self.kinds.values().find(|read| !read.is_read())?;
        unread.failure.as_deref()
    }

    /// Takes what the cluster says. Returns whether anything is other than before.
    pub fn take(&mut self, (about, told): News) -> bool {
        match about {
            About::Kind(kind) => self.take_objects(kind, told),
            About::Secret(name) => self.take_secret(&name, told),
        }
    }

    fn take_objects(&mut self, kind: Kind, told: Told) -> bool {
        let read = self.kinds.entry(kind).or_default();
        match told {
            Told::Failed { refused, reason } => {
                read.is_refused = refused;
                read.failure = Some(reason);
                return true;
            }
            Told::All(values) => {
                let was = std::mem::replace(
                    read,
                    Read {
                        is_told: true,
                        ..Read::default()
                    },
                );
                let ids: BTreeSet<ObjectId> = values.iter().filter_map(|v| id(kind, v)).collect();
                let before = self.objects.len();
                self.objects
                    .retain(|id, _| id.kind != kind || ids.contains(id));
                let mut is_new = !was.is_told || was.failure.is_some();
                is_new |= self.objects.len() != before;
                for value in values {
                    is_new |= self.put(kind, value);
                }
                self.watch_secrets();
                return is_new;
            }
            Told::Changed(value) => {
                if !self.put(kind, value) {
                    return false;
                }
            }
            Told::Gone { namespace, name } => {
                let id = ObjectId {
                    kind,
                    namespace,
                    name,
                };
                self.objects.remove(&id);
            }
        }
        self.watch_secrets();
        true
    }

    /// Whether what is in force or what is wrong is other than before.
    fn put(&mut self, kind: Kind, value: Value) -> bool {
        let Some(id) = id(kind, &value) else {
            return false;
        };
        let entry = self.objects.entry(id.clone()).or_default();
        entry.value = value;
        entry.read(&id, &self.secrets)
    }

    fn take_secret(&mut self, name: &SecretName, told: Told) -> bool {
        let Some(watched) = self.secrets.get_mut(name) else {
            return false;
        };
        watched.content = match told {
            Told::All(values) => match values.first() {
                Some(value) => Content::Words(words(value)),
                None => Content::None("is not there".to_owned()),
            },
            Told::Changed(value) => Content::Words(words(&value)),
            Told::Gone { .. } => Content::None("is not there".to_owned()),
            Told::Failed { reason, .. } => match &watched.content {
                // What was read stays.
                Content::Words(_) => return false,
                _ => Content::None(format!("cannot be read: {reason}")),
            },
        };
        let mut is_new = false;
        for (id, entry) in &mut self.objects {
            if entry.secrets.contains(name) {
                is_new |= entry.read(id, &self.secrets);
            }
        }
        // One that waited for this Secret may name a second.
        self.watch_secrets();
        is_new
    }

    /// Follows the Secrets that objects name, and no others.
    fn watch_secrets(&mut self) {
        let named = self.objects.values().flat_map(|entry| &entry.secrets);
        let named: BTreeSet<SecretName> = named.cloned().collect();
        self.secrets.retain(|name, _| named.contains(name));
        for name in named {
            if self.secrets.contains_key(&name) {
                continue;
            }
            let objects = Objects {
                group: String::new(),
                versions: vec!["v1".to_owned()],
                kind: "Secret".to_owned(),
                plural: "secrets".to_owned(),
                namespace: Some(name.0.clone()),
                name: Some(name.1.clone()),
            };
            let (cluster, news) = (self.cluster.clone(), self.news.clone());
            let about = About::Secret(name.clone());
            let task = tokio::spawn(async move { follow(&cluster, &objects, about, news).await });
            let content = Content::Unread;
            self.secrets.insert(name, Watched { content, task });
        }
    }

    /// Adds what is in force to what files say, which counts first.
    pub fn add_to(&self, config: &mut Config, problems: &mut Vec<Problem>) {
        let unread = self.kinds.iter();
        problems.extend(unread.filter_map(|(kind, read)| {
            let reason = read.failure.as_ref()?;
            Some(problem(None, &kind.to_string(), reason, read.is_told))
        }));
        for (id, entry) in &self.objects {
            problems.extend(entry.problem.clone());
            let Some(object) = &entry.good else {
                continue;
            };
            if config.contains_key(id) {
                let message = "is already defined in a file, which is in force";
                problems.push(problem(Some(id), "", message, false));
            } else {
                config.insert(id.clone(), object.clone());
            }
        }
    }
}

impl Entry {
    /// Reads it as it is written. Returns whether anything is other than before.
    fn read(&mut self, id: &ObjectId, secrets: &HashMap<SecretName, Watched>) -> bool {
        let named = RefCell::new(BTreeSet::new());
        let is_pending = Cell::new(false);
        let word = |wanted: &SecretKey| {
            let name = (id.namespace.clone(), wanted.name.clone());
            let shown = format!("Secret {}/{}", name.0, name.1);
            let content = secrets.get(&name).map(|watched| &watched.content);
            named.borrow_mut().insert(name);
            match content {
                None | Some(Content::Unread) => {
                    is_pending.set(true);
                    Err(format!("{shown} is not read yet"))
                }
                Some(Content::None(why)) => Err(format!("{shown} {why}")),
                Some(Content::Words(words)) => {
                    let word = words.get(&wanted.key).cloned();
                    word.ok_or_else(|| format!("{shown} has no {:?}", wanted.key))
                }
            }
        };
        let read = document::object_with(self.value.clone(), &word);
        self.secrets = named.into_inner();
        let problem = match read {
            Ok(object) => {
                let is_same = self.good.as_deref() == Some(&object);
                if !is_same {
                    self.good = Some(Arc::new(object));
                }
                return self.problem.take().is_some() || !is_same;
            }
            Err(_) if is_pending.get() => None,
            Err(error) => {
                let in_force = self.good.is_some();
                Some(problem(Some(id), &error.path, &error.message, in_force))
            }
        };
        let is_new = self.problem != problem;
        self.problem = problem;
        is_new
    }
}

/// The words of a Secret; what is no text is none.
fn words(secret: &Value) -> BTreeMap<String, Secret> {
    let data = secret.get("data").and_then(Value::as_object);
    let words = data.into_iter().flatten().filter_map(|(key, value)| {
        let text = String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()?;
        let text = text.trim_end_matches(['\r', '\n']).to_owned();
        Some((key.clone(), Secret::from(text)))
    });
    words.collect()
}

fn id(kind: Kind, value: &Value) -> Option<ObjectId> {
    let metadata = value.get("metadata")?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(ObjectId {
        kind,
        namespace: text("namespace")?,
        name: text("name")?,
    })
}

fn problem(object: Option<&ObjectId>, path: &str, message: &str, in_force: bool) -> Problem {
    Problem {
        file: FILE.to_owned(),
        document: 0,
        line: 0,
        object: object.map(ToString::to_string),
        path: path.to_owned(),
        message: message.to_owned(),
        last_good_in_force: in_force,
    }
}
