//! One connection: frames in, requests answered one after the other, frames out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use wire::jute::{ConnectRequest, Reader, Writer, code, op, xid};

use super::requests;
use super::session::{Opened, WAITING};
use super::{Server, end};

/// Bytes of a request; ZooKeeper's own limit (`jute.maxbuffer`) is the same.
const FRAME_BYTES: usize = 1 << 20;
/// For the first request.
const FIRST: Duration = Duration::from_secs(10);
/// For bytes that a client does not take.
const WRITE: Duration = Duration::from_secs(30);

/// Serves a connection until it ends.
pub(super) async fn serve(server: &Arc<Server>, stream: TcpStream) {
    // Without it answers would wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let (mut reads, mut writes) = stream.into_split();
    let first = tokio::time::timeout(FIRST, first(&mut reads)).await;
    let request = match first {
        Ok(Ok(First::Connect(request))) => request,
        Ok(Ok(First::Word(word))) => {
            let answer = four_letters(server, &word);
            // Whoever is gone does not need it.
            let _ = writes.write_all(answer.as_bytes()).await;
            return;
        }
        Ok(Err(_)) | Err(_) => return,
    };
    let (frames, waiting) = mpsc::channel(WAITING);
    let opened = server.state().sessions.open(&request, frames.clone());
    let welcome = welcome(&request, opened.as_ref());
    if writes.write_all(&welcome).await.is_err() {
        return;
    }
    let Some(opened) = opened else { return };
    drop(frames);
    tokio::select! {
        _ = write(&mut writes, waiting) => {}
        _ = read(server, &mut reads, &opened) => {}
    }
    let mut state = server.state();
    if state
        .sessions
        .disconnected(opened.session, opened.connection)
    {
        state.tree.unwatch_all(opened.session);
    }
}

enum First {
    Connect(ConnectRequest),
    Word([u8; 4]),
}

async fn first(reads: &mut (impl AsyncRead + Unpin)) -> io::Result<First> {
    let mut head = [0; 4];
    reads.read_exact(&mut head).await?;
    if head.iter().all(u8::is_ascii_lowercase) {
        return Ok(First::Word(head));
    }
    let body = body(reads, head).await?;
    let request = ConnectRequest::read(&mut Reader::new(&body)).map_err(io::Error::other)?;
    Ok(First::Connect(request))
}

async fn body(reads: &mut (impl AsyncRead + Unpin), head: [u8; 4]) -> io::Result<Vec<u8>> {
    let length = usize::try_from(i32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES {
        return Err(io::Error::other("the frame is too large"));
    }
    // Grows as bytes come: a length proves nothing.
    let mut body = Vec::new();
    let read = reads.take(length as u64).read_to_end(&mut body).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}

fn four_letters(server: &Server, word: &[u8; 4]) -> String {
    match word {
        b"ruok" => "imok".to_owned(),
        b"srvr" | b"stat" | b"mntr" => {
            let state = server.state();
            format!(
                "Zookeeper version: 3.8.0-mesh, built on 1970-01-01\nZxid: {:#x}\nMode: standalone\nSessions: {}\n",
                state.tree.zxid(),
                state.sessions.len()
            )
        }
        _ => String::new(),
    }
}

fn welcome(request: &ConnectRequest, opened: Option<&Opened>) -> Vec<u8> {
    let mut frame = Writer::frame();
    frame.int(0);
    match opened {
        Some(opened) => {
            let timeout = i32::try_from(opened.timeout.as_millis()).unwrap_or(i32::MAX);
            frame
                .int(timeout)
                .long(opened.session)
                .buffer(&opened.password);
        }
        // So ZooKeeper says that a session is over.
        None => {
            frame.int(0).long(0).buffer(&[0; 16]);
        }
    }
    if request.knows_read_only {
        frame.bool(false);
    }
    frame.finish()
}

async fn write(
    writes: &mut (impl AsyncWriteExt + Unpin),
    mut waiting: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut batch = Vec::new();
    while let Some(frame) = waiting.recv().await {
        batch.clear();
        batch.extend_from_slice(&frame);
        while batch.len() < FRAME_BYTES
            && let Ok(frame) = waiting.try_recv()
        {
            batch.extend_from_slice(&frame);
        }
        tokio::time::timeout(WRITE, writes.write_all(&batch)).await??;
    }
    Ok(())
}

/// Answers requests until the client closes its session or goes away.
async fn read(
    server: &Arc<Server>,
    reads: &mut (impl AsyncRead + Unpin),
    opened: &Opened,
) -> io::Result<()> {
    let session = opened.session;
    loop {
        let mut head = [0; 4];
        reads.read_exact(&mut head).await?;
        let frame = body(reads, head).await?;
        let mut reader = Reader::new(&frame);
        let number = reader.int().map_err(io::Error::other)?;
        let kind = reader.int().map_err(io::Error::other)?;
        if !server.state().sessions.heard(session, opened.connection) {
            return Ok(());
        }
        match kind {
            op::CLOSE_SESSION => {
                // The answer waits in the queue, which is written out before the connection ends.
                reply(server, session, number, &Ok(Vec::new()));
                end(server, session).await;
                // The writer ends when the session's sender is gone.
                return std::future::pending().await;
            }
            op::PING => reply(server, session, xid::PING, &Ok(Vec::new())),
            op::AUTH => {
                let accepted = requests::authenticate(server, session, reader);
                let answer = if accepted {
                    Ok(Vec::new())
                } else {
                    Err(code::AUTH_FAILED)
                };
                reply(server, session, xid::AUTH, &answer);
                if !accepted {
                    server
                        .state()
                        .sessions
                        .disconnected(session, opened.connection);
                    return std::future::pending().await;
                }
            }
            _ => {
                let answer = requests::answer(server, session, kind, reader).await;
                reply(server, session, number, &answer);
            }
        }
    }
}

fn reply(server: &Server, session: i64, number: i32, answer: &Result<Vec<u8>, i32>) {
    let mut state = server.state();
    // What a request caused is told before its answer, as ZooKeeper does.
    state.tell();
    let mut frame = Writer::frame();
    let err = answer.as_ref().err().copied().unwrap_or(code::OK);
    frame.int(number).long(state.tree.zxid()).int(err);
    if let Ok(body) = answer {
        frame.raw(body);
    }
    let frame = frame.finish();
    state.sessions.send(session, frame);
}
