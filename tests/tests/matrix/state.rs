//! What a stock client sees of the service, and what it should see.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

/// The one service that every registry can hold: HTTP.
pub(crate) const SERVICE: &str = "shop";
/// The mesh's name in the marks of copies.
const MESH: &str = "cluster.local";

/// The source that keeps an address' first metadata: Nacos itself does not, but r-nacos.
pub(crate) const NACOS: &str = "nacos";

/// An instance as it is registered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instance {
    /// All have one address, so this names it.
    pub(crate) port: u16,
    pub(crate) weight: u32,
    /// A word of its metadata.
    pub(crate) color: String,
    /// The first such word since it is registered, which r-nacos keeps.
    pub(crate) first_color: String,
    /// The source where it was put.
    pub(crate) origin: &'static str,
}

impl Instance {
    /// As the client of a registry has to see it.
    pub(crate) fn seen_in(&self, source: &str) -> Entry {
        let mark = if source == self.origin {
            "-".to_owned()
        } else {
            format!("{MESH}/{}", self.origin)
        };
        let is_of_nacos = [source, self.origin].contains(&NACOS);
        let color = if is_of_nacos {
            &self.first_color
        } else {
            &self.color
        };
        Entry {
            port: self.port,
            weight: self.weight,
            color: color.clone(),
            mark,
        }
    }
}

/// One entry of what a client sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) port: u16,
    pub(crate) weight: u32,
    pub(crate) color: String,
    /// Of a copy; `-` for what an application put there.
    pub(crate) mark: String,
}

/// All entries, sorted; one that is there twice is there twice.
pub(crate) type State = Vec<Entry>;

/// Reads what a client of `tests/apps` says after `seen NAME`.
pub(crate) fn read_state(words: &str) -> Result<State> {
    let entries = words.split(' ').filter(|word| !word.is_empty());
    let mut state: State = entries.map(read_entry).collect::<Result<_>>()?;
    state.sort();
    Ok(state)
}

fn read_entry(word: &str) -> Result<Entry> {
    let read = || {
        let (address, rest) = word.split_once('=')?;
        let (weight, rest) = rest.split_once(',')?;
        let (color, mark) = rest.split_once('@')?;
        Some(Entry {
            port: address.rsplit_once(':')?.1.parse().ok()?,
            weight: weight.parse().ok()?,
            color: color.to_owned(),
            mark: mark.to_owned(),
        })
    };
    read().with_context(|| format!("not an entry: {word}"))
}

/// The states that one client saw, and what was wrong with them.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) states: Vec<State>,
    /// Living instances that were seen since it was last forgiven.
    seen: BTreeSet<u16>,
    /// What must not be, in words.
    pub(crate) faults: Vec<String>,
    /// What the registry itself has lost is nobody's fault.
    pub(crate) is_forgiven: bool,
}

impl History {
    pub(crate) fn now(&self) -> State {
        self.states.last().cloned().unwrap_or_default()
    }

    /// Takes a state in; `living` are those that may not be missed once they were seen.
    pub(crate) fn take(&mut self, source: &str, state: State, living: &BTreeMap<u16, Instance>) {
        for entry in &state {
            let instance = living.get(&entry.port);
            if let Some(instance) = instance
                && entry.mark != instance.seen_in(source).mark
            {
                self.faults
                    .push(format!("{source}: {entry:?} is marked wrong"));
            }
        }
        for port in living.keys() {
            let is_there = state.iter().any(|entry| entry.port == *port);
            if is_there {
                self.seen.insert(*port);
            } else if self.seen.contains(port) && !self.is_forgiven {
                self.seen.remove(port);
                self.faults
                    .push(format!("{source}: {port} was gone in {state:?}"));
            }
        }
        self.states.push(state);
    }

    /// An instance ends: it may go.
    pub(crate) fn forget(&mut self, port: u16) {
        self.seen.remove(&port);
    }
}
