//! Watches of which services there are (3.x): `namespace>>group>>service`, with `*` for what does not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::directory::{Directory, Name};
use crate::nacos::{FuzzyWatchChangeRequest, FuzzyWatchContext, FuzzyWatchSyncRequest, Request};

const ADD: &str = "ADD_SERVICE";
const DELETE: &str = "DELETE_SERVICE";
const CHANGED: &str = "FUZZY_WATCH_RESOURCE_CHANGED";
const INITIAL: &str = "FUZZY_WATCH_INIT_NOTIFY";
const FINISHED: &str = "FINISH_FUZZY_WATCH_INIT_NOTIFY";
const DIFFERENCE: &str = "FUZZY_WATCH_DIFF_SYNC_NOTIFY";
/// Names in one message.
const PORTION: usize = 100;

/// A pattern taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) namespace: String,
    group: String,
    service: String,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Option<Pattern> {
        let mut parts = text.split(">>");
        let (namespace, group, service) = (parts.next()?, parts.next()?, parts.next()?);
        (parts.next().is_none() && !group.is_empty() && !service.is_empty()).then(|| Pattern {
            namespace: crate::nacos::namespace(namespace).to_owned(),
            group: group.to_owned(),
            service: service.to_owned(),
        })
    }

    fn has(&self, name: &Name) -> bool {
        *self.namespace == *name.namespace
            && matches(&self.group, &name.group)
            && matches(&self.service, &name.service)
    }
}

/// Stars are at the beginning, at the end or at both.
fn matches(pattern: &str, word: &str) -> bool {
    let first = pattern.strip_prefix('*');
    let inner = first.unwrap_or(pattern);
    let last = inner.strip_suffix('*');
    let inner = last.unwrap_or(inner);
    match (first.is_some(), last.is_some()) {
        (true, _) if inner.is_empty() => true,
        (true, true) => word.contains(inner),
        (true, false) => word.ends_with(inner),
        (false, true) => word.starts_with(inner),
        (false, false) => word == inner,
    }
}

/// What a client knows of the names that match a pattern.
pub(super) struct Fuzzy {
    pattern: Pattern,
    text: String,
    known: BTreeSet<Name>,
    /// The client does not have all names yet.
    initial: bool,
    /// It has names that it has to be compared with.
    compare: bool,
    changed: BTreeSet<Arc<str>>,
}

impl Fuzzy {
    pub(super) fn new(
        pattern: Pattern,
        text: &str,
        initial: bool,
        received: &BTreeSet<String>,
    ) -> Fuzzy {
        let known = received.iter().filter_map(|key| {
            let mut parts = key.splitn(3, "@@");
            let (namespace, group, service) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Name {
                namespace: namespace.into(),
                group: group.into(),
                service: service.into(),
            })
        });
        Fuzzy {
            pattern,
            text: text.to_owned(),
            known: known.collect(),
            initial,
            compare: true,
            changed: BTreeSet::new(),
        }
    }

    /// A service has changed; whether it can be one of these.
    pub(super) fn changed(&mut self, service: &Arc<str>) -> bool {
        let matches = matches(&self.pattern.service, service);
        if matches {
            self.changed.insert(service.clone());
        }
        matches
    }

    /// What the client has to be told now.
    pub(super) fn news(&mut self, directory: &Directory) -> Vec<Request> {
        let changed = std::mem::take(&mut self.changed);
        let mut news: BTreeMap<Name, &'static str> = BTreeMap::new();
        if self.compare {
            let namespace = self.pattern.namespace.as_str();
            let there = directory.all(namespace).into_iter();
            let there: BTreeSet<Name> = there.filter(|name| self.pattern.has(name)).collect();
            news.extend(there.difference(&self.known).map(|n| (n.clone(), ADD)));
            news.extend(self.known.difference(&there).map(|n| (n.clone(), DELETE)));
            self.known = there;
        } else {
            for service in changed {
                let there = directory.groups(&self.pattern.namespace, &service);
                let name = |group: Arc<str>| Name {
                    namespace: self.pattern.namespace.as_str().into(),
                    group,
                    service: service.clone(),
                };
                let there = there.into_iter().map(name);
                let there: BTreeSet<Name> = there.filter(|name| self.pattern.has(name)).collect();
                let known = self.known.iter().filter(|name| name.service == service);
                let known: BTreeSet<Name> = known.cloned().collect();
                news.extend(there.difference(&known).map(|n| (n.clone(), ADD)));
                news.extend(known.difference(&there).map(|n| (n.clone(), DELETE)));
                self.known.retain(|name| name.service != service);
                self.known.extend(there);
            }
        }
        let compared = std::mem::take(&mut self.compare);
        let initial = std::mem::take(&mut self.initial);
        match (compared, initial) {
            (false, _) => news.into_iter().map(|(n, kind)| change(&n, kind)).collect(),
            (true, false) => self.portions(DIFFERENCE, news),
            (true, true) => {
                let mut messages = self.portions(INITIAL, news);
                messages.push(self.sync(FINISHED, Vec::new(), 0, 0));
                messages
            }
        }
    }

    fn portions(&self, kind: &str, news: BTreeMap<Name, &'static str>) -> Vec<Request> {
        let news: Vec<(Name, &str)> = news.into_iter().collect();
        let total = news.len().div_ceil(PORTION);
        let portions = news.chunks(PORTION).enumerate();
        let portions = portions.map(|(index, portion)| {
            let context = |(name, kind): &(Name, &str)| FuzzyWatchContext {
                service_key: key(name),
                changed_type: (*kind).to_owned(),
            };
            let contexts = portion.iter().map(context).collect();
            self.sync(kind, contexts, total, index + 1)
        });
        portions.collect()
    }

    fn sync(
        &self,
        kind: &str,
        contexts: Vec<FuzzyWatchContext>,
        total: usize,
        current: usize,
    ) -> Request {
        Request::FuzzyWatchSync(FuzzyWatchSyncRequest {
            group_key_pattern: self.text.clone(),
            sync_type: kind.to_owned(),
            contexts,
            total_batch: u32::try_from(total).unwrap_or(u32::MAX),
            current_batch: u32::try_from(current).unwrap_or(u32::MAX),
        })
    }
}

