//! The merged picture under what registries really do.

use std::time::Duration;

use super::*;
use crate::source::{List, ORIGIN_MARK, Skipped, Trouble};

fn key() -> ServiceKey {
    ServiceKey::new("dubbo", "com.foo.Bar")
}

fn instance(port: u16) -> Instance {
    Instance::new(key(), "10.0.0.1", port)
}

fn list(ports: &[u16], certain: bool) -> Report {
    Report::List(List {
        name: "providers".into(),
        instances: ports.iter().map(|port| instance(*port)).collect(),
        skipped: Vec::new(),
        certain,
    })
}

struct Fixture {
    state: HubState,
    now: Instant,
}

impl Fixture {
    fn new(sources: &[&str]) -> Fixture {
        let now = Instant::now();
        let mut state = HubState::new("mesh", Limits::default());
        for name in sources {
            state.set_source(&(*name).into(), Settings::default(), now);
        }
        Fixture { state, now }
    }

    fn tell(&mut self, source: &str, report: Report) -> &mut Fixture {
        self.state.report(source, report, self.now);
        self
    }

    fn session(&mut self, source: &str, ports: &[u16]) -> &mut Fixture {
        let server = String::new();
        self.tell(source, Report::Connected { server })
            .tell(source, list(ports, true))
            .tell(source, Report::Synced)
    }

    fn down(&mut self, source: &str) -> &mut Fixture {
        let (trouble, reason) = (Trouble::Unreachable, String::new());
        self.tell(source, Report::Disconnected { trouble, reason })
    }

    fn wait(&mut self, seconds: u64) -> &mut Fixture {
        self.now += Duration::from_secs(seconds);
        self.state.tick(self.now);
        self
    }

    fn ports(&mut self) -> Vec<u16> {
        self.state.commit();
        let service = self.state.services().get(&key());
        let mut ports: Vec<u16> =
            service.map_or_else(Vec::new, |s| s.instances.iter().map(|i| i.port).collect());
        ports.sort_unstable();
        ports
    }
}

#[test]
fn a_registry_that_is_down_keeps_its_instances() {
    let mut hub = Fixture::new(&["zk"]);
    hub.session("zk", &[1, 2]);
    assert_eq!(hub.down("zk").wait(86_400).ports(), [1, 2]);
}

#[test]
fn what_a_live_registry_takes_out_is_gone_at_once() {
    let mut hub = Fixture::new(&["zk"]);
    hub.session("zk", &[1, 2]).tell("zk", list(&[], true));
    assert!(hub.ports().is_empty());
}

#[test]
fn a_registry_that_comes_back_empty_does_not_empty_the_mesh_at_once() {
    let mut hub = Fixture::new(&["eureka"]);
    hub.session("eureka", &[1, 2]).down("eureka");
    assert_eq!(hub.session("eureka", &[]).ports(), [1, 2]);
    hub.wait(60).tell("eureka", list(&[2], false));
    assert_eq!(hub.ports(), [1, 2], "it fills up again");
    assert_eq!(hub.wait(61).ports(), [2], "the rest was held long enough");
    assert_eq!(hub.state.next_deadline(), None);
}

#[test]
fn a_list_that_is_certain_takes_out_nothing_that_was_missing_before() {
    let mut hub = Fixture::new(&["zk"]);
    hub.session("zk", &[1, 2]).down("zk").session("zk", &[]);
    assert_eq!(hub.tell("zk", list(&[3], true)).ports(), [1, 2, 3]);
    assert_eq!(hub.wait(121).ports(), [3]);
}

#[test]
fn a_list_that_a_new_session_does_not_give_is_suspicious_too() {
    let mut hub = Fixture::new(&["zk"]);
    hub.session("zk", &[1]).down("zk");
    let server = String::new();
    hub.tell("zk", Report::Connected { server })
        .tell("zk", Report::Synced);
    assert_eq!(hub.ports(), [1]);
    assert!(hub.wait(121).ports().is_empty());
}

#[test]
fn one_endpoint_of_two_registries_is_one_instance() {
    let mut hub = Fixture::new(&["nacos", "zk"]);
    hub.session("nacos", &[1, 2]).session("zk", &[2, 3]);
    assert_eq!(hub.ports(), [1, 2, 3]);
    hub.tell("nacos", list(&[], true));
    assert_eq!(hub.ports(), [2, 3]);
    hub.state.remove_source("zk");
    assert!(hub.ports().is_empty());
}

#[test]
fn own_copies_are_no_instances() {
    let mut hub = Fixture::new(&["zk"]);
    let mut copy = instance(1);
    copy.metadata = [(ORIGIN_MARK, "mesh/nacos")].into_iter().collect();
    let mut foreign = instance(2);
    foreign.metadata = [(ORIGIN_MARK, "mesh2/nacos")].into_iter().collect();
    hub.tell(
        "zk",
        Report::List(List {
            name: "providers".into(),
            instances: vec![copy, foreign],
            skipped: Vec::new(),
            certain: true,
        }),
    );
    assert_eq!(hub.ports(), [2]);
    let view = hub.state.view();
    let copies = view.sources.get("zk").and_then(|zk| zk.copies.get(&key()));
    assert_eq!(copies.map(|copies| copies.instances.len()), Some(1));
}

#[test]
fn a_malformed_instance_hides_no_other() {
    let mut hub = Fixture::new(&["zk"]);
    let mut bad = instance(1);
    bad.address = "0.0.0.0".into();
    hub.tell(
        "zk",
        Report::List(List {
            name: "providers".into(),
            instances: vec![bad, instance(2), instance(2)],
            skipped: Vec::new(),
            certain: true,
        }),
    );
    assert_eq!(hub.ports(), [2]);
    let skipped = hub.state.sources().flat_map(|s| s.skipped());
    let reasons: Vec<String> = skipped.map(|(_, s)| s.reason.clone()).collect();
    assert!(reasons[0].starts_with("address:"), "{reasons:?}");
    assert!(reasons[1].contains("twice"), "{reasons:?}");
}

#[test]
fn a_list_that_cannot_be_read_stays_as_it_was_and_is_named() {
    let mut hub = Fixture::new(&["sofa"]);
    hub.session("sofa", &[1, 2]).down("sofa");
    let server = String::new();
    hub.tell("sofa", Report::Connected { server });
    let (name, skipped) = ("providers".into(), Skipped::new("push", "too large"));
    hub.tell("sofa", Report::Unread { name, skipped })
        .tell("sofa", Report::Synced);
    assert_eq!(hub.wait(86_400).ports(), [1, 2]);
    let sources: Vec<_> = hub.state.sources().collect();
    assert_eq!(sources[0].skipped().count(), 1);
}
