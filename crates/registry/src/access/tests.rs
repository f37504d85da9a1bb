use aws_lc_rs::digest::{SHA256, digest};
use proptest::prelude::*;

use super::*;
use crate::{Limits, Registry};

fn hash(token: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

const RULES: &str = "
tokensFile: tokens
rules:
- {identities: ['token:orders', 'spiffe://mesh/ns/shop/*'], namespaces: [shop, 'shop-*'], allow: write}
- {identities: ['*'], namespaces: [public], allow: read}
- {identities: [anonymous], namespaces: [open], allow: read}
- {identities: ['token:root'], namespaces: ['*'], allow: admin}
quotas:
- {namespaces: [shop], instances: 2}
";

fn may(
    access: &Access,
    header: Option<&str>,
    names: &[&str],
    action: Action,
    namespace: &str,
) -> Result<(), Error> {
    let peer = Peer {
        address: None,
        names: names.iter().map(|name| (*name).into()).collect(),
    };
    let caller = access.identify(header.map(str::as_bytes), &peer)?;
    let namespace = (namespace != "*").then(|| Namespace::new(namespace));
    access.allow(&caller, action, namespace.as_ref())
}

#[tokio::test(start_paused = true)]
async fn rules_say_who_may_do_what_and_are_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.yaml");
    let tokens = folder.path().join("tokens");
    std::fs::write(&file, RULES).expect("a file");
    let lines = format!(
        "# who, what\norders {}\nroot {}\n",
        hash("one"),
        hash("two")
    );
    std::fs::write(&tokens, lines).expect("a file");
    let registry = Registry::in_memory(Limits::default()).expect("a registry");
    let access = Access::read(&file, &registry).expect("rules");
    let (one, two) = (Some("Bearer one"), Some("bearer two"));
    let shop = ["spiffe://mesh/ns/shop/sa/web"];
    use Action::{Admin, Read, Write};
    for (header, names, action, namespace) in [
        (one, &[][..], Write, "shop"),
        (one, &[], Read, "shop-b"),
        (one, &[], Read, "public"),
        (None, &shop[..], Write, "shop"),
        (None, &[], Read, "open"),
        (two, &[], Admin, "*"),
    ] {
        let result = may(&access, header, names, action, namespace);
        assert!(
            result.is_ok(),
            "{header:?} {names:?} {namespace}: {result:?}"
        );
    }
    for (header, names, action, namespace) in [
        (one, &[][..], Admin, "shop"),
        (one, &[], Write, "public"),
        (one, &[], Read, "bank"),
        (one, &[], Read, "*"),
        (None, &shop[..], Read, "open"),
        (None, &["dns:orders"], Write, "shop"),
    ] {
        let result = may(&access, header, names, action, namespace);
        assert!(
            matches!(result, Err(Error::Forbidden(_))),
            "{header:?} {names:?} {namespace}: {result:?}"
        );
    }
    for (header, namespace) in [
        (None, "shop"),
        (None, "public"),
        (Some("Bearer three"), "open"),
        (Some("Bearer "), "open"),
        (Some("Basic one"), "open"),
        (Some("one"), "open"),
    ] {
        let result = may(&access, header, &[], Read, namespace);
        assert!(
            matches!(result, Err(Error::Unauthenticated(_))),
            "{header:?}: {result:?}"
        );
    }
    let quota = |name| registry.quotas().load().of(&Namespace::new(name)).instances;
    assert_eq!((quota("shop"), quota("bank")), (Some(2), None));

    // What is wrong changes nothing; what is right changes everything.
    std::fs::write(&file, "rules: nonsense").expect("a file");
    tokio::time::sleep(3 * INTERVAL).await;
    assert!(may(&access, one, &[], Write, "shop").is_ok());
    std::fs::write(&file, RULES.replace("instances: 2", "instances: 3")).expect("a file");
    std::fs::write(&tokens, format!("orders {}", hash("four"))).expect("a file");
    tokio::time::sleep(3 * INTERVAL).await;
    assert!(may(&access, one, &[], Write, "shop").is_err());
    assert!(may(&access, Some("Bearer four"), &[], Write, "shop").is_ok());
    assert_eq!(quota("shop"), Some(3));
}

#[test]
fn says_what_is_wrong_with_a_file() {
    for (text, expected) in [
        ("{}", "rules"),
        (
            "rules: [{identities: [], namespaces: [a], allow: read}]",
            "rules[0].identities",
        ),
        (
            "rules: [{identities: [a], namespaces: [a], allow: all}]",
            "rules[0].allow",
        ),
        (
            "rules: [{identities: [a], namespaces: [a], allow: read, x: 1}]",
            "rules[0]",
        ),
        (
            "rules: []\nquotas: [{namespaces: [''], instances: 1}]",
            "quotas[0].namespaces[0]",
        ),
        ("rules: [", ""),
    ] {
        let error = Policy::parse(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    for text in [
        "a",
        "a b",
        "a b c",
        &format!("a {}0", hash("")),
        &format!("a {0}\nb {0}", hash("")),
    ] {
        assert!(Tokens::parse(text).is_err(), "{text}");
    }
}

#[test]
fn without_rules_it_is_open_or_closed() {
    assert!(may(&Access::open(), None, &[], Action::Admin, "*").is_ok());
    let closed = may(
        &Access::closed("why"),
        Some("Bearer x"),
        &[],
        Action::Read,
        "a",
    );
    assert!(matches!(closed, Err(Error::Forbidden(why)) if why == "why"));
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes: Vec<u8>, text: String) {
        let access = Access::open();
        prop_assert!(access.identify(Some(&bytes), &Peer::default()).is_ok());
        let _ = Tokens::default().name(&bytes);
        let _ = Tokens::parse(&text);
        let _ = Policy::parse(&text);
    }
}
