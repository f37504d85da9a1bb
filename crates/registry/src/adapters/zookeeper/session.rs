//! One connection to a ZooKeeper server: numbered requests and their replies, events of watches, pings.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use wire::jute::{
    ConnectResponse, EventType, Reader, ReplyHeader, Writer, code, op, watcher_event, xid,
};

use crate::source::Trouble;
use crate::tls::{self, ClientTls, Stream};

/// Bytes of a frame: a list of 100,000 providers has 40 MB.
const FRAME_BYTES: usize = 256 * 1024 * 1024;
/// For a connection and the first words on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the end of a session.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
/// After so long a silence a connection is given up, however long the session is: another server may have the session.
const SILENCE: Duration = Duration::from_secs(20);

/// Why there is no session (any longer).
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn unreachable(reason: &(impl ToString + ?Sized)) -> Failure {
        Failure {
            trouble: Trouble::Unreachable,
            reason: reason.to_string(),
        }
    }

    fn protocol(reason: &(impl ToString + ?Sized)) -> Failure {
        Failure {
            trouble: Trouble::Protocol,
            reason: reason.to_string(),
        }
    }
}

/// What a request came to: the body of the reply, or the server's code.
pub(super) type Reply = Result<Vec<u8>, i32>;

struct Call {
    op: i32,
    body: Vec<u8>,
    reply: oneshot::Sender<Reply>,
}

/// A session that can be gone on with on another connection.
#[derive(Clone, Debug)]
pub(super) struct Resume {
    id: i64,
    password: Vec<u8>,
}

/// The requesting end of a connection.
#[derive(Clone)]
pub(super) struct Client {
    calls: mpsc::UnboundedSender<Call>,
    resume: Resume,
    is_resumed: bool,
}

/// The telling end: events, and at last why it ended.
pub(super) struct Events {
    pub(super) events: mpsc::UnboundedReceiver<(EventType, String)>,
    pub(super) ended: oneshot::Receiver<Failure>,
}

impl Client {
    /// The session's number.
    pub(super) fn session(&self) -> i64 {
        self.resume.id
    }

    /// Whether an earlier connection began the session.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub(super) fn resume(&self) -> Resume {
        self.resume.clone()
    }

    /// Sends a request; `None` when the connection has ended. `fill` writes the body.
    pub(super) async fn call(&self, op: i32, fill: impl FnOnce(&mut Writer)) -> Option<Reply> {
        let mut writer = Writer::default();
        fill(&mut writer);
        let (reply, answered) = oneshot::channel();
        let body = writer.take();
        self.calls.send(Call { op, body, reply }).ok()?;
        answered.await.ok()
    }
}

/// Opens a connection; with `resume` in that session if it still is.
pub(super) async fn connect(
    server: &str,
    tls: Option<&ClientTls>,
    session_timeout: Duration,
    resume: Option<Resume>,
    auth: Option<String>,
) -> Result<(Client, Events), Failure> {
    let before = resume.as_ref().map(|resume| resume.id);
    let opening = open(server, tls, session_timeout, resume, auth);
    let opened = timeout(CONNECT_TIMEOUT, opening).await;
    let (stream, response) = opened.map_err(|_| {
        Failure::unreachable(&format!("{server}: no answer in {CONNECT_TIMEOUT:?}"))
    })??;
    let timeout_ms = u64::try_from(response.timeout_ms).unwrap_or_default();
    let resume = Resume {
        id: response.session,
        password: response.password,
    };
    let (calls, received) = mpsc::unbounded_channel();
    let (events, told) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    let server = server.to_owned();
    tokio::spawn(async move {
        let session_timeout = Duration::from_millis(timeout_ms);
        let failure = serve(stream, received, &events, session_timeout).await;
        // Without a reader of it nobody needs the reason.
        let _ = end.send(Failure {
            reason: format!("{server}: {}", failure.reason),
            ..failure
        });
    });
    let events = Events {
        events: told,
        ended,
    };
    let client = Client {
        is_resumed: before == Some(resume.id),
        calls,
        resume,
    };
    Ok((client, events))
}

