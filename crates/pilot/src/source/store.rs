//! What the files say, and what of it is in force: a document that becomes invalid keeps its last good version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::istio::{Object, ObjectId, document};
use crate::world::Config;

/// Files larger than this are refused.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A document that is not in force as it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, as found below the folder.
    pub file: String,
    /// The document's number in it, from 1; 0 for the file itself.
    pub document: usize,
    /// The line where the document starts.
    pub line: usize,
    /// What it names, if that can be read.
    pub object: Option<String>,
    /// The field.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// Whether an earlier version of it is in force.
    pub last_good_in_force: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.document > 0 {
            write!(f, ": document {} (line {})", self.document, self.line)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        if self.last_good_in_force {
            write!(f, " (its last good version stays in force)")?;
        }
        Ok(())
    }
}

/// When a file was last written, and how long it was: what tells that it changed.
type Stamp = (SystemTime, u64);

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<ObjectId, Arc<Object>>,
    problems: Vec<Problem>,
}

/// All files of a folder.
#[derive(Debug, Default)]
pub struct FileStore {
    folder: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

impl FileStore {
    /// A store for a folder, not yet read.
    pub fn new(folder: &Path) -> FileStore {
        FileStore {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
        }
    }

    /// Looks at all files, and reads those that changed. Returns whether any did.
    pub fn rescan(&mut self) -> bool {
        let mut found = BTreeSet::new();
        collect(&self.folder, 0, &mut found);
        let gone: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| !found.contains(*path))
            .cloned()
            .collect();
        let mut changed = !gone.is_empty();
        for path in gone {
            self.files.remove(&path);
        }
        for path in found {
            let stamp = stamp(&path);
            let file = self.files.entry(path.clone()).or_default();
            if file.stamp.is_none() || file.stamp != stamp {
                let name = path
                    .strip_prefix(&self.folder)
                    .unwrap_or(&path)
                    .display()
                    .to_string();
                file.read(&path, &name);
                file.stamp = stamp;
                changed = true;
            }
        }
        changed
    }

    /// The objects in force. Of two with one name that of the first file stays; the other is a problem.
    pub fn config(&self) -> (Config, Vec<Problem>) {
        let mut config = Config::new();
        let mut problems = Vec::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for (id, object) in &file.objects {
                if config.contains_key(id) {
                    problems.push(Problem {
                        file: path
                            .strip_prefix(&self.folder)
                            .unwrap_or(path)
                            .display()
                            .to_string(),
                        document: 0,
                        line: 0,
                        object: Some(id.to_string()),
                        path: String::new(),
                        message: "is already defined in another file, which is in force".to_owned(),
                        last_good_in_force: false,
                    });
                } else {
                    config.insert(id.clone(), object.clone());
                }
            }
        }
        (config, problems)
    }
}

impl File {
    fn read(&mut self, path: &Path, name: &str) {
        let text = match read_limited(path) {
            Ok(text) => text,
            Err(message) => {
                // Unreadable for the moment: what was in force stays.
                self.problems = vec![Problem {
                    file: name.to_owned(),
                    document: 0,
                    line: 0,
                    object: None,
                    path: String::new(),
                    message,
                    last_good_in_force: !self.objects.is_empty(),
                }];
                return;
            }
        };
        let before = std::mem::take(&mut self.objects);
        self.problems.clear();
        let documents = document::parse(&text);
        // Which object an unreadable document was cannot be told: all that are missing may be it.
        let any_unreadable = documents.iter().any(|document| document.id.is_none());
        for document in documents {
            let problem = |message: String, path: String, last_good_in_force| Problem {
                file: name.to_owned(),
                document: document.number,
                line: document.line,
                object: document.id.as_ref().map(ToString::to_string),
                path,
                message,
                last_good_in_force,
            };
            match document.result {
                Ok(ref object) if self.objects.contains_key(&object.id) => {
                    let message = "is defined twice in this file, the first is in force".to_owned();
                    self.problems.push(problem(message, String::new(), false));
                }
                Ok(object) => {
                    self.objects.insert(object.id.clone(), Arc::new(object));
                }
                Err(ref error) => {
                    let last_good = document.id.as_ref().and_then(|id| before.get(id));
                    let in_force =
                        last_good.is_some() || (document.id.is_none() && !before.is_empty());
                    self.problems.push(problem(
                        error.message.clone(),
                        error.path.clone(),
                        in_force,
                    ));
                    if let Some(object) = last_good {
                        self.objects
                            .entry(object.id.clone())
                            .or_insert_with(|| object.clone());
                    }
                }
            }
        }
        if any_unreadable {
            for (id, object) in before {
                self.objects.entry(id).or_insert(object);
            }
        }
    }
}

fn read_limited(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// YAML files of a folder and the folders in it. Hidden ones are left out: editors keep half-written files in them, and
/// Kubernetes its generations of mounted ones.
fn collect(folder: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Links are followed: mounted ConfigMaps are links.
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            if depth < 8 {
                collect(&path, depth + 1, found);
            }
        } else if path
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
        {
            found.insert(path);
        }
    }
}
