//! Pushes to clients of HTTP: they say a port of theirs when they ask for a list, and get what changes there in datagrams, which
//! they acknowledge. A datagram goes only to the address that asked.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::directory::Name;
use super::written::{Asked, CACHE_MS, Written, written};
use super::{Server, State, Subscriber, Target};
use crate::nacos::grouped_name;

/// Subscriptions of all clients.
const SUBSCRIPTIONS: usize = 200_000;
/// A client asks again each ten seconds; one that has not for so long is gone.
const LIFE: Duration = Duration::from_secs(60);
/// After this long without an acknowledgement a datagram is sent again, and how often.
const AGAIN: (Duration, u32) = (Duration::from_secs(1), 5);
const TICK: Duration = Duration::from_millis(250);
/// Bytes of a datagram; a longer list is seen when the client asks again.
const DATAGRAM_BYTES: usize = 65_000;
/// Bytes of a list that may fit when it is compressed.
const LIST_BYTES: usize = 2 << 20;
/// Longer lists are compressed.
const PLAIN_BYTES: usize = 1024;
/// Bytes of an acknowledgement.
const ACK_BYTES: usize = 2048;

/// The socket.
pub(super) struct Udp {
    socket: UdpSocket,
    wake: Notify,
}

/// A client's address, and what it is told of.
type Key = (SocketAddr, Name, String);

struct Subscription {
    until: Instant,
    /// Of what the client was told last.
    digest: u64,
}

/// A datagram that has not been acknowledged.
struct Unheard {
    number: u64,
    datagram: Vec<u8>,
    sent: Instant,
    times: u32,
}

/// Who is told of what.
#[derive(Default)]
pub(super) struct Subscriptions {
    known: HashMap<Key, Subscription>,
    todo: BTreeSet<Key>,
    unheard: HashMap<Key, Unheard>,
    /// Of what has not been acknowledged.
    numbers: HashMap<(SocketAddr, u64), Key>,
    last: u64,
}

impl Subscriptions {
    /// A service has changed.
    pub(super) fn todo(&mut self, address: SocketAddr, name: Name, clusters: String) {
        self.todo.insert((address, name, clusters));
    }

    /// Whether there is something to send.
    pub(super) fn is_due(&self) -> bool {
        !self.todo.is_empty()
    }

    /// A client was given a list.
    fn refresh(&mut self, key: &Key, digest: u64) -> bool {
        let until = Instant::now() + LIFE;
        if self.known.len() >= SUBSCRIPTIONS && !self.known.contains_key(key) {
            return false;
        }
        let subscription = Subscription { until, digest };
        self.known.insert(key.clone(), subscription).is_none()
    }

    /// A client has got a datagram.
    fn heard(&mut self, address: SocketAddr, number: u64) {
        if let Some(key) = self.numbers.remove(&(address, number)) {
            self.unheard.remove(&key);
        }
    }

    /// A number that no datagram has had.
    fn number(&mut self) -> u64 {
        self.last = (self.last + 1).max(super::now_ms() * 1000);
        self.last
    }
}

