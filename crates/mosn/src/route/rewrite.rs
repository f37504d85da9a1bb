//! Rewriting of paths and hosts.

use std::borrow::Cow;
use std::sync::Arc;

use api::envoy::config::route::v3::route_action::HostRewriteSpecifier;
use api::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use base::FieldError;

use super::text_match::Substitution;
use super::{RequestView, header, without_query};

/// How the path of a request is changed.
#[derive(Debug, Default)]
pub(super) enum PathRewrite {
    #[default]
    None,
    /// The first bytes of the path.
    Prefix { matched: usize, to: Box<[u8]> },
    /// All of the path but its query.
    Whole(Box<[u8]>),
    /// Matches in the path without its query.
    Regex(Substitution),
}

impl PathRewrite {
    /// `matched_prefix` is the length of a matched prefix; `None` if the whole path was matched.
    pub(super) fn compile(
        prefix_rewrite: &str,
        regex_rewrite: Option<&RegexMatchAndSubstitute>,
        matched_prefix: Option<usize>,
    ) -> Result<Self, FieldError> {
        match (prefix_rewrite, regex_rewrite) {
            ("", None) => Ok(Self::None),
            ("", Some(regex)) => Substitution::compile(regex)
                .map(Self::Regex)
                .map_err(|error| error.in_field("regex_rewrite")),
            (to, None) => {
                check_text(to).map_err(|error| error.in_field("prefix_rewrite"))?;
                let to = to.as_bytes().into();
                Ok(match matched_prefix {
                    Some(matched) => Self::Prefix { matched, to },
                    None => Self::Whole(to),
                })
            }
            (_, Some(_)) => Err(FieldError::at(
                "regex_rewrite",
                "conflicts with prefix_rewrite",
            )),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The new path with its query; `None` if it stays.
    pub(super) fn apply(&self, path: &[u8]) -> Option<Vec<u8>> {
        let start = without_query(path);
        let query = path.get(start.len()..).unwrap_or_default();
        match self {
            Self::None => None,
            Self::Prefix { matched, to } => Some([&**to, path.get(*matched..)?].concat()),
            Self::Whole(to) => Some([&**to, query].concat()),
            Self::Regex(substitution) => {
                let mut path = substitution.apply(start);
                path.extend_from_slice(query);
                Some(path)
            }
        }
    }
}

/// How the authority of a request is changed.
#[derive(Debug, Default)]
pub enum HostRewrite {
    /// It stays.
    #[default]
    None,
    /// This host.
    Literal(Arc<str>),
    /// The name of the upstream host, which its cluster knows (names that DNS resolved).
    Auto,
    /// The value of a header, if it is there.
    Header(Box<str>),
    /// The path without its query, with matches replaced.
    PathRegex(PathPattern),
}

/// The pattern and replacement of [`HostRewrite::PathRegex`].
#[derive(Debug)]
pub struct PathPattern(Substitution);

impl HostRewrite {
    pub(super) fn compile(config: Option<&HostRewriteSpecifier>) -> Result<Self, FieldError> {
        Ok(match config {
            None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => Self::None,
            Some(HostRewriteSpecifier::AutoHostRewrite(true)) => Self::Auto,
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                Self::literal(host).map_err(|error| error.in_field("host_rewrite_literal"))?
            }
            Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
                Self::Header(name.to_ascii_lowercase().into())
            }
            Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
                let substitution = Substitution::compile(regex)
                    .map_err(|error| error.in_field("host_rewrite_path_regex"))?;
                Self::PathRegex(PathPattern(substitution))
            }
            Some(HostRewriteSpecifier::HostRewrite(_)) => {
                return Err(FieldError::at("host_rewrite", "is not supported"));
            }
        })
    }

    /// A fixed host; empty changes nothing.
    pub(super) fn literal(host: &str) -> Result<Self, FieldError> {
        check_text(host)?;
        Ok(match host {
            "" => Self::None,
            host => Self::Literal(host.into()),
        })
    }

    /// The new authority; `None` if it stays or, with [`HostRewrite::Auto`], the caller has to ask the upstream host.
    pub fn rewrite<'r, R: RequestView>(&'r self, request: &'r R) -> Option<Cow<'r, [u8]>> {
        match self {
            Self::None | Self::Auto => None,
            Self::Literal(host) => Some(Cow::Borrowed(host.as_bytes())),
            Self::Header(name) => header(request, name).filter(|value| !value.is_empty()),
            Self::PathRegex(PathPattern(substitution)) => Some(Cow::Owned(
                substitution.apply(without_query(request.path())),
            )),
        }
    }
}

/// Text that ends up in a header must not end the header.
fn check_text(text: &str) -> Result<(), FieldError> {
    match text
        .bytes()
        .any(|byte| matches!(byte, b'\0' | b'\r' | b'\n'))
    {
        true => Err(FieldError::new("must not hold NUL, CR or LF")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_rewritten() {
        for (name, rewrite, path, expected) in [
            ("none", PathRewrite::compile("", None, Some(1)), "/a", None),
            (
                "prefix",
                PathRewrite::compile("/", None, Some("/api/".len())),
                "/api/x?y=1",
                Some("/x?y=1"),
            ),
            (
                "prefix swallows slash",
                PathRewrite::compile("/v1", None, Some("/api".len())),
                "/api",
                Some("/v1"),
            ),
            (
                "whole",
                PathRewrite::compile("/new", None, None),
                "/any/thing?q#f",
                Some("/new?q#f"),
            ),
        ] {
            assert_eq!(
                rewrite.unwrap().apply(path.as_bytes()).as_deref(),
                expected.map(str::as_bytes),
                "{name}"
            );
        }
        assert!(PathRewrite::compile("/a\r\nx: y", None, None).is_err());
    }
}
