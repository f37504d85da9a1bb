//! What the applications of this sidecar want registered, against what the registry has acknowledged. No I/O.

use std::collections::BTreeMap;

use api::mesh::registry::v1::{Instance, InstanceRef};
use tokio::sync::oneshot;

/// Told when the registry has answered.
pub(super) type Waiter = oneshot::Sender<Result<(), String>>;

type Key = (String, String, String);

fn key_of(instance: &Instance) -> Key {
    (
        instance.protocol.clone(),
        instance.service.clone(),
        instance.id.clone(),
    )
}

fn key_of_reference(reference: &InstanceRef) -> Key {
    (
        reference.protocol.clone(),
        reference.service.clone(),
        reference.id.clone(),
    )
}

fn reference((protocol, service, id): &Key) -> InstanceRef {
    InstanceRef {
        protocol: protocol.clone(),
        service: service.clone(),
        id: id.clone(),
        ..InstanceRef::default()
    }
}

/// Who wants a registration: applications at the server, or one declared application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

struct Publication {
    owner: Owner,
    instance: Instance,
    /// Others who want something under the same id; the last takes over when the owner goes.
    others: Vec<(Owner, Instance)>,
    /// The registry has this very content.
    acknowledged: bool,
    waiters: Vec<Waiter>,
}

/// Wanted registrations, and removals that the registry has not acknowledged.
#[derive(Default)]
pub(super) struct Publications {
    wanted: BTreeMap<Key, Publication>,
    removals: BTreeMap<Key, Vec<Waiter>>,
}

impl Publications {
    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Wants an instance, in place of the one of the same id.
    pub(super) fn publish(&mut self, owner: Owner, instance: Instance, waiter: Waiter) {
        let key = key_of(&instance);
        // A removal that is not done yet would take out what is wanted now.
        answer(self.removals.remove(&key).unwrap_or_default(), &Ok(()));
        let (mut others, mut waiters) = match self.wanted.remove(&key) {
            Some(mut before) => {
                before.others.push((before.owner, before.instance));
                (before.others, before.waiters)
            }
            None => (Vec::new(), Vec::new()),
        };
        others.retain(|(other, _)| *other != owner);
        waiters.push(waiter);
        let publication = Publication {
            owner,
            instance,
            others,
            acknowledged: false,
            waiters,
        };
        self.wanted.insert(key, publication);
    }

    /// Its owner wants an instance no more. It stays while another wants it.
    pub(super) fn unpublish(&mut self, owner: Owner, reference: &InstanceRef, waiter: Waiter) {
        let key = key_of_reference(reference);
        let Some(mut publication) = self.wanted.remove(&key) else {
            self.removals.entry(key).or_default().push(waiter);
            return;
        };
        if publication.owner == owner {
            let gone = Err("the service was unpublished meanwhile".to_owned());
            answer(std::mem::take(&mut publication.waiters), &gone);
            match publication.others.pop() {
                Some((next, instance)) => {
                    publication.owner = next;
                    publication.acknowledged &= publication.instance == instance;
                    publication.instance = instance;
                }
                None => {
                    self.removals.entry(key).or_default().push(waiter);
                    return;
                }
            }
        } else {
            publication.others.retain(|(other, _)| *other != owner);
        }
        answer(vec![waiter], &Ok(()));
        self.wanted.insert(key, publication);
    }

    /// What the registry has to be told to take out.
    pub(super) fn to_remove(&self) -> Vec<InstanceRef> {
        self.removals.keys().map(reference).collect()
    }

    /// What the registry has to be told to put in.
    pub(super) fn to_register(&self) -> Vec<Instance> {
        let missing = self
            .wanted
            .values()
            .filter(|publication| !publication.acknowledged);
        missing
            .map(|publication| publication.instance.clone())
            .collect()
    }

    /// What the registry holds for this sidecar.
    pub(super) fn registered(&self) -> Vec<InstanceRef> {
        let held = self
            .wanted
            .iter()
            .filter(|(_, publication)| publication.acknowledged);
        held.map(|(key, _)| reference(key)).collect()
    }

    /// The registry has taken these out.
    pub(super) fn removed(&mut self, references: &[InstanceRef]) {
        for reference in references {
            let waiters = self.removals.remove(&key_of_reference(reference));
            answer(waiters.unwrap_or_default(), &Ok(()));
        }
    }

    /// The registry has these now. One that was published anew while it was under way is still to be registered.
    pub(super) fn acknowledge(&mut self, instances: &[Instance]) {
        for instance in instances {
            if let Some(publication) = self.wanted.get_mut(&key_of(instance))
                && publication.instance == *instance
            {
                publication.acknowledged = true;
                answer(std::mem::take(&mut publication.waiters), &Ok(()));
            }
        }
    }

    /// The registry will never take this.
    pub(super) fn refuse(&mut self, instance: &Instance, why: &str) {
        let key = key_of(instance);
        if self
            .wanted
            .get(&key)
            .is_some_and(|publication| publication.instance == *instance)
            && let Some(publication) = self.wanted.remove(&key)
        {
            answer(publication.waiters, &Err(why.to_owned()));
        }
    }

