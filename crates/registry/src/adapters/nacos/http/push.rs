//! Pushes of 1.x: a datagram says that a service has changed. Anybody can send one, so that it is a reason to ask the server and
//! nothing more.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flate2::read::GzDecoder;
use serde::Deserialize;
use tokio::net::UdpSocket;

use crate::nacos::split_name;

/// Bytes of a datagram.
const DATAGRAM_BYTES: usize = 65_536;
/// Bytes of the list in it, without compression.
const LIST_BYTES: u64 = 8 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Where a server sends its pushes.
pub(super) struct Pushes {
    socket: UdpSocket,
    address: SocketAddr,
    server: IpAddr,
}

/// What a datagram says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Push {
    r#type: String,
    data: String,
    last_ref_time: i64,
}

/// The list in it.
#[derive(Deserialize)]
struct List {
    #[serde(alias = "dom")]
    name: String,
    #[serde(default, rename = "groupName")]
    group_name: String,
}

/// A service that has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pushed {
    pub(super) group: String,
    pub(super) name: String,
}

impl Pushes {
    /// A socket at the address of this machine that the server sees.
    pub(super) async fn open(server: &str) -> io::Result<Pushes> {
        let resolved = tokio::net::lookup_host(server).await?.next();
        let server = resolved.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Nothing is sent: the system says which way it would take.
        let way = UdpSocket::bind((any, 0)).await?;
        way.connect(server).await?;
        let socket = UdpSocket::bind((way.local_addr()?.ip(), 0)).await?;
        Ok(Pushes {
            address: socket.local_addr()?,
            socket,
            server: server.ip(),
        })
    }

    /// Where pushes are received.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next service that has changed.
    pub(super) async fn next(&self) -> Pushed {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let (len, from) = match self.socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An earlier acknowledgement found nobody.
                Err(error) => {
                    tracing::debug!(%error, "a push cannot be received");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            if from.ip() != self.server {
                continue;
            }
            let Some((pushed, number)) = read(buffer.get(..len).unwrap_or_default()) else {
                tracing::debug!(%from, "a push cannot be read");
                continue;
            };
            let ack = format!(r#"{{"type":"push-ack","lastRefTime":"{number}","data":""}}"#);
            // Without it the server sends it again.
            if let Err(error) = self.socket.send_to(ack.as_bytes(), from).await {
                tracing::debug!(%error, "a push cannot be acknowledged");
            }
            return pushed;
        }
    }
}

/// The service of a datagram, and the number to acknowledge it with.
fn read(datagram: &[u8]) -> Option<(Pushed, i64)> {
    let mut text = Vec::new();
    let push: Push = if datagram.starts_with(&GZIP) {
        let mut decoder = GzDecoder::new(datagram).take(LIST_BYTES);
        decoder.read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()?
    } else {
        serde_json::from_slice(datagram).ok()?
    };
    // Later versions of 1.x say `service` for `dom`.
    if !matches!(push.r#type.as_str(), "dom" | "service") {
        return None;
    }
    let list: List = serde_json::from_str(&push.data).ok()?;
    let (group, name) = split_name(&list.group_name, &list.name);
    let pushed = Pushed {
        group: group.to_owned(),
        name: name.to_owned(),
    };
    Some((pushed, push.last_ref_time))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn zipped(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    #[test]
    fn a_push_names_its_service() {
        let text = br#"{"type":"dom","data":"{\"dom\":\"G@@s\",\"hosts\":[],\"lastRefTime\":5}","lastRefTime":17}"#;
        let (group, name) = ("G".to_owned(), "s".to_owned());
        let expected = Some((Pushed { group, name }, 17));
        assert_eq!(read(text), expected);
        assert_eq!(read(&zipped(text)), expected);
        assert_eq!(
            read(br#"{"type":"dump","data":"{\"dom\":\"G@@s\"}","lastRefTime":17}"#),
            None
        );
    }

    #[test]
    fn a_list_that_only_grows_is_given_up() {
        let endless = zipped(&vec![b' '; 12 << 20]);
        assert!(endless.len() < DATAGRAM_BYTES);
        assert_eq!(read(&endless), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), zip: bool) {
            // What is refused is ignored.
            let _ = read(&if zip { zipped(&bytes) } else { bytes });
        }
    }
}
