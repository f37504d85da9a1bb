//! Sessions: they outlive connections for as long as their clients asked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use wire::jute::ConnectRequest;

use super::tree::SessionId;

/// Bounds of session timeouts; the upper one is that of ZooKeeper with its usual tick.
const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(40));
/// Frames that wait for a slow client, which is cut off after that.
pub(super) const WAITING: usize = 65_536;
/// Bytes of a password.
const PASSWORD: usize = 16;

/// A session.
pub(super) struct Session {
    password: [u8; PASSWORD],
    timeout: Duration,
    heard: Instant,
    /// The connection that it has now.
    connection: Option<Connection>,
    /// It has given the credentials.
    pub(super) trusted: bool,
}

struct Connection {
    number: u64,
    frames: mpsc::Sender<Vec<u8>>,
}

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions {
    sessions: HashMap<SessionId, Session>,
    connections: u64,
}

/// A connection that has a session.
pub(super) struct Opened {
    pub(super) session: SessionId,
    pub(super) password: Vec<u8>,
    pub(super) timeout: Duration,
    pub(super) connection: u64,
}

impl Sessions {
    /// Opens a new session or goes on with the one that a client names. `None`: that one is over.
    pub(super) fn open(
        &mut self,
        request: &ConnectRequest,
        frames: mpsc::Sender<Vec<u8>>,
    ) -> Option<Opened> {
        self.connections += 1;
        let (min, max) = TIMEOUTS;
        let asked = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
        let timeout = asked.clamp(min, max);
        let id = if request.session == 0 {
            self.new_session()?
        } else {
            let known = self.sessions.get(&request.session)?;
            if !same(&known.password, &request.password) {
                return None;
            }
            request.session
        };
        let number = self.connections;
        let session = self.sessions.get_mut(&id)?;
        session.timeout = timeout;
        session.heard = Instant::now();
        session.trusted = false;
        // An older connection of the session ends with its sender.
        session.connection = Some(Connection { number, frames });
        Some(Opened {
            session: id,
            password: session.password.to_vec(),
            timeout,
            connection: number,
        })
    }

    fn new_session(&mut self) -> Option<SessionId> {
        let mut random = [0; 8 + PASSWORD];
        getrandom::fill(&mut random).ok()?;
        let (id, password) = random.split_first_chunk::<8>()?;
        // Positive, as ZooKeeper's are.
        let id = (i64::from_be_bytes(*id) & i64::MAX).max(1);
        if self.sessions.contains_key(&id) {
            return None;
        }
        let session = Session {
            password: password.try_into().ok()?,
            timeout: TIMEOUTS.0,
            heard: Instant::now(),
            connection: None,
            trusted: false,
        };
        self.sessions.insert(id, session);
        Some(id)
    }

    /// The client of a session was heard on this connection; whether that is still the session's connection.
    pub(super) fn heard(&mut self, session: SessionId, connection: u64) -> bool {
        match self.sessions.get_mut(&session) {
            Some(known)
                if known
                    .connection
                    .as_ref()
                    .is_some_and(|c| c.number == connection) =>
            {
                known.heard = Instant::now();
                true
            }
            _ => false,
        }
    }

    /// A session.
    pub(super) fn get_mut(&mut self, session: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(&session)
    }

    /// The connection of a session ended; whether it was its present one.
    pub(super) fn disconnected(&mut self, session: SessionId, connection: u64) -> bool {
        match self.sessions.get_mut(&session) {
            Some(known)
                if known
                    .connection
                    .as_ref()
                    .is_some_and(|c| c.number == connection) =>
            {
                known.connection = None;
                true
            }
            _ => false,
        }
    }

    /// Sessions that were not heard of for their timeouts.
    pub(super) fn silent(&self) -> Vec<SessionId> {
        let now = Instant::now();
        let silent = |session: &Session| now.duration_since(session.heard) > session.timeout;
        self.sessions
            .iter()
            .filter(|(_, s)| silent(s))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Forgets a session, and ends its connection when all was sent.
    pub(super) fn remove(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Sends a frame to a session's client. One that does not read is cut off: it comes back and asks what it missed.
    pub(super) fn send(&mut self, session: SessionId, frame: Vec<u8>) {
        if let Some(known) = self.sessions.get_mut(&session)
            && let Some(connection) = &known.connection
            && connection.frames.try_send(frame).is_err()
        {
            known.connection = None;
        }
    }
}

/// In a time that says nothing about where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}