    /// The registry does not have these any more.
    pub(super) fn lost(&mut self, references: &[InstanceRef]) {
        for reference in references {
            if let Some(publication) = self.wanted.get_mut(&key_of_reference(reference)) {
                publication.acknowledged = false;
            }
        }
    }

    /// Nothing is known of what the registry has.
    pub(super) fn lost_all(&mut self) {
        for publication in self.wanted.values_mut() {
            publication.acknowledged = false;
        }
    }

    /// Says of all instances of a protocol whether they can take calls; tells whether that is new.
    pub(super) fn set_healthy(&mut self, protocol: &str, healthy: bool) -> bool {
        let mut changed = false;
        for publication in self.wanted.values_mut() {
            for (_, instance) in &mut publication.others {
                if instance.protocol == protocol {
                    instance.healthy = Some(healthy);
                }
            }
            let instance = &mut publication.instance;
            if instance.protocol == protocol && instance.healthy != Some(healthy) {
                instance.healthy = Some(healthy);
                publication.acknowledged = false;
                changed = true;
            }
        }
        changed
    }

    /// Whether something of a protocol is published.
    pub(super) fn has(&self, protocol: &str) -> bool {
        self.wanted.keys().any(|(p, _, _)| p == protocol)
    }
}

fn answer(waiters: Vec<Waiter>, result: &Result<(), String>) {
    for waiter in waiters {
        // One who has given up needs no answer.
        let _ = waiter.send(result.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACE: Owner = Owner(0);
    const DECLARED: Owner = Owner(1);

    fn instance(weight: u32) -> Instance {
        Instance {
            protocol: "bolt".to_owned(),
            service: "s".to_owned(),
            id: "a".to_owned(),
            weight: Some(weight),
            ..Instance::default()
        }
    }

    #[test]
    fn an_answer_to_an_older_content_acknowledges_nothing() {
        let mut publications = Publications::default();
        let (waiter, mut first) = oneshot::channel();
        publications.publish(FACE, instance(1), waiter);
        let under_way = publications.to_register();
        let (waiter, mut second) = oneshot::channel();
        publications.publish(FACE, instance(2), waiter);
        publications.acknowledge(&under_way);
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        assert_eq!(publications.to_register(), [instance(2)]);
        publications.acknowledge(&[instance(2)]);
        assert_eq!(
            (first.try_recv(), second.try_recv()),
            (Ok(Ok(())), Ok(Ok(())))
        );
        assert!(publications.to_register().is_empty());
    }

    #[test]
    fn a_removal_waits_for_its_own_answer() {
        let mut publications = Publications::default();
        let (waiter, mut published) = oneshot::channel();
        publications.publish(FACE, instance(1), waiter);
        let gone = publications.to_register();
        let (waiter, mut unpublished) = oneshot::channel();
        let reference = reference(&key_of(&instance(1)));
        publications.unpublish(FACE, &reference, waiter);
        publications.acknowledge(&gone);
        assert!(matches!(published.try_recv(), Ok(Err(_))));
        assert!(publications.registered().is_empty());
        assert_eq!(publications.to_remove(), std::slice::from_ref(&reference));
        publications.removed(&[reference]);
        assert_eq!(unpublished.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn one_that_goes_takes_nothing_from_another() {
        let mut publications = Publications::default();
        publications.publish(FACE, instance(1), oneshot::channel().0);
        publications.acknowledge(&[instance(1)]);
        publications.publish(DECLARED, instance(1), oneshot::channel().0);
        publications.acknowledge(&[instance(1)]);
        let reference = reference(&key_of(&instance(1)));
        let (waiter, mut left) = oneshot::channel();
        publications.unpublish(FACE, &reference, waiter);
        assert_eq!(left.try_recv(), Ok(Ok(())));
        assert_eq!(publications.registered(), std::slice::from_ref(&reference));
        assert!(publications.to_remove().is_empty());

        publications.publish(FACE, instance(2), oneshot::channel().0);
        publications.acknowledge(&[instance(2)]);
        publications.unpublish(FACE, &reference, oneshot::channel().0);
        assert_eq!(publications.to_register(), [instance(1)]);
        publications.unpublish(DECLARED, &reference, oneshot::channel().0);
        assert_eq!(publications.to_remove(), [reference]);
    }

    #[test]
    fn what_is_wanted_again_is_not_removed() {
        let mut publications = Publications::default();
        publications.publish(FACE, instance(1), oneshot::channel().0);
        let under_way = publications.to_register();
        let reference = reference(&key_of(&instance(1)));
        let (waiter, mut removed) = oneshot::channel();
        publications.unpublish(FACE, &reference, waiter);
        publications.publish(FACE, instance(1), oneshot::channel().0);
        publications.acknowledge(&under_way);
        assert_eq!(removed.try_recv(), Ok(Ok(())));
        assert!(publications.to_remove().is_empty());
        assert_eq!(publications.registered(), [reference]);
    }
}
