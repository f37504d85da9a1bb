//! Random histories against a plain map, and the life of leases.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::ServiceKey;

fn instance(service: u8, id: u8, weight: u32, ttl: Option<u64>) -> Instance {
    let mut instance = Instance::new(
        ServiceKey::new("bolt", &format!("s{service}")),
        "10.0.0.1",
        12200,
    );
    instance.id = format!("i{id}").into();
    instance.weight = weight;
    instance.ttl = ttl.map(Duration::from_secs);
    instance
}

fn name(service: u8, id: u8) -> InstanceRef {
    InstanceRef::new("bolt", &format!("s{service}"), &format!("i{id}"))
}

#[derive(Clone, Debug)]
enum Step {
    Register(Vec<(u8, u8, u32, Option<u64>)>),
    Renew(u8, u8),
    Deregister(Vec<(u8, u8)>),
    Advance(u64),
    /// Commands before this that were gathered are lost with a failed write.
    FailedWrite,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let instance = (0..4_u8, 0..4_u8, 0..3_u32, prop::option::of(1..20_u64));
    prop_oneof![
        4 => prop::collection::vec(instance, 0..4).prop_map(Step::Register),
        2 => (0..4_u8, 0..4_u8).prop_map(|(s, i)| Step::Renew(s, i)),
        2 => prop::collection::vec((0..4_u8, 0..4_u8), 0..3).prop_map(Step::Deregister),
        3 => (0..15_u64).prop_map(Step::Advance),
        1 => Just(Step::FailedWrite),
        4 => Just(Step::Commit),
    ]
}

/// What a registry is: names, contents, and ends of leases.
#[derive(Clone, Default)]
struct Model(BTreeMap<InstanceRef, (Instance, Option<u64>)>);

impl Model {
    fn equals(&self, services: &Services) {
        assert_eq!(services.instances(), self.0.len());
        for (reference, (expected, _)) in &self.0 {
            let found = services
                .instance(reference)
                .map(|found| found.same_content(expected));
            assert_eq!(found, Some(true), "{reference:?}");
        }
        let counted: usize = services.iter().map(|service| service.instances.len()).sum();
        assert_eq!(counted, self.0.len());
        assert_eq!(services.iter().count(), services.len());
        assert!(services.iter().all(|service| !service.instances.is_empty()));
    }
}

proptest! {
    #[test]
    fn behaves_like_a_map_with_leases(steps in prop::collection::vec(step(), 1..80)) {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut now = 0;
        let mut state = State::new(Limits::default(), 7, Vec::new(), Words::default(), start);
        let mut model = Model::default();
        let mut batch = state.batch();
        let mut next = model.clone();
        let mut replayed: BTreeMap<InstanceRef, Arc<Instance>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Register(list) => {
                    let list: Vec<Instance> = list.into_iter().map(|(s, i, w, t)| instance(s, i, w, t)).collect();
                    for instance in &list {
                        let end = instance.ttl.map(|ttl| now + ttl.as_secs());
                        next.0.insert(instance.reference(), (instance.clone(), end));
                    }
                    prop_assert!(state.register(&mut batch, list).is_ok());
                }
                Step::Renew(s, i) => {
                    let Ok(renewed) = state.renew(&mut batch, vec![name(s, i)]) else {
                        return Err(TestCaseError::fail("a renewal was refused"));
                    };
                    prop_assert_eq!(renewed.renewed == 1, next.0.contains_key(&name(s, i)));
                    if let Some((instance, end)) = next.0.get_mut(&name(s, i)) {
                        *end = instance.ttl.map(|ttl| now + ttl.as_secs());
                    }
                }
                Step::Deregister(list) => {
                    let list: Vec<InstanceRef> = list.into_iter().map(|(s, i)| name(s, i)).collect();
                    let there = list.iter().filter(|reference| next.0.remove(reference).is_some()).count();
                    prop_assert_eq!(state.deregister(&mut batch, &list).ok(), Some(there));
                }
                Step::FailedWrite => {
                    batch = state.batch();
                    next = model.clone();
                }
                Step::Commit | Step::Advance(_) => {
                    let gathered = std::mem::replace(&mut batch, state.batch());
                    let mut changes = state.commit(gathered, at(now));
                    model = next.clone();
                    if let Step::Advance(seconds) = step {
                        now += seconds;
                        let mut lapses = state.batch();
                        state.lapse(&mut lapses, at(now), usize::MAX);
                        changes.extend(state.commit(lapses, at(now)));
                        model.0.retain(|_, (_, end)| end.is_none_or(|end| end > now));
                    }
                    for change in changes {
                        match change.kind {
                            ChangeKind::Put => replayed.insert(change.instance.reference(), change.instance),
                            _ => replayed.remove(&change.instance.reference()),
                        };
                    }
                    model.equals(state.services());
                    let seen: Vec<_> = state.services().iter().flat_map(|s| s.instances.iter()).cloned().collect();
                    prop_assert_eq!(seen.len(), replayed.len());
                    for instance in seen {
                        prop_assert_eq!(replayed.get(&instance.reference()), Some(&instance));
                    }
                    next = model.clone();
                    batch = state.batch();
                }
            }
        }
    }
}

#[test]
fn counts_a_revision_for_each_change_and_none_for_a_repetition() {
    let now = Instant::now();
    let mut state = State::new(Limits::default(), 0, Vec::new(), Words::default(), now);
    let mut batch = state.batch();
    let two = vec![instance(0, 0, 1, Some(5)), instance(0, 1, 1, Some(5))];
    assert!(state.register(&mut batch, two.clone()).is_ok());
    assert_eq!(
        state
            .commit(batch, now)
            .iter()
            .map(|c| c.revision)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    let mut batch = state.batch();
    let again = state.register(&mut batch, two).unwrap_or_default();
    assert!(again.iter().all(|registered| !registered.created));
    assert!(batch.changes().is_empty());
    // A repetition is a renewal.
    let later = now + Duration::from_secs(3);
    state.commit(batch, later);
    let mut lapses = state.batch();
    state.lapse(&mut lapses, now + Duration::from_secs(6), usize::MAX);
    assert!(lapses.changes().is_empty());
}

#[test]
fn refuses_a_registration_whole() {
    let now = Instant::now();
    let limits = Limits {
        instances: 3,
        instances_per_service: 2,
        ..Limits::default()
    };
    let mut state = State::new(limits, 0, Vec::new(), Words::default(), now);
    let mut batch = state.batch();
    let mut wrong = instance(0, 1, 1, None);
    wrong.port = 0;
    let refused = state.register(&mut batch, vec![instance(0, 0, 1, None), wrong]);
    assert_eq!(
        refused.map_err(|e| e.to_string()),
        Err("instances[1].port: must be 1 to 65535, is 0".to_owned())
    );
    let three_of_one = (0..3).map(|id| instance(0, id, 1, None)).collect();
    assert!(matches!(
        state.register(&mut batch, three_of_one),
        Err(Error::TooMany(_))
    ));
    let four = (0..4)
        .map(|service| instance(service, 0, 1, None))
        .collect();
    assert!(matches!(
        state.register(&mut batch, four),
        Err(Error::TooMany(_))
    ));
    assert!(batch.changes().is_empty());
    let three = (0..3)
        .map(|service| instance(service, 0, 1, None))
        .collect();
    assert!(state.register(&mut batch, three).is_ok());
    // Full, but what is there can be replaced.
    assert!(
        state
            .register(&mut batch, vec![instance(2, 0, 9, None)])
            .is_ok()
    );
}
