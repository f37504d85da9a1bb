//! What a URL says: names and query parameters. A parameter
//! that is not known is refused: a misspelt filter would else show everything.

use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use base::FieldError;

use super::problem::Problem;
use crate::convert::ALL_NAMESPACES;
use crate::interfaces::InterfaceKey;
use crate::limits::{Limits, check_namespace};
use crate::model::{InstanceRef, Selector, ServiceKey};
use crate::namespace::Namespace;
use crate::page::{PAGE, PAGE_MAX};
use crate::pattern::Pattern;
use crate::sessions::SessionId;
use crate::watch::Since;

/// The parameters of a request, unchecked.
pub(super) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query, Problem> {
        let pairs =
            axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        match pairs {
            Ok(axum::extract::Query(pairs)) => Ok(Query(pairs)),
            Err(rejection) => Err(Problem::bad_request(&rejection.body_text())),
        }
    }
}

/// The names in a URL, unchecked.
#[derive(Default)]
pub(super) struct Names {
    /// `None` below `/v1/services`.
    namespace: Option<String>,
    protocol: String,
    service: String,
    id: String,
    session: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Names, Problem> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|rejection| Problem::bad_request(&rejection.body_text()))?;
        let mut names = Names::default();
        for (name, value) in &params {
            let value = value.to_owned();
            match name {
                "namespace" => names.namespace = Some(value),
                "protocol" => names.protocol = value,
                "service" => names.service = value,
                "id" => names.id = value,
                "session" => names.session = value,
                _ => {}
            }
        }
        Ok(names)
    }
}

impl Names {
    /// The namespace that is named, or the default one.
    pub(super) fn namespace(&self) -> Result<Namespace, Problem> {
        namespace(self.namespace.as_deref().unwrap_or_default())
    }

    pub(super) fn session(&self) -> Result<SessionId, Problem> {
        session(&self.session)
    }

    pub(super) fn service(&self, limits: &Limits) -> Result<ServiceKey, Problem> {
        let namespace = self.namespace()?;
        let key = ServiceKey::within(namespace, &self.protocol, &self.service);
        limits.check_service(&key).map_err(Problem::invalid)?;
        Ok(key)
    }

    pub(super) fn instance(&self, limits: &Limits) -> Result<InstanceRef, Problem> {
        let reference = InstanceRef {
            service: self.service(limits)?,
            id: self.id.as_str().into(),
        };
        limits
            .check_reference(&reference)
            .map_err(Problem::invalid)?;
        Ok(reference)
    }
}

pub(super) fn session(text: &str) -> Result<SessionId, Problem> {
    text.parse().map_err(|()| {
        let message = "must be 32 hexadecimal digits";
        Problem::invalid(FieldError::at("session", message))
    })
}

fn namespace(name: &str) -> Result<Namespace, Problem> {
    let namespace = Namespace::new(name);
    check_namespace(&namespace).map_err(Problem::invalid)?;
    Ok(namespace)
}

/// Parameters of lists and watches that say which instances are meant.
pub(super) const FILTERS: [&str; 9] = [
    "namespace",
    "protocol",
    "service",
    "servicePattern",
    "version",
    "group",
    "healthy",
    "origin",
    METADATA,
];
/// `metadata[KEY]=VALUE`, as often as one likes.
const METADATA: &str = "metadata[KEY]";

/// The key in `metadata[KEY]`.
fn metadata_key(name: &str) -> Option<&str> {
    name.strip_prefix("metadata[")?.strip_suffix(']')
}

/// A part of a list.
pub(super) struct Page {
    /// Entries at most.
    pub(super) limit: usize,
    /// The list goes on behind this.
    pub(super) after: Option<String>,
}

impl Query {
    /// Refuses parameters that are not in the lists, and those that come twice.
    pub(super) fn only(self, groups: &[&[&str]]) -> Result<Query, Problem> {
        let known = groups.concat();
        let mut seen: Vec<&str> = Vec::new();
        for (name, _) in &self.0 {
            let is_label = known.contains(&METADATA) && metadata_key(name).is_some();
            let message = match () {
                () if !is_label && !known.contains(&name.as_str()) => {
                    format!("is not known; there are {}", known.join(", "))
                }
                () if seen.contains(&name.as_str()) => "comes twice".to_owned(),
                () => {
                    seen.push(name);
                    continue;
                }
            };
            return Err(Problem::invalid(FieldError::at(name, message)));
        }
        Ok(self)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(key, _)| key == name)?;
        Some(&pair.1)
    }

    /// What the filters mean, in the namespace of the URL or of the parameter; `*` means all.
    pub(super) fn selector(&self, names: &Names) -> Result<Selector, Problem> {
        let namespace = match (&names.namespace, self.get("namespace")) {
            (Some(_), Some(_)) => {
                let message = "the path names one";
                return Err(Problem::invalid(FieldError::at("namespace", message)));
            }
            (None, Some(ALL_NAMESPACES)) => None,
            (None, Some(name)) => Some(namespace(name)?),
            (_, None) => Some(names.namespace()?),
        };
        let word = |name| self.get(name).map(Arc::from);
        let healthy = match self.get("healthy") {
            None => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(other) => {
                let message = format!("must be true or false, is {other:?}");
                return Err(Problem::invalid(FieldError::at("healthy", message)));
            }
        };
        Ok(Selector {
            namespace,
            protocol: word("protocol"),
            service: word("service"),
            service_pattern: self.get("servicePattern").map(Pattern::new),
            version: word("version"),
            group: word("group"),
            healthy,
            origin: word("origin"),
            metadata: self.metadata(),
            available_only: false,
        })
    }

    fn metadata(&self) -> Vec<(String, String)> {
        let pairs = self.0.iter();
        let pairs = pairs.filter_map(|(name, value)| Some((metadata_key(name)?, value)));
        pairs
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    }

    /// The session that a registration is part of.
    pub(super) fn session(&self) -> Result<Option<SessionId>, Problem> {
        self.get("session").map(session).transpose()
    }

    /// The interface of a service that version and group name.
    pub(super) fn interface(
        &self,
        service: ServiceKey,
        limits: &Limits,
    ) -> Result<InterfaceKey, Problem> {
        let key = InterfaceKey {
            service,
            version: self.get("version").unwrap_or_default().into(),
            group: self.get("group").unwrap_or_default().into(),
        };
        limits.check_interface(&key).map_err(Problem::invalid)?;
        Ok(key)
    }

    pub(super) fn page(&self) -> Result<Page, Problem> {
        let limit = match self.get("limit") {
            None => PAGE,
            Some(text) => match text.parse() {
                Ok(limit) if (1..=PAGE_MAX).contains(&limit) => limit,
                _ => {
                    let message = format!("must be 1 to {PAGE_MAX}, is {text:?}");
                    return Err(Problem::invalid(FieldError::at("limit", message)));
                }
            },
        };
        Ok(Page {
            limit,
            after: self.get("after").map(str::to_owned),
        })
    }

    pub(super) fn since(&self) -> Result<Option<Since>, Problem> {
        let Some(text) = self.get("since") else {
            return Ok(None);
        };
        match text.parse() {
            Ok(revision) => Ok(Some(Since {
                revision,
                store: self.get("store").map(str::to_owned),
            })),
            Err(_) => {
                let message = format!("must be a revision, is {text:?}");
                Err(Problem::invalid(FieldError::at("since", message)))
            }
        }
    }
}
