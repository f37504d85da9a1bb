//! Patterns of names: a `*` stands for any characters, none included.

/// A pattern, cut at its stars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Box<str>>);

impl Pattern {
    pub(crate) fn new(text: &str) -> Pattern {
        Pattern(text.split('*').map(Into::into).collect())
    }

    pub(crate) fn stars(&self) -> usize {
        self.0.len() - 1
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.0.as_slice() else {
            return self.0.first().is_some_and(|only| **only == *text);
        };
        let inner = text.strip_prefix(first.as_ref());
        let Some(mut rest) = inner.and_then(|rest| rest.strip_suffix(last.as_ref())) else {
            return false;
        };
        for part in middle {
            let Some(at) = rest.find(part.as_ref()) else {
                return false;
            };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        true
    }

    /// What the only star stands for; empty where there is none.
    pub(crate) fn star<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self.0.as_slice() {
            [only] => (**only == *text).then_some(""),
            [first, last] => text
                .strip_prefix(first.as_ref())?
                .strip_suffix(last.as_ref()),
            _ => None,
        }
    }

    /// The name with this in the place of each star.
    pub(crate) fn fill(&self, star: &str) -> String {
        self.0.join(star)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, text, expected) in [
            ("com.foo.*", "com.foo.Bar", true),
            ("com.foo.*", "com.fooBar", false),
            ("*", "", true),
            ("", "", true),
            ("a", "ab", false),
            ("a*a", "a", false),
            ("*.prod.*.local", "shop.prod.svc.local", true),
            ("a*b*c", "a-c-b", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).matches(text),
                expected,
                "{pattern} {text}"
            );
        }
        assert_eq!(Pattern::new("com.*.Api").star("com.x.y.Api"), Some("x.y"));
        assert_eq!(Pattern::new("new.*").fill("x"), "new.x");
    }

    proptest! {
        #[test]
        fn what_is_filled_in_is_found_again(before in "\\PC{0,5}", star in "\\PC{0,5}", after in "\\PC{0,5}") {
            let literal = |text: &str| text.replace('*', "");
            let pattern = Pattern::new(&format!("{}*{}", literal(&before), literal(&after)));
            let text = pattern.fill(&star);
            prop_assert!(pattern.matches(&text));
            prop_assert_eq!(pattern.star(&text), Some(star.as_str()));
        }
    }
}