async fn open(
    server: &str,
    tls: Option<&ClientTls>,
    session_timeout: Duration,
    resume: Option<Resume>,
    auth: Option<String>,
) -> Result<(Stream, ConnectResponse), Failure> {
    let failed = |error: std::io::Error| Failure::unreachable(&format!("{server}: {error}"));
    let mut stream = tls::connect(server, tls).await.map_err(failed)?;
    let resume = resume.unwrap_or(Resume {
        id: 0,
        password: vec![0; 16],
    });
    let request = Writer::frame()
        .int(0)
        .long(0)
        .int(i32::try_from(session_timeout.as_millis()).unwrap_or(i32::MAX))
        .long(resume.id)
        .buffer(&resume.password)
        .bool(false)
        .finish();
    send(&mut stream, &request).await.map_err(failed)?;
    let frame = read_frame(&mut stream).await.map_err(failed)?;
    let response = ConnectResponse::read(&mut Reader::new(&frame))
        .map_err(|error| Failure::protocol(&error))?;
    if response.timeout_ms <= 0 {
        return Err(Failure::unreachable(&format!(
            "{server}: the session has expired"
        )));
    }
    if let Some(auth) = auth {
        let packet = Writer::request(xid::AUTH, op::AUTH)
            .int(0)
            .buffer(b"digest")
            .buffer(auth.as_bytes())
            .finish();
        send(&mut stream, &packet).await.map_err(failed)?;
        let frame = read_frame(&mut stream).await.map_err(failed)?;
        let header = ReplyHeader::read(&mut Reader::new(&frame))
            .map_err(|error| Failure::protocol(&error))?;
        if header.err != code::OK {
            return Err(Failure {
                trouble: Trouble::Refused,
                reason: format!("{server}: the credentials are not accepted"),
            });
        }
    }
    Ok((stream, response))
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > FRAME_BYTES {
        return Err(std::io::Error::other(format!(
            "a frame of {length} bytes is too long"
        )));
    }
    let mut frame = Vec::new();
    // The frame grows as its bytes come: a length alone takes no memory.
    let limit = u64::try_from(length).unwrap_or(u64::MAX);
    let read = stream.take(limit).read_to_end(&mut frame).await?;
    if read < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

/// TLS keeps what the socket did not take until it is flushed.
async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// A server that takes nothing is as good as one that says nothing.
async fn send_within(
    limit: Duration,
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Result<(), Failure> {
    match timeout(limit, send(stream, bytes)).await {
        Ok(sent) => sent.map_err(|error| Failure::unreachable(&error)),
        Err(_) => Err(Failure::unreachable("the server takes nothing")),
    }
}

/// Until the connection breaks, or nobody has requests any more: then the session is closed.
async fn serve(
    stream: Stream,
    mut calls: mpsc::UnboundedReceiver<Call>,
    events: &mpsc::UnboundedSender<(EventType, String)>,
    session_timeout: Duration,
) -> Failure {
    let (mut read, mut write) = tokio::io::split(stream);
    // Reading a frame cannot be given up half-way: it has a task of its own.
    let (frames, mut received) = mpsc::channel(64);
    let reader = tokio::spawn(async move {
        loop {
            let frame = read_frame(&mut read).await;
            let ended = frame.is_err();
            if frames.send(frame).await.is_err() || ended {
                return;
            }
        }
    });
    let mut pending: VecDeque<(i32, oneshot::Sender<Reply>)> = VecDeque::new();
    let mut next = 1;
    let mut heard = Instant::now();
    let silence = SILENCE.min(session_timeout * 2 / 3);
    let mut ping = tokio::time::interval(silence / 4);
    let failure = loop {
        tokio::select! {
            call = calls.recv() => {
                let Some(first) = call else {
                    let close = Writer::request(next, op::CLOSE_SESSION).finish();
                    // A server that does not hear it ends the session after its timeout.
                    let _ = send_within(CLOSE_TIMEOUT, &mut write, &close).await;
                    let _ = timeout(CLOSE_TIMEOUT, received.recv()).await;
                    break Failure::unreachable("closed");
                };
                let mut bytes = Vec::new();
                let mut call = Some(first);
                while let Some(Call { op, body, reply }) = call {
                    bytes.extend(Writer::request(next, op).raw(&body).finish());
                    pending.push_back((next, reply));
                    next = if next == i32::MAX { 1 } else { next + 1 };
                    call = if bytes.len() < 64 * 1024 { calls.try_recv().ok() } else { None };
                }
                if let Err(failure) = send_within(silence, &mut write, &bytes).await {
                    break failure;
                }
            }
            frame = received.recv() => {
                let frame = match frame {
                    Some(Ok(frame)) => frame,
                    Some(Err(error)) => break Failure::unreachable(&error),
                    None => break Failure::unreachable("the connection has ended"),
                };
                heard = Instant::now();
                if let Err(failure) = take(&frame, &mut pending, events) {
                    break failure;
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > silence {
                    break Failure::unreachable("the server does not answer");
                }
                let ping = Writer::request(xid::PING, op::PING).finish();
                if let Err(failure) = send_within(silence, &mut write, &ping).await {
                    break failure;
                }
            }
        }
    };
    reader.abort();
    failure
}

fn take(
    frame: &[u8],
    pending: &mut VecDeque<(i32, oneshot::Sender<Reply>)>,
    events: &mpsc::UnboundedSender<(EventType, String)>,
) -> Result<(), Failure> {
    let mut reader = Reader::new(frame);
    let header = ReplyHeader::read(&mut reader).map_err(|error| Failure::protocol(&error))?;
    match header.xid {
        xid::PING | xid::AUTH => Ok(()),
        xid::EVENT => {
            let event = watcher_event(&mut reader).map_err(|error| Failure::protocol(&error))?;
            // Without a reader of events the connection is about to be dropped.
            let _ = events.send(event);
            Ok(())
        }
        number => {
            let Some((expected, reply)) = pending.pop_front() else {
                return Err(Failure::protocol("a reply to no request"));
            };
            if number != expected {
                return Err(Failure::protocol("replies are out of order"));
            }
            let result = match header.err {
                code::OK => Ok(reader.rest().to_vec()),
                code => Err(code),
            };
            // One who does not wait any more does not need it.
            let _ = reply.send(result);
            Ok(())
        }
    }
}
