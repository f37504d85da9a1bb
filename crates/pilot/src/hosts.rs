//! Host names: short names, wildcards and which of two covers the other.

/// Whether `pattern` (a host, `*.suffix` or `*`) covers `host`. Names are compared without case.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let host = host.strip_prefix('*').unwrap_or(host);
            host.len() >= suffix.len()
                && host.is_char_boundary(host.len() - suffix.len())
                && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// How precise a pattern is: exact names before long suffixes before short ones.
pub fn precision(pattern: &str) -> usize {
    if pattern.starts_with('*') {
        pattern.len()
    } else {
        usize::MAX
    }
}

/// The full form of a name: one without dot is a Kubernetes service of the namespace, unless a service has
/// just that name (a service from a registry, or a ServiceEntry).
pub fn resolve(
    name: &str,
    namespace: &str,
    domain: &str,
    is_service: impl Fn(&str) -> bool,
) -> String {
    if name.contains('.') || name.starts_with('*') || is_service(name) {
        name.to_owned()
    } else {
        format!("{name}.{namespace}.svc.{domain}")
    }
}

/// The short forms that Istio gives a Kubernetes service's virtual host, in the view of a proxy of `namespace`.
pub fn short_names(host: &str, namespace: &str, domain: &str) -> Vec<String> {
    let Some(name) = host
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix(".svc."))
    else {
        return Vec::new();
    };
    let Some((service, service_namespace)) = name.rsplit_once('.') else {
        return Vec::new();
    };
    let mut names = Vec::new();
    if service_namespace == namespace {
        names.push(service.to_owned());
    }
    names.push(format!("{name}.svc"));
    names.push(name.to_owned());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_ends_with_them() {
        for (pattern, host, expected) in [
            ("*", "a.b", true),
            ("*.b", "a.b", true),
            ("*.b", "*.a.b", true),
            ("*.a.b", "*.b", false),
            ("a.b", "A.B", true),
            ("*.b", "ab", false),
            ("*.é", "xé", false),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn names_without_dot_are_of_the_namespace() {
        let none = |_: &str| false;
        assert_eq!(
            resolve("reviews", "bookinfo", "cluster.local", none),
            "reviews.bookinfo.svc.cluster.local"
        );
        assert_eq!(
            resolve("com.foo.Bar", "x", "cluster.local", none),
            "com.foo.Bar"
        );
        assert_eq!(
            resolve("catalog", "x", "cluster.local", |name| name == "catalog"),
            "catalog"
        );
        assert_eq!(
            short_names("a.b.svc.cluster.local", "b", "cluster.local"),
            ["a", "a.b.svc", "a.b"]
        );
        assert_eq!(
            short_names("a.b.svc.cluster.local", "c", "cluster.local"),
            ["a.b.svc", "a.b"]
        );
        assert!(short_names("a.com", "c", "cluster.local").is_empty());
    }
}