/// A client that was given this list is told of changes.
pub(super) fn subscribe(state: &mut State, address: SocketAddr, asked: &Asked, list: &Written) {
    let Asked { name, clusters, .. } = asked;
    let key = (address, name.clone(), clusters.clone());
    if state.udp.refresh(&key, list.digest) {
        state.subscribe(&Subscriber {
            target: Target::Udp(address),
            name: name.clone(),
            clusters: clusters.clone(),
        });
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ack {
    r#type: String,
    last_ref_time: String,
}

fn acknowledged(datagram: &[u8]) -> Option<u64> {
    let ack: Ack = serde_json::from_slice(datagram).ok()?;
    (ack.r#type == "push-ack").then(|| ack.last_ref_time.parse().ok())?
}

impl Udp {
    pub(super) fn new(socket: UdpSocket) -> Udp {
        Udp {
            socket,
            wake: Notify::new(),
        }
    }

    /// There is something to send.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }
}

/// Sends what has to be sent and takes acknowledgements.
pub(super) async fn run(server: &Server) {
    let udp = &server.udp;
    let mut tick = tokio::time::interval(TICK);
    let mut buffer = [0; ACK_BYTES];
    loop {
        tokio::select! {
            () = udp.wake.notified() => {
                let todo = std::mem::take(&mut server.state().udp.todo);
                for key in todo {
                    let due = due(server, key).await;
                    send(udp, due.into_iter().collect()).await;
                }
            }
            received = udp.socket.recv_from(&mut buffer) => match received {
                Ok((len, address)) => {
                    let number = acknowledged(buffer.get(..len).unwrap_or_default());
                    if let Some(number) = number {
                        server.state().udp.heard(address, number);
                    }
                }
                // An earlier datagram found nobody.
                Err(error) => tracing::debug!(%error, "a datagram cannot be received"),
            },
            _ = tick.tick() => {
                let again = server.state().again();
                send(udp, again).await;
            }
        }
    }
}

async fn send(udp: &Udp, datagrams: Vec<(SocketAddr, Vec<u8>)>) {
    for (address, datagram) in datagrams {
        // The client sees it when it asks again.
        if let Err(error) = udp.socket.send_to(&datagram, address).await {
            tracing::debug!(%address, %error, "a datagram cannot be sent");
        }
    }
}

/// The datagram of what has changed for a client.
async fn due(server: &Server, key: Key) -> Option<(SocketAddr, Vec<u8>)> {
    let (address, name, clusters) = &key;
    let asked = Asked {
        name: name.clone(),
        clusters: clusters.clone(),
        healthy_only: false,
    };
    let list = written(server, &asked).await;
    let mut state = server.state();
    let udp = &mut state.udp;
    let subscription = udp.known.get_mut(&key)?;
    if std::mem::replace(&mut subscription.digest, list.digest) == list.digest {
        return None;
    }
    let number = udp.number();
    let datagram = datagram(&asked, &list, number)?;
    let due = (*address, datagram.clone());
    let unheard = Unheard {
        number,
        datagram,
        sent: Instant::now(),
        times: 1,
    };
    udp.numbers.insert((*address, number), key.clone());
    // Nobody waits for the older one any more.
    if let Some(older) = udp.unheard.insert(key.clone(), unheard) {
        udp.numbers.remove(&(*address, older.number));
    }
    Some(due)
}

impl State {
    /// What was not acknowledged; forgets who is gone.
    fn again(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let now = Instant::now();
        let (pause, times) = AGAIN;
        let Subscriptions {
            unheard, numbers, ..
        } = &mut self.udp;
        unheard.retain(|(address, ..), unheard| {
            let waits = unheard.times < times;
            if !waits {
                numbers.remove(&(*address, unheard.number));
            }
            waits
        });
        let mut again = Vec::new();
        for ((address, ..), unheard) in unheard {
            if now.saturating_duration_since(unheard.sent) >= pause {
                unheard.sent = now;
                unheard.times += 1;
                again.push((*address, unheard.datagram.clone()));
            }
        }
        let gone = self.udp.known.iter().filter(|(_, s)| s.until <= now);
        let gone: Vec<Key> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.udp.known.remove(&key);
            let (address, name, clusters) = key;
            self.unsubscribe(&Subscriber {
                target: Target::Udp(address),
                name,
                clusters,
            });
        }
        again
    }
}

/// `None`: it is too long.
fn datagram(asked: &Asked, list: &Written, number: u64) -> Option<Vec<u8>> {
    if list.hosts.len() > LIST_BYTES {
        return None;
    }
    let grouped = grouped_name(&asked.name.group, &asked.name.service);
    let info = list.info(asked, &grouped, CACHE_MS);
    let data = String::from_utf8(info).ok()?;
    let text = json!({"type": "dom", "data": data, "lastRefTime": number}).to_string();
    if text.len() <= PLAIN_BYTES {
        return Some(text.into_bytes());
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() <= DATAGRAM_BYTES).then_some(compressed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn acknowledgements_are_read_as_clients_write_them() {
        let text = br#"{"type": "push-ack", "lastRefTime":"17", "data":""}"#;
        assert_eq!(acknowledged(text), Some(17));
        assert_eq!(
            acknowledged(b"{\"type\":\"dump-ack\",\"lastRefTime\":\"1\"}"),
            None
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            // What is refused is ignored.
            let _ = acknowledged(&datagram);
        }
    }
}
