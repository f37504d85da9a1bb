//! Header and query parameter matchers.

use std::borrow::Cow;

use api::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use api::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use api::envoy::config::route::v3::{HeaderMatcher as Header, QueryParameterMatcher};
use base::FieldError;

use super::text_match::{TextMatcher, full_regex};
use super::{RequestView, request_word};

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
        self.holds(header(&self.name).map(|value| self.accepts(&value)))
    }

    /// Whether the condition holds for a request: as in Envoy, for any one of the header's values; inverted, for none.
    pub fn matches_request<R: RequestView>(&self, request: &R) -> bool {
        match request_word(request, &self.name) {
            Some(word) => self.holds(Some(self.accepts(word))),
            None => self.holds(request.any_value(&self.name, &mut |value| self.accepts(value))),
        }
    }

    /// `accepted` says whether some value is accepted; `None`: there is no value.
    fn holds(&self, accepted: Option<bool>) -> bool {
        let found = match (&self.rule, accepted) {
            (HeaderRule::Present(wanted), accepted) => {
                (accepted.is_some() || self.missing_is_empty) == *wanted
            }
            (_, Some(accepted)) => accepted,
            (_, None) if self.missing_is_empty => self.accepts(&[]),
            (_, None) => return false,
        };
        found != self.invert
    }

    fn accepts(&self, value: &[u8]) -> bool {
        match &self.rule {
            HeaderRule::Present(_) => true,
            HeaderRule::Text(matcher) => matcher.matches(value),
            HeaderRule::Range { start, end } => {
                number(value).is_some_and(|number| (*start..*end).contains(&number))
            }
        }
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

    /// Whether the condition holds for a query, given without its question mark. As in Envoy the first value counts, and
    /// nothing is decoded.
    pub(super) fn matches(&self, query: &[u8]) -> bool {
        let value = query.split(|byte| *byte == b'&').find_map(|part| {
            let (name, value) = match memchr::memchr(b'=', part) {
                Some(at) => (part.get(..at)?, part.get(at + 1..)?),
                None => (part, &[][..]),
            };
            (*name == *self.name).then_some(value)
        });
        match (&self.rule, value) {
            (QueryRule::Present(wanted), value) => value.is_some() == *wanted,
            (QueryRule::Text(matcher), Some(value)) => matcher.matches(value),
            (QueryRule::Text(_), None) => false,
        }
    }
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
                value.map(|value| value.as_bytes().into())
            });
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn the_first_query_parameter_counts_as_it_is_written() {
        let matcher = |name: &str, value: &str| QueryMatcher {
            name: name.as_bytes().into(),
            rule: QueryRule::Text(TextMatcher::exact(value)),
        };
        assert!(matcher("a%20b", "x%26y").matches(b"z=1&a%20b=x%26y"));
        assert!(!matcher("a b", "x&y").matches(b"z=1&a%20b=x%26y"));
        assert!(matcher("a", "1").matches(b"a=1&a=2") && !matcher("a", "2").matches(b"a=1&a=2"));
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
