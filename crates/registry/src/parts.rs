//! A watch cut into messages of a bounded size, the same for both faces: a full list in portions, changes, and from time to
//! time a bookmark, so that a watcher of a quiet service can resume and a dead connection is noticed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::model::{Change, ChangeKind, Instance, Selector};
use crate::services::{Service, Services};
use crate::watch::{Changes, Event, Watch};

/// Instances in one message of a full list.
const PORTION: usize = 500;
/// After so long without an event comes a bookmark.
const BOOKMARK: Duration = Duration::from_secs(10);

/// One message of a watch.
#[derive(Debug)]
pub(crate) struct Part {
    /// Where a watcher that has handled this can resume; 0 inside a full list.
    pub(crate) revision: u64,
    /// A full list begins.
    pub(crate) reset: bool,
    /// A portion of a full list: the revisions of its changes are in no order.
    pub(crate) listing: bool,
    /// The watcher is up to date.
    pub(crate) synced: bool,
    pub(crate) changes: Changes,
}

/// The messages of a watch.
pub(crate) struct Parts {
    watch: Watch,
    /// Goes off when a bookmark may be due: events leave it alone, there are many more of them.
    alarm: Pin<Box<Sleep>>,
    last_event: Instant,
    listing: Option<(u64, Listing)>,
}

impl Parts {
    pub(crate) fn new(watch: Watch) -> Parts {
        Parts {
            watch,
            alarm: Box::pin(tokio::time::sleep(BOOKMARK)),
            last_event: Instant::now(),
            listing: None,
        }
    }

    pub(crate) fn store(&self) -> Arc<String> {
        self.watch.store()
    }

    /// The next message; `None` when the registry has gone.
    pub(crate) async fn next(&mut self) -> Option<Part> {
        if let Some(part) = self.portion(false) {
            return Some(part);
        }
        let event = loop {
            tokio::select! {
                event = self.watch.next() => break Some(event),
                () = &mut self.alarm => {
                    let due = self.last_event + BOOKMARK;
                    if due <= Instant::now() {
                        break None;
                    }
                    self.alarm.as_mut().reset(due);
                }
            }
        };
        self.last_event = Instant::now();
        match event {
            Some(None) => None,
            Some(Some(Event::Reset(services))) => {
                let listing = Listing::new(&services, self.watch.selector().clone());
                self.listing = Some((services.revision, listing));
                self.portion(true)
            }
            Some(Some(Event::Changes(changes))) => {
                let last = changes.last().map(|change| change.revision);
                Some(Part {
                    revision: last.unwrap_or_else(|| self.watch.revision()),
                    reset: false,
                    listing: false,
                    synced: true,
                    changes,
                })
            }
            None => Some(Part {
                revision: self.watch.revision(),
                reset: false,
                listing: false,
                synced: true,
                changes: Vec::new().into(),
            }),
        }
    }

    fn portion(&mut self, reset: bool) -> Option<Part> {
        let (revision, listing) = self.listing.as_mut()?;
        let revision = *revision;
        let put = |instance: Arc<Instance>| Change {
            kind: ChangeKind::Put,
            revision: instance.revision,
            instance,
            previous: None,
        };
        let changes: Vec<Change> = listing.take(PORTION).into_iter().map(put).collect();
        let synced = listing.is_done();
        if synced {
            self.listing = None;
        }
        Some(Part {
            revision: if synced { revision } else { 0 },
            reset,
            listing: true,
            synced,
            changes: changes.into(),
        })
    }
}

/// A walk over the instances that a selector means.
struct Listing {
    selector: Selector,
    services: std::vec::IntoIter<Arc<Service>>,
    current: Option<(Arc<Service>, usize)>,
}

impl Listing {
    fn new(services: &Services, selector: Selector) -> Listing {
        let mut services = services
            .select(&selector)
            .into_iter()
            .cloned()
            .collect::<Vec<_>>()
            .into_iter();
        Listing {
            selector,
            current: services.next().map(|service| (service, 0)),
            services,
        }
    }

    fn take(&mut self, limit: usize) -> Vec<Arc<Instance>> {
        let mut taken = Vec::new();
        while let Some((service, at)) = &mut self.current
            && taken.len() < limit
        {
            match service.instances.get(*at) {
                Some(instance) => {
                    *at += 1;
                    if self.selector.matches(instance) {
                        taken.push(instance.clone());
                    }
                }
                None => self.current = self.services.next().map(|service| (service, 0)),
            }
        }
        taken
    }

    fn is_done(&self) -> bool {
        self.current.is_none()
    }
}
