//! One connection: frames in, requests answered one after the other; answers and pushes out.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use wire::bolt::{self, Head, Kind, Parts, command, status};
use wire::frame::{Limits, Next};
use wire::sofaregistry::{ReceivedConfigData, ReceivedData};

use super::form::{self, Reply, Written};
use super::sessions::{Due, Topic};
use super::{Server, requests};

/// A client that says nothing for so long is gone; it sends heartbeats every 15 s.
const IDLE: Duration = Duration::from_secs(45);
/// For bytes that a client does not take.
const WRITE: Duration = Duration::from_secs(30);
/// Answers that wait for a client to take them, before it is asked for no more.
const ANSWERS: usize = 64;
/// Bytes that are written at a time.
const BATCH: usize = 256 * 1024;
/// What a push says about how long its answer may take.
const PUSH_TIMEOUT_MS: i32 = 2000;
/// The version of configuration items: there are none, and that does not change.
const CONFIG_VERSION: i64 = 1;

/// Serves a connection until it ends.
pub(super) async fn serve(server: &Arc<Server>, stream: TcpStream) {
    // Without it pushes would wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let (mut reads, mut writes) = stream.into_split();
    let (connection, wake) = server.state().sessions.open();
    let (answers, waiting) = mpsc::channel(ANSWERS);
    let ended = tokio::select! {
        ended = write(server, connection, &mut writes, waiting, &wake) => ended,
        ended = read(server, connection, &mut reads, answers, &wake) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(connection, %error, "a client of SOFARegistry is gone");
    }
    requests::close(server, connection).await;
}

async fn read(
    server: &Server,
    connection: u64,
    reads: &mut (impl AsyncReadExt + Unpin),
    answers: mpsc::Sender<Vec<u8>>,
    wake: &Notify,
) -> io::Result<()> {
    let limits = Limits {
        frame_bytes: server.config.frame_bytes,
        ..Limits::default()
    };
    let mut buffer = BytesMut::new();
    loop {
        while let Next::Frame(length) =
            bolt::next_frame(&buffer, &limits).map_err(io::Error::other)?
        {
            let frame = buffer.split_to(length).freeze();
            let head = Head::parse(&frame).map_err(io::Error::other)?;
            bolt::verify(&frame, &head).map_err(io::Error::other)?;
            if let Some(answer) = answer(server, connection, &head, &frame).await
                && answers.send(answer).await.is_err()
            {
                return Ok(());
            }
            // A subscriber is told what is behind the answer.
            wake.notify_one();
        }
        // It grows as bytes come: a length proves nothing.
        let read = tokio::time::timeout(IDLE, reads.read_buf(&mut buffer)).await;
        if read?? == 0 {
            return Ok(());
        }
        if !buffer.has_remaining() {
            buffer = BytesMut::new();
        }
    }
}

/// The answer to a frame, if it gets one.
async fn answer(server: &Server, connection: u64, head: &Head, frame: &[u8]) -> Option<Vec<u8>> {
    let section = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
    let class = String::from_utf8_lossy(section(head.class()));
    let content = section(head.content());
    let mut out = Vec::new();
    match (head.kind, head.command) {
        (Kind::Response, command::HEARTBEAT) => {}
        (Kind::Response, _) => {
            let success = head.status == status::SUCCESS
                && form::read_result(&class, content).unwrap_or(false);
            server
                .state()
                .sessions
                .answered(connection, head.id, success);
        }
        (_, command::HEARTBEAT) => bolt::write_heartbeat_ack(&mut out, head),
        _ => match form::read(&class, content) {
            Ok(Some((form, request))) => {
                server.state().sessions.set_form(connection, form);
                let reply = requests::answer(server, connection, request).await;
                write_reply(&mut out, head, &form.reply(&reply), &reply);
            }
            Ok(None) => bolt::write_status(&mut out, head, status::NO_PROCESSOR),
            Err(error) => {
                tracing::warn!(connection, %class, error, "a request cannot be read");
                bolt::write_status(&mut out, head, status::SERVER_DESERIAL_EXCEPTION);
            }
        },
    }
    let is_answered = head.kind == Kind::Request && !out.is_empty();
    is_answered.then_some(out)
}

