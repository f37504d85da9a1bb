//! `envoy.type.matcher.v3`: strings and regular expressions.

use api::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use api::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher};
use base::FieldError;
use regex::bytes::{Regex, RegexBuilder};

/// Compiled size of one regular expression in bytes; larger ones are refused.
const REGEX_BYTES: usize = 1 << 20;

/// A compiled string matcher.
#[derive(Debug)]
pub(super) struct TextMatcher {
    pattern: Pattern,
    ignore_case: bool,
}

#[derive(Debug)]
enum Pattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(Regex),
}

impl TextMatcher {
    pub(super) fn compile(matcher: &StringMatcher) -> Result<Self, FieldError> {
        let pattern = match &matcher.match_pattern {
            Some(MatchPattern::Exact(text)) => Pattern::Exact(text.as_bytes().into()),
            Some(MatchPattern::Prefix(text)) => Pattern::Prefix(not_empty("prefix", text)?),
            Some(MatchPattern::Suffix(text)) => Pattern::Suffix(not_empty("suffix", text)?),
            // Envoy compares with a lowered pattern; the comparison below ignores case by itself.
            Some(MatchPattern::Contains(text)) => Pattern::Contains(not_empty("contains", text)?),
            Some(MatchPattern::SafeRegex(_)) if matcher.ignore_case => {
                return Err(FieldError::at(
                    "ignore_case",
                    "ignore_case has no effect for safe_regex",
                ));
            }
            Some(MatchPattern::SafeRegex(regex)) => {
                Pattern::Regex(full_regex(regex).map_err(|error| error.in_field("safe_regex"))?)
            }
            Some(MatchPattern::Custom(_)) => {
                return Err(FieldError::at("custom", "is not supported"));
            }
            None => return Err(FieldError::new("match_pattern is required")),
        };
        Ok(Self {
            pattern,
            ignore_case: matcher.ignore_case,
        })
    }

    pub(super) fn exact(text: &str) -> Self {
        Self::plain(Pattern::Exact(text.as_bytes().into()))
    }

    pub(super) fn prefix(text: &str) -> Self {
        Self::plain(Pattern::Prefix(text.as_bytes().into()))
    }

    pub(super) fn suffix(text: &str) -> Self {
        Self::plain(Pattern::Suffix(text.as_bytes().into()))
    }

    pub(super) fn contains(text: &str) -> Self {
        Self::plain(Pattern::Contains(text.as_bytes().into()))
    }

    pub(super) fn regex(regex: Regex) -> Self {
        Self::plain(Pattern::Regex(regex))
    }

    fn plain(pattern: Pattern) -> Self {
        Self {
            pattern,
            ignore_case: false,
        }
    }

    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8]| match self.ignore_case {
            true => a.eq_ignore_ascii_case(b),
            false => a == b,
        };
        match &self.pattern {
            Pattern::Exact(wanted) => same(text, wanted),
            Pattern::Prefix(wanted) => text
                .get(..wanted.len())
                .is_some_and(|start| same(start, wanted)),
            Pattern::Suffix(wanted) => text
                .len()
                .checked_sub(wanted.len())
                .and_then(|at| text.get(at..))
                .is_some_and(|end| same(end, wanted)),
            Pattern::Contains(wanted) if self.ignore_case => text
                .windows(wanted.len())
                .any(|part| part.eq_ignore_ascii_case(wanted)),
            Pattern::Contains(wanted) => memchr::memmem::find(text, wanted).is_some(),
            Pattern::Regex(regex) => regex.is_match(text),
        }
    }
}

fn not_empty(field: &str, text: &str) -> Result<Box<[u8]>, FieldError> {
    if text.is_empty() {
        return Err(FieldError::at(field, "must not be empty"));
    }
    Ok(text.as_bytes().into())
}

/// A regular expression that has to match the whole text.
pub(super) fn full_regex(matcher: &RegexMatcher) -> Result<Regex, FieldError> {
    // On its own first: `a)|(b` would be well-formed only inside of the group.
    build(&matcher.regex)?;
    build(&format!(r"\A(?:{})\z", matcher.regex))
}

fn build(pattern: &str) -> Result<Regex, FieldError> {
    if pattern.is_empty() {
        return Err(FieldError::at("regex", "must not be empty"));
    }
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let reason = text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            FieldError::at(
                "regex",
                format!("invalid regular expression \"{pattern}\": {reason}"),
            )
        })
}

/// A regular expression whose matches are replaced.
#[derive(Debug)]
pub(super) struct Substitution {
    pattern: Regex,
    replacement: Box<[u8]>,
}

