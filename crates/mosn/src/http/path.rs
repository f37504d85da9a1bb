//! Making paths canonical before routes see them (`normalize_path`, `merge_slashes`, escaped slashes).

use super::config::{EscapedSlashes, PathOptions};

/// Outcome of making a path canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Canonical {
    /// It is as it was.
    Unchanged,
    /// It was rewritten.
    Changed,
    /// It was rewritten, and the client is to ask for the new one.
    Redirect,
    /// It must not be served.
    Rejected,
}

/// Makes `path` (with query) canonical in `out`, whose old content is lost.
pub(super) fn canonicalize(path: &[u8], options: &PathOptions, out: &mut Vec<u8>) -> Canonical {
    // A fragment never leaves a browser; between proxies it is an attack on path matching (Envoy refuses it).
    if path.contains(&b'#') {
        return Canonical::Rejected;
    }
    if *options
        == (PathOptions {
            normalize: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
        })
        || path.first() != Some(&b'/')
    {
        return Canonical::Unchanged;
    }
    let query_at = path.iter().position(|b| *b == b'?').unwrap_or(path.len());
    let (plain, query) = path.split_at(query_at);
    let mut redirect = false;
    let mut current = plain.to_vec();
    if options.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(plain) {
        match options.escaped_slashes {
            EscapedSlashes::Reject => return Canonical::Rejected,
            EscapedSlashes::Redirect => redirect = true,
            EscapedSlashes::Forward | EscapedSlashes::Keep => {}
        }
        current = unescape_slashes(plain);
    }
    if options.normalize {
        match normalize(&current) {
            Some(normal) => current = normal,
            None => return Canonical::Rejected,
        }
    }
    if options.merge_slashes {
        current.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
    }
    if current == plain {
        return Canonical::Unchanged;
    }
    out.clear();
    out.extend_from_slice(&current);
    out.extend_from_slice(query);
    if redirect {
        Canonical::Redirect
    } else {
        Canonical::Changed
    }
}

fn escaped(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', high, low, ..] => {
            let digit = |b: u8| char::from(b).to_digit(16);
            u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
        }
        _ => None,
    }
}

fn has_escaped_slash(path: &[u8]) -> bool {
    (0..path.len()).any(|at| matches!(path.get(at..).and_then(escaped), Some(b'/' | b'\\')))
}

fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match escaped(rest) {
            Some(slash @ (b'/' | b'\\')) => {
                out.push(slash);
                rest = rest.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// RFC 3986 §6.2.2 as Envoy has it from Chromium: unreserved characters are unescaped, characters that no path may
/// contain are escaped, back slashes are slashes, dot segments are taken out. `None` for an escaped NUL.
fn normalize(path: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match (first, escaped(rest)) {
            (_, Some(0)) => return None,
            (_, Some(byte))
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') =>
            {
                plain.push(byte);
                rest = rest.get(3..).unwrap_or_default();
                continue;
            }
            (b'\\', _) => plain.push(b'/'),
            (b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'^' | b'|', _) => {
                plain.extend_from_slice(format!("%{first:02X}").as_bytes());
            }
            _ => plain.push(*first),
        }
        rest = tail;
    }
    let mut out: Vec<u8> = Vec::with_capacity(plain.len());
    let mut segments = plain.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." if last => out.push(b'/'),
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            other => {
                out.push(b'/');
                out.extend_from_slice(other);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_paths_canonical_as_envoy_does() {
        use Canonical::*;
        let all = PathOptions {
            normalize: true,
            merge_slashes: true,
            escaped_slashes: EscapedSlashes::Keep,
        };
        let plain = PathOptions {
            merge_slashes: false,
            ..all
        };
        let off = PathOptions {
            normalize: false,
            ..plain
        };
        let unescape = PathOptions {
            escaped_slashes: EscapedSlashes::Forward,
            ..plain
        };
        let redirect = PathOptions {
            escaped_slashes: EscapedSlashes::Redirect,
            ..plain
        };
        let reject = PathOptions {
            escaped_slashes: EscapedSlashes::Reject,
            ..plain
        };
        let cases: &[(&str, PathOptions, Canonical, &str)] = &[
            (
                "/a//b/../c%2e/%7e./d?x=/../",
                all,
                Changed,
                "/a/c./~./d?x=/../",
            ),
            ("/../x", all, Changed, "/x"),
            ("/a\\b", all, Changed, "/a/b"),
            ("/x/.%2e/y/%2e/z/./", all, Changed, "/y/z/"),
            ("/x%00", all, Rejected, ""),
            ("/x#y", off, Rejected, ""),
            ("/x/../y", off, Unchanged, ""),
            ("/x/y?z=..", all, Unchanged, ""),
            ("/a%2fb%5c..%2Fz", unescape, Changed, "/a/z"),
            ("/a%2fb", redirect, Redirect, "/a/b"),
            ("/a%2fb", reject, Rejected, ""),
            ("/a%5Cb", reject, Rejected, ""),
            ("/a/b", reject, Unchanged, ""),
            ("/..", plain, Changed, "/"),
            ("/a/b/..", plain, Changed, "/a/"),
            ("/a%zz", plain, Unchanged, ""),
        ];
        for (path, options, outcome, expected) in cases {
            let mut out = Vec::new();
            assert_eq!(
                canonicalize(path.as_bytes(), options, &mut out),
                *outcome,
                "{path}"
            );
            assert_eq!(String::from_utf8_lossy(&out), *expected, "{path}");
        }
    }
}
