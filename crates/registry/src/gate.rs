//! The registry as its two faces serve it: rules, quotas and the audit log stand before everything that is asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use http::Extensions;

use crate::access::{Access, Action, Caller, Peer};
use crate::audit::{self, Audit, Record};
use crate::error::Error;
use crate::model::{Instance, Selector};
use crate::namespace::Namespace;
use crate::osr::Registry;
use crate::quota::Rates;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    List,
    Get,
    Watch,
    Status,
    Register,
    Renew,
    Deregister,
    OpenSession,
    GetSession,
    RenewSession,
    CloseSession,
    PutInterface,
    DeleteInterface,
    Save,
    Restore,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Verb::List => "list",
            Verb::Get => "get",
            Verb::Watch => "watch",
            Verb::Status => "status",
            Verb::Register => "register",
            Verb::Renew => "renew",
            Verb::Deregister => "deregister",
            Verb::OpenSession => "openSession",
            Verb::GetSession => "getSession",
            Verb::RenewSession => "renewSession",
            Verb::CloseSession => "closeSession",
            Verb::PutInterface => "putInterface",
            Verb::DeleteInterface => "deleteInterface",
            Verb::Save => "save",
            Verb::Restore => "restore",
        }
    }

    fn action(self) -> Action {
        match self {
            Verb::List | Verb::Get | Verb::Watch | Verb::Status => Action::Read,
            Verb::Save | Verb::Restore => Action::Admin,
            _ => Action::Write,
        }
    }

    /// Whether a success is worth a line: heartbeats and looks are not.
    fn is_logged(self) -> bool {
        !matches!(
            self,
            Verb::List
                | Verb::Get
                | Verb::Status
                | Verb::Renew
                | Verb::GetSession
                | Verb::RenewSession
        )
    }
}

/// Where something is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    One(&'a Namespace),
    Many(&'a BTreeSet<&'a Namespace>),
    /// All namespaces.
    All,
    /// None in particular: a caller who may do it somewhere may.
    Somewhere,
}

impl<'a> From<Option<&'a Namespace>> for Scope<'a> {
    fn from(namespace: Option<&'a Namespace>) -> Scope<'a> {
        namespace.map_or(Scope::All, Scope::One)
    }
}

/// An instance as the log names it.
pub(crate) fn named(instance: &Instance) -> String {
    match instance.id.is_empty() {
        true => format!("{} {}", instance.service, instance.default_id()),
        false => format!("{} {}", instance.service, instance.id),
    }
}

/// What a watch is about, for the audit log.
pub(crate) fn watched(selector: &Selector) -> Option<String> {
    let word = |word: &Option<Arc<str>>| word.as_deref().unwrap_or("*").to_owned();
    let pattern = selector.service_pattern.as_ref();
    let service = pattern.map_or_else(|| word(&selector.service), |p| p.as_str().to_owned());
    Some(format!("{}/{service}", word(&selector.protocol)))
}

/// The registry with those who guard it.
#[derive(Clone)]
pub struct Api {
    pub(crate) registry: Registry,
    access: Access,
    audit: Audit,
    rates: Arc<Rates>,
}

/// Something that was allowed, and whose end is to be logged.
#[must_use = "its end is to be told"]
pub(crate) struct Entry<'a> {
    audit: &'a Audit,
    record: Option<Record>,
}

impl Entry<'_> {
    /// Tells how it ended.
    pub(crate) fn end<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        if let Some(mut record) = self.record {
            if let Err(error) = &result {
                record.result = "failed";
                record.message = Some(error.to_string());
            }
            self.audit.write(record);
        }
        result
    }
}

impl Api {
    pub(crate) fn new(registry: Registry, access: Access, audit: Audit) -> Api {
        Api {
            registry,
            access,
            audit,
            rates: Arc::default(),
        }
    }