fn write_reply(out: &mut Vec<u8>, head: &Head, written: &Written, reply: &Reply) {
    if let Reply::Registered(response) = reply
        && !response.success
    {
        tracing::warn!(message = response.message, "a registration is refused");
    }
    let parts = Parts {
        class: written.class,
        content: &written.content,
        ..Parts::answer(head)
    };
    bolt::write_response(out, status::SUCCESS, &parts);
}

/// Writes answers as they come, and pushes when there is something new.
async fn write(
    server: &Server,
    connection: u64,
    writes: &mut (impl AsyncWriteExt + Unpin),
    mut answers: mpsc::Receiver<Vec<u8>>,
    wake: &Notify,
) -> io::Result<()> {
    let mut out = Vec::new();
    loop {
        out.clear();
        // Answers first: a list comes behind the answer to its subscription.
        while out.len() < BATCH
            && let Ok(answer) = answers.try_recv()
        {
            out.extend_from_slice(&answer);
        }
        let next = push(server, connection, &mut out);
        if !out.is_empty() {
            tokio::time::timeout(WRITE, writes.write_all(&out)).await??;
            continue;
        }
        let retry = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = answers.recv() => match answer {
                Some(answer) => out.extend_from_slice(&answer),
                None => return Ok(()),
            },
            () = wake.notified() => continue,
            () = retry => continue,
        }
        tokio::time::timeout(WRITE, writes.write_all(&out)).await??;
    }
}

/// Appends the pushes that are due; when to look again otherwise.
fn push(server: &Server, connection: u64, out: &mut Vec<u8>) -> Option<Instant> {
    while out.len() < BATCH {
        let mut state = server.state();
        let Some(due) = state.sessions.due(connection, Instant::now()) else {
            return state.sessions.next_deadline(connection);
        };
        let content = match &due.topic {
            Topic::List(info, ..) => {
                let services = server.hub.snapshot();
                let content = state.lists.content(info, &services);
                if state.lists.is_dirty() {
                    server.changed.notify_one();
                }
                if let Some(content) = &content {
                    let version = content.version;
                    state.sessions.sent(connection, &due.topic, version);
                }
                content
            }
            Topic::Config(_) => None,
        };
        drop(state);
        let written = match (&due.topic, content) {
            (Topic::List(info, scope, zone), Some(content)) => {
                let subscribers: Vec<&str> = due.subscribers.iter().map(AsRef::as_ref).collect();
                let push = ReceivedData {
                    data_id: &info.data_id,
                    group: &info.group,
                    instance_id: &info.instance_id,
                    segment: &server.config.data_center,
                    scope: *scope,
                    version: content.version,
                    local_zone: zone,
                    subscribers: &subscribers,
                };
                due.form.list(&push, &content, zone)
            }
            (Topic::Config(info), _) => {
                let configurators: Vec<&str> = due.subscribers.iter().map(AsRef::as_ref).collect();
                form::config(&ReceivedConfigData {
                    data_id: &info.data_id,
                    group: &info.group,
                    instance_id: &info.instance_id,
                    version: CONFIG_VERSION,
                    configurators: &configurators,
                    data: None,
                })
            }
            (Topic::List(..), None) => continue,
        };
        write_push(out, &due, &written);
    }
    None
}

fn write_push(out: &mut Vec<u8>, due: &Due, written: &Written) {
    let parts = Parts {
        codec: due.form.codec(),
        class: written.class,
        content: &written.content,
        ..Parts::v1(due.request_id)
    };
    bolt::write_request(out, Kind::Request, PUSH_TIMEOUT_MS, &parts);
}
