//! What a URL says: names and query parameters. A parameter
//! that is not known is refused: a misspelt filter would else show everything.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use base::FieldError;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::model::Selector;
use crate::watch::Since;

/// Entries of a page unless `limit` says otherwise.
const PAGE: usize = 1000;
/// Most entries of a page.
const PAGE_MAX: usize = 10_000;

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

/// The names in a URL.
pub(super) struct Names<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Names<T>, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Names(names)),
            Err(rejection) => Err(Problem::bad_request(&rejection.body_text())),
        }
    }
}

/// A part of a list.
pub(super) struct Page {
    /// Entries at most.
    pub(super) limit: usize,
    /// The list goes on behind this.
    pub(super) after: Option<String>,
}

impl Query {
    /// Refuses parameters that are not in the list, and those that come twice.
    pub(super) fn only(self, known: &[&str]) -> Result<Query, Problem> {
        let mut seen: Vec<&str> = Vec::new();
        for (name, _) in &self.0 {
            let message = match () {
                () if !known.contains(&name.as_str()) => {
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

    pub(super) fn selector(&self) -> Result<Selector, Problem> {
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
            protocol: word("protocol"),
            service: word("service"),
            version: word("version"),
            group: word("group"),
            healthy,
            available_only: false,
        })
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