fn key(name: &Name) -> String {
    format!("{}@@{}@@{}", name.namespace, name.group, name.service)
}

fn change(name: &Name, kind: &str) -> Request {
    Request::FuzzyWatchChange(FuzzyWatchChangeRequest {
        service_key: key(name),
        changed_type: kind.to_owned(),
        sync_type: CHANGED.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::directory::Owner;
    use super::*;
    use crate::nacos::Host;

    fn told(fuzzy: &mut Fuzzy, directory: &Directory) -> Vec<String> {
        let news = fuzzy.news(directory).into_iter();
        let told = news.flat_map(|request| match request {
            Request::FuzzyWatchSync(sync) => {
                let contexts = sync.contexts.into_iter();
                let names = contexts.map(|c| format!("{} {}", c.changed_type, c.service_key));
                std::iter::once(sync.sync_type)
                    .chain(names)
                    .collect::<Vec<String>>()
            }
            Request::FuzzyWatchChange(change) => {
                vec![format!("{} {}", change.changed_type, change.service_key)]
            }
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn a_client_is_told_what_comes_and_goes() {
        let mut directory = Directory::default();
        let host = Host {
            ip: "10.0.0.1".to_owned(),
            port: 1,
            ..Host::default()
        };
        let (a, b) = (Name::new("", "g", "shop-a"), Name::new("", "g", "shop-b"));
        directory.hold(&a, Owner::Beats, host.clone());
        let text = ">>g>>shop*";
        let pattern = Pattern::parse(text).expect("a pattern");
        let mut fuzzy = Fuzzy::new(pattern.clone(), text, true, &BTreeSet::new());
        let first = [INITIAL, "ADD_SERVICE public@@g@@shop-a", FINISHED];
        assert_eq!(told(&mut fuzzy, &directory), first);
        directory.hold(&b, Owner::Beats, host.clone());
        directory.hold(&Name::new("", "h", "shop-b"), Owner::Beats, host);
        assert!(fuzzy.changed(&b.service));
        assert!(!fuzzy.changed(&"cart".into()));
        let added = ["ADD_SERVICE public@@g@@shop-b"];
        assert_eq!(told(&mut fuzzy, &directory), added);
        assert!(told(&mut fuzzy, &directory).is_empty());
        for slot in directory.held_by(Owner::Beats, &a) {
            directory.release(&a.service, &slot);
        }
        assert!(fuzzy.changed(&a.service));
        let gone = ["DELETE_SERVICE public@@g@@shop-a"];
        assert_eq!(told(&mut fuzzy, &directory), gone);
        // After a reconnect only the difference.
        let received = ["public@@g@@shop-a", "public@@g@@shop-b"];
        let received = received.map(str::to_owned).into();
        let mut again = Fuzzy::new(pattern, text, false, &received);
        let difference = [DIFFERENCE, "DELETE_SERVICE public@@g@@shop-a"];
        assert_eq!(told(&mut again, &directory), difference);
    }

    #[test]
    fn stars_are_at_the_ends() {
        for (pattern, word, expected) in [
            ("*", "", true),
            ("**", "a", true),
            ("a*", "ab", true),
            ("a*", "ba", false),
            ("*a", "ba", true),
            ("*a*", "bab", true),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, word), expected, "{pattern} {word}");
        }
        assert!(Pattern::parse("a>>b").is_none());
        assert!(Pattern::parse("a>>b>>c>>d").is_none());
    }
}
