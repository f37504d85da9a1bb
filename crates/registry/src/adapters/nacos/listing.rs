//! Which services there are. Servers of 3.x tell it; the others are asked again and again, group by group.

use std::collections::{BTreeSet, HashMap};

use super::connection::Connection;
use super::login::Login;
use super::{ALL_GROUPS, Config, Failure};
use crate::nacos::{
    self, FUZZY_WATCH, FuzzyWatchRequest, Request, Response, ServiceListRequest, split_name,
};
use crate::source::Trouble;

/// Names of a page.
const PAGE: u32 = 2000;
/// Services of a namespace.
const SERVICES: usize = 1_000_000;
const ADD: &str = "ADD_SERVICE";
/// A service that is missing in so many lists is gone: pages of one list are not of one moment.
const MISSING: u8 = 2;

/// A service of Nacos.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    /// The number of its namespace.
    pub(super) space: usize,
    pub(super) group: String,
    pub(super) name: String,
}

/// What became of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Came(Id),
    /// `certain`: the server said so itself.
    Went(Id, bool),
}

/// The services that are known, and in how many lists they were missing.
#[derive(Default)]
pub(super) struct Known(HashMap<Id, u8>);

impl Known {
    /// A list of all services of a group, or of all groups.
    pub(super) fn listed(
        &mut self,
        space: usize,
        group: &str,
        names: &BTreeSet<(String, String)>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for (group, name) in names {
            let id = Id {
                space,
                group: group.clone(),
                name: name.clone(),
            };
            if self.0.insert(id.clone(), 0).is_none() {
                changes.push(Change::Came(id));
            }
        }
        let of_list = |id: &Id| id.space == space && (group == ALL_GROUPS || id.group == group);
        let gone = self.0.extract_if(|id, missing| {
            let key = || (id.group.clone(), id.name.clone());
            if !of_list(id) || names.contains(&key()) {
                return false;
            }
            *missing += 1;
            *missing >= MISSING
        });
        changes.extend(gone.map(|(id, _)| Change::Went(id, false)));
        changes
    }

    /// What a server of 3.x says of one service (`namespace@@group@@name`).
    pub(super) fn told(&mut self, space: usize, key: &str, change: &str) -> Option<Change> {
        let mut parts = key.splitn(3, "@@").skip(1);
        let id = Id {
            space,
            group: parts.next()?.to_owned(),
            name: parts.next()?.to_owned(),
        };
        if change == ADD {
            let is_new = self.0.insert(id.clone(), 0).is_none();
            is_new.then_some(Change::Came(id))
        } else {
            let known = self.0.remove(&id);
            known.map(|_| Change::Went(id, true))
        }
    }

    pub(super) fn has(&self, id: &Id) -> bool {
        self.0.contains_key(id)
    }
}

/// The names of the services of a group, with the group.
pub(super) async fn names(
    config: &Config,
    login: &Login,
    connection: &Connection,
    group: &str,
) -> Result<BTreeSet<(String, String)>, Failure> {
    if group == ALL_GROUPS {
        let server = connection.server();
        let reason = format!("{server}: the server cannot tell its groups: name them in `groups`");
        return Err(Failure::new(Trouble::Protocol, reason));
    }
    let mut names = BTreeSet::new();
    for page_no in 1.. {
        let request = Request::ServiceList(ServiceListRequest {
            namespace: connection.namespace().to_owned(),
            service_name: String::new(),
            group_name: group.to_owned(),
            page_no,
            page_size: PAGE,
            selector: String::new(),
        });
        let response = connection.ask(config, login, request).await?;
        let Response::ServiceList(page) = response else {
            return Err(connection.unexpected(&response));
        };
        let len = page.service_names.len();
        for name in &page.service_names {
            let (group, name) = split_name(group, name);
            names.insert((group.to_owned(), name.to_owned()));
        }
        let before = u64::from(page_no - 1) * u64::from(PAGE);
        let is_last = before + len as u64 >= page.count;
        if len == 0 || is_last || names.len() >= SERVICES {
            break;
        }
    }
    Ok(names)
}

/// Asks a server to tell which services come and go; `false`: it does not do that.
pub(super) async fn watch(
    config: &Config,
    login: &Login,
    connection: &Connection,
) -> Result<bool, Failure> {
    if !connection.is_able(FUZZY_WATCH) {
        return Ok(false);
    }
    for group in &config.groups {
        let namespace = nacos::namespace(connection.namespace());
        let request = Request::FuzzyWatch(FuzzyWatchRequest {
            initializing: true,
            namespace: namespace.to_owned(),
            group_key_pattern: format!("{namespace}>>{group}>>*"),
            received_group_keys: BTreeSet::new(),
            watch_type: "WATCH".to_owned(),
        });
        match connection.try_ask(config, login, &request).await? {
            Ok(_) => {}
            // Servers have a limit on the services that one pattern may match.
            Err(refused) if !refused.is_of_access() => return Ok(false),
            Err(refused) => return Err(connection.refused(&request, &refused)),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_gone_when_it_is_missing_twice_or_said_to_be() {
        let mut known = Known::default();
        let names = |names: &[&str]| -> BTreeSet<(String, String)> {
            let pairs = names
                .iter()
                .map(|name| ("G".to_owned(), (*name).to_owned()));
            pairs.collect()
        };
        let id = |name: &str| Id {
            space: 0,
            group: "G".to_owned(),
            name: name.to_owned(),
        };
        let came = known.listed(0, "G", &names(&["a", "b"]));
        assert_eq!(came, [Change::Came(id("a")), Change::Came(id("b"))]);
        assert_eq!(known.listed(0, "G", &names(&["a"])), []);
        assert_eq!(known.listed(0, "H", &names(&[])), []);
        assert_eq!(known.listed(0, "G", &names(&["a", "b"])), []);
        assert_eq!(known.listed(0, "G", &names(&["a"])), []);
        assert_eq!(
            known.listed(0, "G", &names(&["a"])),
            [Change::Went(id("b"), false)]
        );
        let told = known.told(0, "public@@G@@c", ADD);
        assert_eq!(told, Some(Change::Came(id("c"))));
        assert_eq!(known.told(0, "public@@G@@c", ADD), None);
        let told = known.told(0, "public@@G@@c", "DELETE_SERVICE");
        assert_eq!(told, Some(Change::Went(id("c"), true)));
        assert_eq!(known.told(0, "nonsense", ADD), None);
        assert!(known.has(&id("a")) && !known.has(&id("c")));
    }
}
