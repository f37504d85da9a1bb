//! Namespaces: the same protocol and name in two of them are two services.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// The name of the namespace of a service that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A namespace's name. That of the default one takes no memory, and eight bytes stand for any other.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Namespace(Option<Arc<Box<str>>>);

impl Namespace {
    /// The namespace of this name; the default one if it is empty.
    pub fn new(name: &str) -> Namespace {
        match name {
            "" | DEFAULT_NAMESPACE => Namespace(None),
            name => Namespace(Some(Arc::new(name.into()))),
        }
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        self.0.as_ref().map_or(DEFAULT_NAMESPACE, |name| name)
    }

    /// Whether it is the default one.
    pub fn is_default(&self) -> bool {
        self.0.is_none()
    }
}

impl Ord for Namespace {
    fn cmp(&self, other: &Namespace) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for Namespace {
    fn partial_cmp(&self, other: &Namespace) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
