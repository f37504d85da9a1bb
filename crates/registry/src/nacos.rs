//! Nacos' wire as both of its sides need it: messages in JSON, in an envelope of protobuf over gRPC, or plain over HTTP. What
//! servers of different versions leave out, add or call otherwise is read all the same.

mod host;
mod messages;
mod payload;

pub use host::{Entry, Host, ServiceInfo};
pub use messages::*;
pub use payload::{Answer, Asked, MESSAGE_BYTES, Refused, answer, answered, ask, asked, refusal};
pub(crate) use payload::{answer_with, drop_nulls, notify};

/// The group of a service that names none.
pub const DEFAULT_GROUP: &str = "DEFAULT_GROUP";
/// The cluster of an instance that names none.
pub const DEFAULT_CLUSTER: &str = "DEFAULT";
/// The namespace that is meant where none is named.
pub const PUBLIC: &str = "public";
/// Stands between group and name of a service, where both are one word.
const BETWEEN: &str = "@@";

/// Group and name, where both are one word or only the name is said.
pub fn split_name<'a>(group: &'a str, name: &'a str) -> (&'a str, &'a str) {
    let (group, name) = name.split_once(BETWEEN).unwrap_or((group, name));
    if group.is_empty() {
        (DEFAULT_GROUP, name)
    } else {
        (group, name)
    }
}

/// Group and name as one word.
pub fn grouped_name(group: &str, name: &str) -> String {
    format!("{group}{BETWEEN}{name}")
}

/// The namespace as requests name it: the public one has a word and none.
pub fn namespace(name: &str) -> &str {
    if name.is_empty() { PUBLIC } else { name }
}