impl Substitution {
    pub(super) fn compile(config: &RegexMatchAndSubstitute) -> Result<Self, FieldError> {
        let pattern = config
            .pattern
            .as_ref()
            .ok_or_else(|| FieldError::at("pattern", "is required"))?;
        let pattern = build(&pattern.regex).map_err(|error| error.in_field("pattern"))?;
        let replacement = translate(&config.substitution, pattern.captures_len())
            .map_err(|message| FieldError::at("substitution", message))?;
        Ok(Self {
            pattern,
            replacement,
        })
    }

    /// The text with every match replaced.
    pub(super) fn apply(&self, text: &[u8]) -> Vec<u8> {
        self.pattern
            .replace_all(text, &*self.replacement)
            .into_owned()
    }
}

/// RE2's `\1` to the `${1}` of the crate `regex`.
fn translate(substitution: &str, groups: usize) -> Result<Box<[u8]>, String> {
    let mut out = String::new();
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit)
                    if digit
                        .to_digit(10)
                        .is_some_and(|number| (number as usize) < groups) =>
                {
                    out.push_str(&format!("${{{digit}}}"));
                }
                Some(digit) if digit.is_ascii_digit() => {
                    return Err(format!("group \\{digit} is not in the pattern"));
                }
                _ => return Err(format!("invalid escape in \"{substitution}\"")),
            },
            c => out.push(c),
        }
    }
    Ok(out.into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(pattern: MatchPattern, ignore_case: bool) -> Result<TextMatcher, FieldError> {
        TextMatcher::compile(&StringMatcher {
            match_pattern: Some(pattern),
            ignore_case,
        })
    }

    fn regex(text: &str) -> RegexMatcher {
        RegexMatcher {
            regex: text.into(),
            ..Default::default()
        }
    }

    #[test]
    fn patterns_match() {
        use MatchPattern::*;
        for (name, pattern, ignore_case, text, expected) in [
            ("exact", Exact("ab".into()), false, "ab", true),
            (
                "exact is not prefix",
                Exact("ab".into()),
                false,
                "abc",
                false,
            ),
            ("exact without case", Exact("Ab".into()), true, "aB", true),
            ("prefix", Prefix("ab".into()), false, "abc", true),
            (
                "prefix longer than text",
                Prefix("abc".into()),
                false,
                "ab",
                false,
            ),
            (
                "suffix without case",
                Suffix("BC".into()),
                true,
                "abc",
                true,
            ),
            ("contains", Contains("b".into()), false, "abc", true),
            (
                "contains without case",
                Contains("B".into()),
                true,
                "abc",
                true,
            ),
            (
                "regex is full",
                SafeRegex(regex("b|bc")),
                false,
                "abc",
                false,
            ),
            (
                "regex alternation is full",
                SafeRegex(regex("ab|abc")),
                false,
                "abc",
                true,
            ),
        ] {
            assert_eq!(
                matcher(pattern, ignore_case)
                    .unwrap()
                    .matches(text.as_bytes()),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn refuses_bad_patterns() {
        for (pattern, expected) in [
            (
                MatchPattern::Prefix(String::new()),
                "prefix: must not be empty",
            ),
            (
                MatchPattern::SafeRegex(regex("(")),
                "safe_regex.regex: invalid regular expression \"(\": unclosed group",
            ),
            (
                MatchPattern::SafeRegex(regex("a)|(b")),
                "safe_regex.regex: invalid regular expression \"a)|(b\": unopened group",
            ),
        ] {
            assert_eq!(matcher(pattern, false).unwrap_err().to_string(), expected);
        }
        assert!(build("(a{1000}){1000}").is_err());
    }

    #[test]
    fn substitutes_with_groups() {
        let config = |pattern: &str, substitution: &str| RegexMatchAndSubstitute {
            pattern: Some(regex(pattern)),
            substitution: substitution.into(),
        };
        for (pattern, substitution, text, expected) in [
            (
                "^/service/([^/]+)(/.*)$",
                r"\2/instance/\1",
                "/service/foo/v1/api",
                "/v1/api/instance/foo",
            ),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("a", "$1", "/a", "/$1"),
        ] {
            let substitution = Substitution::compile(&config(pattern, substitution)).unwrap();
            assert_eq!(substitution.apply(text.as_bytes()), expected.as_bytes());
        }
        assert!(Substitution::compile(&config("a", r"\1")).is_err());
        assert!(Substitution::compile(&config("a", r"\x")).is_err());
    }
}
