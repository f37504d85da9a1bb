//! Leases of clients: a session holds all that its client registered in it, with one deadline for all of them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::limits::Limits;
use crate::model::Instance;

/// Names a session. Nobody can guess it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u128);

impl SessionId {
    /// A new one, from the system's random numbers.
    pub(crate) fn draw() -> Result<SessionId, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(SessionId(u128::from_ne_bytes(bytes)))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Whoever knows the whole of it can renew the session: only its beginning is shown.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", self.0 >> 96)
    }
}

impl FromStr for SessionId {
    type Err = ();

    fn from_str(text: &str) -> Result<SessionId, ()> {
        let well_formed = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(id) if well_formed => Ok(SessionId(id)),
            _ => Err(()),
        }
    }
}

/// A session and who opened it: nobody else may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionClaim {
    /// The session.
    pub id: SessionId,
    /// Who claims it.
    pub owner: Arc<str>,
}

/// What is known of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionState {
    /// How long it stays without being renewed.
    pub ttl: Duration,
    /// How many instances it holds.
    pub instances: usize,
}

/// Whether one more session can be opened.
pub(crate) fn check_new(limits: &Limits, there: usize, ttl: Duration) -> Result<(), Error> {
    limits.check_ttl(ttl)?;
    if there >= limits.sessions {
        let limit = limits.sessions;
        let message = format!("the registry holds {limit} sessions at most");
        return Err(Error::TooMany(message));
    }
    Ok(())
}

pub(crate) fn no_session() -> Error {
    Error::NotFound("there is no such session: open one and register everything again".to_owned())
}

/// An instance as it was put in, known by where it is in memory.
#[derive(Clone)]
struct Held(Arc<Instance>);

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

struct Session {
    owner: Arc<str>,
    ttl: Duration,
    ends: Instant,
    /// Its instances are being taken out: it cannot be renewed any more.
    over: bool,
    members: HashSet<Held>,
}

/// All sessions. The heap has one entry for each; a renewal only moves `ends`, and the entry is put back when its time comes.
#[derive(Default)]
pub(crate) struct Sessions {
    by_id: HashMap<SessionId, Session>,
    of: HashMap<Held, SessionId>,
    due: BinaryHeap<Reverse<(Instant, SessionId)>>,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn open(&mut self, claim: SessionClaim, ttl: Duration, now: Instant) {
        let ends = now + ttl;
        let session = Session {
            owner: claim.owner,
            ttl,
            ends,
            over: false,
            members: HashSet::new(),
        };
        self.by_id.insert(claim.id, session);
        self.due.push(Reverse((ends, claim.id)));
    }

    fn of_owner(&self, claim: &SessionClaim) -> Option<&Session> {
        let session = self.by_id.get(&claim.id)?;
        (session.owner == claim.owner && !session.over).then_some(session)
    }

    /// `None` if there is none of this owner (any more).
    pub(crate) fn get(&self, claim: &SessionClaim) -> Option<SessionState> {
        self.of_owner(claim).map(|session| SessionState {
            ttl: session.ttl,
            instances: session.members.len(),
        })
    }

    /// Begins the time of a session anew.
    pub(crate) fn renew(&mut self, claim: &SessionClaim, now: Instant) -> Option<SessionState> {
        let state = self.get(claim)?;
        if let Some(session) = self.by_id.get_mut(&claim.id) {
            session.ends = now + session.ttl;
        }
        Some(state)
    }

    pub(crate) fn has(&self, instance: &Arc<Instance>) -> bool {
        self.of.contains_key(&Held(instance.clone()))
    }

    pub(crate) fn members(&self, claim: &SessionClaim) -> Vec<Arc<Instance>> {
        let session = self.of_owner(claim);
        let members = session.into_iter().flat_map(|session| &session.members);
        members.map(|held| held.0.clone()).collect()
    }

    /// Gives an instance to a session; false if there is none.
    pub(crate) fn join(&mut self, id: SessionId, instance: &Arc<Instance>) -> bool {
        self.leave(instance);
        let Some(session) = self.by_id.get_mut(&id).filter(|session| !session.over) else {
            return false;
        };
        let held = Held(instance.clone());
        session.members.insert(held.clone());
        self.of.insert(held, id);
        true
    }

    /// Takes an instance from the session that holds it, if one does.
    pub(crate) fn leave(&mut self, instance: &Arc<Instance>) {
        let held = Held(instance.clone());
        if let Some(id) = self.of.remove(&held)
            && let Some(session) = self.by_id.get_mut(&id)
        {
            session.members.remove(&held);
        }
    }

    /// Forgets a session; what it still held is held by none.
    pub(crate) fn close(&mut self, id: SessionId) {
        if let Some(session) = self.by_id.remove(&id) {
            for held in &session.members {
                self.of.remove(held);
            }
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Instances of sessions that are over, at most so many; the others are told the next time.
    pub(crate) fn overdue(&mut self, now: Instant, limit: usize) -> Vec<Arc<Instance>> {
        let mut overdue = Vec::new();
        while overdue.len() < limit
            && self.due.peek().is_some_and(|Reverse((at, _))| *at <= now)
            && let Some(Reverse((_, id))) = self.due.pop()
        {
            let Some(session) = self.by_id.get_mut(&id) else {
                continue;
            };
            if session.ends > now {
                self.due.push(Reverse((session.ends, id)));
                continue;
            }
            session.over = true;
            let room = limit - overdue.len();
            let taken: Vec<Held> = session.members.iter().take(room).cloned().collect();
            for held in taken {
                session.members.remove(&held);
                self.of.remove(&held);
                overdue.push(held.0);
            }
            if session.members.is_empty() {
                self.by_id.remove(&id);
            } else {
                self.due.push(Reverse((session.ends, id)));
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn a_session_ends_once_with_all_that_it_held() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let claim = SessionClaim {
            id: SessionId(1),
            owner: "a".into(),
        };
        let mut sessions = Sessions::default();
        sessions.open(claim.clone(), 3 * second, now);
        let instances: Vec<Arc<Instance>> = (1..=5)
            .map(|port| Arc::new(Instance::new(ServiceKey::new("bolt", "s"), "::1", port)))
            .collect();
        for instance in &instances {
            assert!(sessions.join(claim.id, instance));
        }
        sessions.leave(&instances[0]);
        let stranger = SessionClaim {
            owner: "b".into(),
            ..claim.clone()
        };
        assert_eq!(sessions.renew(&stranger, now + 2 * second), None);
        let state = sessions.renew(&claim, now + 2 * second);
        assert_eq!(state.map(|state| state.instances), Some(4));
        assert!(sessions.overdue(now + 4 * second, 10).is_empty());
        assert_eq!(sessions.overdue(now + 5 * second, 3).len(), 3);
        // What is on its way out does not come back.
        assert_eq!(sessions.renew(&claim, now + 5 * second), None);
        assert!(!sessions.join(claim.id, &instances[0]));
        assert_eq!(sessions.overdue(now + 5 * second, 3).len(), 1);
        assert!(sessions.overdue(now + 9 * second, 3).is_empty());
        assert_eq!((sessions.len(), sessions.of.len()), (0, 0));
        assert_eq!(sessions.next(), None);
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = SessionId(0xab);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "ab",
            "+0000000000000000000000000000001",
            &"é".repeat(16),
        ] {
            assert_eq!(wrong.parse::<SessionId>(), Err(()), "{wrong}");
        }
    }
}
