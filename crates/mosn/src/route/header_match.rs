//! Header and query parameter matchers.

use std::borrow::Cow;

use api::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use api::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use api::envoy::config::route::v3::{HeaderMatcher as Header, QueryParameterMatcher};
use base::FieldError;
use percent_encoding::percent_decode;

use super::text_match::{TextMatcher, full_regex};

/// A condition on one header.
#[derive(Debug)]
pub struct HeaderMatcher {
    name: Box<str>,
    rule: HeaderRule,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug)]
enum HeaderRule {
    Present(bool),
    Range { start: i64, end: i64 },
    Text(TextMatcher),
}

impl HeaderMatcher {
    /// Compiles a matcher.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn compile(config: &Header) -> Result<Self, FieldError> {
        if config.name.is_empty() {
            return Err(FieldError::at("name", "must not be empty"));
        }
        let text = |field: &str, text: &str, build: fn(&str) -> TextMatcher| match text {
            "" => Err(FieldError::at(field, "must not be empty")),
            text => Ok(HeaderRule::Text(build(text))),
        };
        let rule = match &config.header_match_specifier {
            None => HeaderRule::Present(true),
            Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderRule::Present(*present),
            Some(HeaderMatchSpecifier::ExactMatch(value)) => {
                HeaderRule::Text(TextMatcher::exact(value))
            }
            Some(HeaderMatchSpecifier::PrefixMatch(value)) => {
                text("prefix_match", value, TextMatcher::prefix)?
            }
            Some(HeaderMatchSpecifier::SuffixMatch(value)) => {
                text("suffix_match", value, TextMatcher::suffix)?
            }
            Some(HeaderMatchSpecifier::ContainsMatch(value)) => {
                text("contains_match", value, TextMatcher::contains)?
            }
            Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
                let regex =
                    full_regex(regex).map_err(|error| error.in_field("safe_regex_match"))?;
                HeaderRule::Text(TextMatcher::regex(regex))
            }
            Some(HeaderMatchSpecifier::RangeMatch(range)) => HeaderRule::Range {
                start: range.start,
                end: range.end,
            },
            Some(HeaderMatchSpecifier::StringMatch(matcher)) => HeaderRule::Text(
                TextMatcher::compile(matcher).map_err(|error| error.in_field("string_match"))?,
            ),
        };
        Ok(Self {
            name: config.name.to_ascii_lowercase().into(),
            rule,
            invert: config.invert_match,
            missing_is_empty: config.treat_missing_header_as_empty,
        })
    }

    /// Whether the condition holds, given how to look a header up by its lower-case name.
    pub fn matches<'h>(&self, header: impl FnOnce(&str) -> Option<Cow<'h, [u8]>>) -> bool {
        let value = header(&self.name);
        let found = match (&self.rule, value.as_deref()) {
            (HeaderRule::Present(wanted), value) => {
                (value.is_some() || self.missing_is_empty) == *wanted
            }
            (_, None) if !self.missing_is_empty => return false,
            (HeaderRule::Text(matcher), value) => matcher.matches(value.unwrap_or_default()),
            (HeaderRule::Range { start, end }, value) => number(value.unwrap_or_default())
                .is_some_and(|number| (*start..*end).contains(&number)),
        };
        found != self.invert
    }
}

