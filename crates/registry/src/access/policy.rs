//! The file of rules: which identities may do what in which namespaces, and what the namespaces may have.

use std::path::PathBuf;

use base::FieldError;
use serde::Deserialize;

use super::{ANONYMOUS, Action};
use crate::namespace::Namespace;
use crate::pattern::Pattern;
use crate::quota::{Quota, Quotas};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    tokens_file: Option<PathBuf>,
    rules: Vec<RuleEntry>,
    #[serde(default)]
    quotas: Vec<QuotaEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleEntry {
    identities: Vec<String>,
    namespaces: Vec<String>,
    allow: Allowed,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Allowed {
    Read,
    Write,
    Admin,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct QuotaEntry {
    namespaces: Vec<String>,
    #[serde(default)]
    instances: Option<usize>,
    #[serde(default)]
    services: Option<usize>,
    #[serde(default)]
    watchers: Option<usize>,
    #[serde(default)]
    requests_per_second: Option<u32>,
}

/// What the file says.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) tokens_file: Option<PathBuf>,
    rules: Vec<Rule>,
    pub(super) quotas: Quotas,
}

#[derive(Debug)]
struct Rule {
    identities: Vec<Pattern>,
    namespaces: Vec<Pattern>,
    allow: Action,
}

impl Policy {
    pub(super) fn parse(text: &str) -> Result<Policy, FieldError> {
        let value = api::yaml::to_value(text).map_err(|e| FieldError::new(e.to_string()))?;
        let document: Document =
            serde_path_to_error::deserialize(value).map_err(|error| FieldError {
                path: error.path().to_string(),
                message: error.into_inner().to_string(),
            })?;
        let mut rules = Vec::with_capacity(document.rules.len());
        for (index, entry) in document.rules.into_iter().enumerate() {
            let located = |e: FieldError| e.in_index(index).in_field("rules");
            rules.push(Rule {
                identities: patterns("identities", &entry.identities).map_err(located)?,
                namespaces: patterns("namespaces", &entry.namespaces).map_err(located)?,
                allow: match entry.allow {
                    Allowed::Read => Action::Read,
                    Allowed::Write => Action::Write,
                    Allowed::Admin => Action::Admin,
                },
            });
        }
        let mut quotas = Vec::with_capacity(document.quotas.len());
        for (index, entry) in document.quotas.into_iter().enumerate() {
            let located = |e: FieldError| e.in_index(index).in_field("quotas");
            let namespaces = patterns("namespaces", &entry.namespaces).map_err(located)?;
            let quota = Quota {
                instances: entry.instances,
                services: entry.services,
                watchers: entry.watchers,
                requests_per_second: entry.requests_per_second,
            };
            quotas.push((namespaces, quota));
        }
        Ok(Policy {
            tokens_file: document.tokens_file,
            rules,
            quotas: Quotas(quotas),
        })
    }

    /// Whether some rule says so; `None` means all namespaces.
    pub(super) fn allows(&self, name: &str, action: Action, namespace: Option<&Namespace>) -> bool {
        let covers = |pattern: &Pattern| match namespace {
            Some(namespace) => pattern.matches(namespace.as_str()),
            None => pattern.is_all(),
        };
        self.of(name, action)
            .any(|rule| rule.namespaces.iter().any(covers))
    }

    pub(super) fn allows_somewhere(&self, name: &str, action: Action) -> bool {
        self.of(name, action).next().is_some()
    }

    fn of(&self, name: &str, action: Action) -> impl Iterator<Item = &Rule> {
        // Who gives no credentials is meant only where it is said in so many words.
        let is = move |pattern: &Pattern| match name {
            ANONYMOUS => pattern.as_str() == ANONYMOUS,
            name => pattern.matches(name),
        };
        let meant = move |rule: &&Rule| rule.allow >= action && rule.identities.iter().any(is);
        self.rules.iter().filter(meant)
    }
}

fn patterns(field: &str, texts: &[String]) -> Result<Vec<Pattern>, FieldError> {
    if texts.is_empty() {
        return Err(FieldError::at(field, "must not be empty"));
    }
    for (index, text) in texts.iter().enumerate() {
        if text.is_empty() {
            return Err(FieldError::new("must not be empty")
                .in_index(index)
                .in_field(field));
        }
    }
    Ok(texts.iter().map(|text| Pattern::new(text)).collect())
}
