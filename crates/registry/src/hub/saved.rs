//! What each registry held last, on disk: a hub that starts while a registry is away serves its last known instances.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::mesh::registry::v1 as pb;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message;

use crate::convert::{instance_from, instance_to};
use crate::model::Instance;

/// Lists of one source by their names.
pub(crate) type Lists = Vec<(Arc<str>, Vec<Arc<Instance>>)>;

#[derive(Clone, PartialEq, Message)]
struct SavedSource {
    #[prost(message, repeated, tag = "1")]
    lists: Vec<SavedList>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedList {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    instances: Vec<pb::Instance>,
}

fn file(folder: &Path, source: &str) -> PathBuf {
    let name = utf8_percent_encode(source, NON_ALPHANUMERIC);
    folder.join(format!("{name}.lists"))
}

/// Writes what a source holds, in the place of what it held before: either is whole.
pub(crate) fn write(folder: &Path, source: &str, lists: &Lists) -> io::Result<()> {
    let saved = SavedSource {
        lists: lists
            .iter()
            .map(|(name, instances)| SavedList {
                name: name.to_string(),
                instances: instances.iter().map(|i| instance_to(i)).collect(),
            })
            .collect(),
    };
    fs::create_dir_all(folder)?;
    let file = file(folder, source);
    let new = file.with_extension("new");
    fs::write(&new, saved.encode_to_vec())?;
    fs::rename(&new, &file)
}

/// What a source held last; nothing when that is not known. A file that cannot be read is as good as none.
pub(crate) fn read(folder: &Path, source: &str) -> Vec<(Arc<str>, Vec<Instance>)> {
    let file = file(folder, source);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "last known instances cannot be read");
            return Vec::new();
        }
    };
    let saved = match SavedSource::decode(bytes.as_slice()) {
        Ok(saved) => saved,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "last known instances cannot be read");
            return Vec::new();
        }
    };
    saved
        .lists
        .into_iter()
        .map(|list| {
            let instances = list.instances.into_iter();
            let instances = instances.filter_map(|i| instance_from(i).ok()).collect();
            (list.name.into(), instances)
        })
        .collect()
}

/// Forgets a source.
pub(crate) fn remove(folder: &Path, source: &str) {
    // It may never have been written.
    let _ = fs::remove_file(file(folder, source));
}