    /// The same under other rules, for another address: quotas and log are common.
    pub fn under(&self, access: Access) -> Api {
        Api {
            access,
            ..self.clone()
        }
    }

    /// Who sends a request.
    pub(crate) fn caller(
        &self,
        authorization: Option<&[u8]>,
        extensions: &Extensions,
    ) -> Result<Caller, Error> {
        let peer = Peer::of(extensions);
        self.access
            .identify(authorization, &peer)
            .inspect_err(|error| self.refused("", &peer, "authenticate", error))
    }

    fn refused(&self, identity: &str, peer: &Peer, action: &'static str, error: &Error) {
        if self.audit.is_on() {
            self.audit.write(Record {
                time: audit::now(),
                identity: identity.to_owned(),
                peer: peer.address.map(|address| address.to_string()),
                action,
                namespaces: Vec::new(),
                objects: Vec::new(),
                count: 0,
                result: "refused",
                message: Some(error.to_string()),
            });
        }
    }

    /// Lets a caller do something, or says why not.
    pub(crate) fn enter<O: Iterator<Item = String>>(
        &self,
        caller: &Caller,
        verb: Verb,
        scope: Scope<'_>,
        objects: impl FnOnce() -> O,
    ) -> Result<Entry<'_>, Error> {
        let allowed = self.allow(caller, verb.action(), scope);
        let mut record = None;
        if self.audit.is_on() && (verb.is_logged() || allowed.is_err()) {
            let namespaces = match scope {
                Scope::One(namespace) => vec![namespace.to_string()],
                Scope::Many(namespaces) => namespaces.iter().map(|n| n.to_string()).collect(),
                Scope::All => vec!["*".to_owned()],
                Scope::Somewhere => Vec::new(),
            };
            let mut line = Record {
                time: audit::now(),
                identity: caller.name(),
                peer: caller.peer.map(|address| address.to_string()),
                action: verb.as_str(),
                namespaces,
                objects: Vec::new(),
                count: 0,
                result: "ok",
                message: None,
            };
            line.name(objects());
            record = Some(line);
        }
        if let Err(error) = allowed {
            if let Some(mut record) = record {
                record.result = "refused";
                record.message = Some(error.to_string());
                self.audit.write(record);
            }
            return Err(error);
        }
        Ok(Entry {
            audit: &self.audit,
            record,
        })
    }

    fn allow(&self, caller: &Caller, action: Action, scope: Scope<'_>) -> Result<(), Error> {
        let one = |namespace: &Namespace| self.access.allow(caller, action, Some(namespace));
        match scope {
            Scope::One(namespace) => one(namespace)?,
            // Who names nothing may do nothing either, unless there is something that he may do.
            Scope::Many(none) if none.is_empty() => {
                self.access.allow_somewhere(caller, action)?;
            }
            Scope::Many(namespaces) => namespaces.iter().try_for_each(|n| one(n))?,
            Scope::All => self.access.allow(caller, action, None)?,
            Scope::Somewhere => self.access.allow_somewhere(caller, action)?,
        }
        let quotas = self.registry.quotas().load();
        if quotas.0.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let take = |namespace: &Namespace| self.rates.take(&quotas, namespace, now);
        match scope {
            Scope::One(namespace) => take(namespace),
            Scope::Many(namespaces) => namespaces.iter().try_for_each(|n| take(n)),
            Scope::All | Scope::Somewhere => Ok(()),
        }
    }

    /// Whether a caller may look into a namespace.
    pub(crate) fn sees(&self, caller: &Caller, namespace: &Namespace) -> bool {
        let allowed = self.access.allow(caller, Action::Read, Some(namespace));
        allowed.is_ok()
    }

    /// Whether a caller that was let in may still watch: rules change while a watch goes on.
    pub(crate) fn allow_watch(
        &self,
        caller: &Caller,
        namespace: Option<&Namespace>,
    ) -> Result<(), Error> {
        self.access.allow(caller, Action::Read, namespace)
    }
}
