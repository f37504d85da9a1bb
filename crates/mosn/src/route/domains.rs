//! Which virtual host a request belongs to: exact domains, `*.suffix`, `prefix.*`, `*`, in this order; among
//! wildcards the longest.

use std::hash::{BuildHasher, Hasher};

use base::FieldError;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Domains to indices of virtual hosts.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: DomainMap,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<u32>,
}

impl Domains {
    pub(super) fn insert(&mut self, domain: &str, index: u32) -> Result<(), FieldError> {
        let lower = domain.to_ascii_lowercase();
        let fresh = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
            (Some(""), _) => {
                if self.any.replace(index).is_some() {
                    return Err(FieldError::new(
                        "only a single wildcard domain is permitted",
                    ));
                }
                true
            }
            (Some(suffix), _) => self.suffixes.insert(suffix, index),
            (None, Some(prefix)) => self.prefixes.insert(prefix, index),
            (None, None) => self.exact.insert(&lower, index),
        };
        if fresh {
            Ok(())
        } else {
            let text = format!(
                "only unique values for domains are permitted: duplicate entry of domain {domain}"
            );
            Err(FieldError::new(text))
        }
    }

    pub(super) fn find(&self, host: &[u8]) -> Option<u32> {
        self.exact
            .get(host)
            .or_else(|| {
                self.suffixes
                    .find(host, |host, length| host.get(host.len() - length..))
            })
            .or_else(|| self.prefixes.find(host, |host, length| host.get(..length)))
            .or(self.any)
    }
}

/// Wildcard domains by the length of their fixed part, the longest first.
#[derive(Debug, Default)]
struct Wildcards {
    lengths: Vec<usize>,
    domains: DomainMap,
}

impl Wildcards {
    fn insert(&mut self, part: &str, index: u32) -> bool {
        if let Err(at) = self
            .lengths
            .binary_search_by(|length| part.len().cmp(length))
        {
            self.lengths.insert(at, part.len());
        }
        self.domains.insert(part, index)
    }

    fn find(&self, host: &[u8], part: impl Fn(&[u8], usize) -> Option<&[u8]>) -> Option<u32> {
        self.lengths
            .iter()
            // The star stands for at least one character.
            .filter(|length| **length < host.len())
            .find_map(|length| self.domains.get(part(host, *length)?))
    }
}

/// Looks a text up without regard to case and without a copy of it.
#[derive(Debug, Default)]
struct DomainMap {
    table: HashTable<(Box<[u8]>, u32)>,
    hasher: DefaultHashBuilder,
}

impl DomainMap {
    /// `false` if the domain is there already.
    fn insert(&mut self, lower: &str, index: u32) -> bool {
        if self.get(lower.as_bytes()).is_some() {
            return false;
        }
        let hash = self.hash(lower.as_bytes());
        let Self { table, hasher } = self;
        table.insert_unique(hash, (lower.as_bytes().into(), index), |(text, _)| {
            hash_lower(hasher, text)
        });
        true
    }

    fn get(&self, text: &[u8]) -> Option<u32> {
        if self.table.is_empty() {
            return None;
        }
        let same = |(domain, _): &(Box<[u8]>, u32)| domain.eq_ignore_ascii_case(text);
        self.table
            .find(self.hash(text), same)
            .map(|(_, index)| *index)
    }

    fn hash(&self, text: &[u8]) -> u64 {
        hash_lower(&self.hasher, text)
    }
}

fn hash_lower(hasher: &DefaultHashBuilder, text: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    for chunk in text.chunks(32) {
        let mut lower = [0; 32];
        for (to, from) in lower.iter_mut().zip(chunk) {
            *to = from.to_ascii_lowercase();
        }
        state.write(lower.get(..chunk.len()).unwrap_or(&lower));
    }
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_domain_wins() {
        let mut domains = Domains::default();
        let names = [
            "foo.com",
            "*.com",
            "*.foo.com",
            "bar.*",
            "bar.foo.*",
            "*",
            "*-x.foo.com",
            "com.foo.Bar",
        ];
        for (index, name) in names.iter().enumerate() {
            domains.insert(name, index as u32).unwrap();
        }
        for (host, expected) in [
            ("FOO.com", "foo.com"),
            ("a.foo.com", "*.foo.com"),
            (".foo.com", "*.com"),
            ("a-x.foo.com", "*-x.foo.com"),
            ("bar.com", "*.com"),
            ("bar.org", "bar.*"),
            ("bar.foo.org", "bar.foo.*"),
            ("bar.", "*"),
            ("other", "*"),
            ("", "*"),
            ("com.foo.bar", "com.foo.Bar"),
            ("foo.com:80", "*"),
        ] {
            let found = domains
                .find(host.as_bytes())
                .map(|index| names[index as usize]);
            assert_eq!(found, Some(expected), "{host}");
        }
        for duplicate in ["FOO.com", "*", "*.Foo.com", "bar.*"] {
            assert!(domains.insert(duplicate, 9).is_err(), "{duplicate}");
        }
    }
}
