//! Names of statistics, stored so that ten thousand clusters with fifty statistics each do not store the cluster's name
//! fifty times: everything up to the last dot is shared, and so is what follows it.

use std::collections::HashMap;
use std::sync::Arc;

/// A name as two shared halves; together they are the whole name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    prefix: Arc<str>,
    suffix: Arc<str>,
}

impl Name {
    pub(super) fn to_full(&self) -> String {
        [&*self.prefix, &*self.suffix].concat()
    }
}

/// The halves in use and by how many names.
#[derive(Default)]
pub(super) struct Names {
    halves: HashMap<Arc<str>, usize>,
}

impl Names {
    /// The shared form of a name; each call is undone by one [`Names::release`].
    pub(super) fn intern(&mut self, full: &str) -> Name {
        let split = full.rfind('.').map_or(0, |dot| dot + 1);
        let (prefix, suffix) = full.split_at(split);
        Name {
            prefix: self.half(prefix),
            suffix: self.half(suffix),
        }
    }

    pub(super) fn release(&mut self, name: &Name) {
        for half in [&name.prefix, &name.suffix] {
            if let Some(uses) = self.halves.get_mut(half) {
                *uses -= 1;
                if *uses == 0 {
                    self.halves.remove(half);
                }
            }
        }
    }

    fn half(&mut self, text: &str) -> Arc<str> {
        if let Some((half, _)) = self.halves.get_key_value(text) {
            let half = Arc::clone(half);
            if let Some(uses) = self.halves.get_mut(text) {
                *uses += 1;
            }
            return half;
        }
        let half: Arc<str> = Arc::from(text);
        self.halves.insert(Arc::clone(&half), 1);
        half
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.halves.len()
    }
}