/// A whole decimal number.
fn number(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// A condition on one query parameter.
#[derive(Debug)]
pub(super) struct QueryMatcher {
    name: Box<[u8]>,
    rule: QueryRule,
}

#[derive(Debug)]
enum QueryRule {
    Present(bool),
    Text(TextMatcher),
}

impl QueryMatcher {
    pub(super) fn compile(config: &QueryParameterMatcher) -> Result<Self, FieldError> {
        if config.name.is_empty() {
            return Err(FieldError::at("name", "must not be empty"));
        }
        let rule = match &config.query_parameter_match_specifier {
            None => QueryRule::Present(true),
            Some(QueryParameterMatchSpecifier::PresentMatch(present)) => {
                QueryRule::Present(*present)
            }
            Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => QueryRule::Text(
                TextMatcher::compile(matcher).map_err(|error| error.in_field("string_match"))?,
            ),
        };
        Ok(Self {
            name: config.name.as_bytes().into(),
            rule,
        })
    }

    /// Whether the condition holds for a query, given without its question mark.
    pub(super) fn matches(&self, query: &[u8]) -> bool {
        let value = query.split(|byte| *byte == b'&').find_map(|part| {
            let (name, value) = match memchr::memchr(b'=', part) {
                Some(at) => (part.get(..at)?, part.get(at + 1..)?),
                None => (part, &[][..]),
            };
            (*decoded(name) == *self.name).then_some(value)
        });
        match (&self.rule, value) {
            (QueryRule::Present(wanted), value) => value.is_some() == *wanted,
            (QueryRule::Text(matcher), Some(value)) => matcher.matches(&decoded(value)),
            (QueryRule::Text(_), None) => false,
        }
    }
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    percent_decode(text).into()
}

#[cfg(test)]
mod tests {
    use HeaderMatchSpecifier::*;
    use api::envoy::r#type::v3::Int64Range;

    use super::*;

    #[test]
    fn header_conditions_hold_as_in_envoy() {
        let range = || {
            Some(RangeMatch(Int64Range {
                start: -10,
                end: 10,
            }))
        };
        for (name, rule, invert, missing_is_empty, value, expected) in [
            ("no rule means present", None, false, false, Some("x"), true),
            ("no rule, absent", None, false, false, None, false),
            (
                "present",
                Some(PresentMatch(true)),
                false,
                false,
                Some(""),
                true,
            ),
            (
                "present inverted, absent",
                Some(PresentMatch(true)),
                true,
                false,
                None,
                true,
            ),
            (
                "not present, absent",
                Some(PresentMatch(false)),
                false,
                false,
                None,
                true,
            ),
            (
                "present, absent as empty",
                Some(PresentMatch(true)),
                false,
                true,
                None,
                true,
            ),
            (
                "exact",
                Some(ExactMatch("x".into())),
                false,
                false,
                Some("x"),
                true,
            ),
            (
                "exact inverted, other",
                Some(ExactMatch("x".into())),
                true,
                false,
                Some("y"),
                true,
            ),
            (
                "exact inverted, absent",
                Some(ExactMatch("x".into())),
                true,
                false,
                None,
                false,
            ),
            (
                "exact inverted, absent as empty",
                Some(ExactMatch("x".into())),
                true,
                true,
                None,
                true,
            ),
            ("range", range(), false, false, Some("-1"), true),
            (
                "range end is outside",
                range(),
                false,
                false,
                Some("10"),
                false,
            ),
            (
                "range, no number",
                range(),
                false,
                false,
                Some("somestring"),
                false,
            ),
            (
                "range inverted, no number",
                range(),
                true,
                false,
                Some("somestring"),
                true,
            ),
            (
                "range, decimals",
                range(),
                false,
                false,
                Some("10.9"),
                false,
            ),
        ] {
            let matcher = HeaderMatcher::compile(&Header {
                name: "X-Test".into(),
                header_match_specifier: rule,
                invert_match: invert,
                treat_missing_header_as_empty: missing_is_empty,
            })
            .unwrap();
            let found = matcher.matches(|lower| {
                assert_eq!(lower, "x-test");
                value.map(|value: &str| value.as_bytes().into())
            });
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn query_parameters_are_decoded() {
        let matcher = QueryMatcher {
            name: b"a b"[..].into(),
            rule: QueryRule::Text(TextMatcher::exact("x&y")),
        };
        assert!(matcher.matches(b"z=1&a%20b=x%26y"));
        assert!(!matcher.matches(b"a%20b=x"));
        let present = QueryMatcher {
            name: b"debug"[..].into(),
            rule: QueryRule::Present(true),
        };
        assert!(
            present.matches(b"debug")
                && present.matches(b"x=1&debug=")
                && !present.matches(b"debugger=1")
        );
    }
}
