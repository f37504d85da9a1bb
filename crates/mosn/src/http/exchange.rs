//! One try of a request: the downstream's task moves bytes between both connections, in both directions at once.
//!
//! Nothing here waits for one side only: an answer may begin before the request has ended, and either side that reads
//! slowly holds back no more than its own direction.

use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::time::Instant;
use wire::http1::{
    BodyDecoder, BodyEvent, Error, Framing, LAST_CHUNK, Limits, Parse, Trailers, put_chunk,
    put_header,
};

use super::connection::Conn;
use super::deadlines::{Deadlines, Limit};
use super::io::{READ_BYTES, poll_fill};
use super::scratch::Scratch;
use super::upstream;

/// Bytes that may wait for a slow receiver before its sender is no longer read.
const HIGH_WATERMARK: usize = 2 * READ_BYTES;
/// Limits of a response head; Envoy's defaults.
const RESPONSE_LIMITS: Limits = Limits {
    head_bytes: 80 * 1024,
    headers: 100,
    http_10: true,
    custom_methods: true,
};

/// What the caller must see to.
#[derive(Debug)]
pub(super) enum Event {
    /// The head of the final answer is in the scratch; [`Exchange::respond`] or give up.
    Head,
    /// Everything has been sent downstream.
    Done,
    /// The client has closed.
    DownstreamGone,
    /// The client's body breaks the protocol.
    BadRequest(Error),
    /// The upstream has closed, or cannot be written to.
    UpstreamGone,
    /// The upstream breaks the protocol.
    BadUpstream,
    /// A time limit has passed.
    Expired(Limit),
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encode {
    /// Not at all.
    Nothing,
    /// As it is.
    Raw,
    /// In chunks.
    Chunked,
}

enum Phase {
    /// No final answer yet.
    Head,
    Body(BodyDecoder, Encode),
    /// The end has been received; what is left must be sent.
    End,
}

/// State of a request from its first try to its last byte.
pub(super) struct Exchange {
    request: BodyDecoder,
    request_encode: Encode,
    /// Whether the whole request is in [`Scratch::to_upstream`].
    pub(super) request_done: bool,
    has_body: bool,
    /// Whether what was sent is kept to be sent again, and how much of it.
    keep: Option<usize>,
    head_bytes: usize,
    upstream_deaf: bool,
    trailers: bool,
    phase: Phase,
    pub(super) deadlines: Deadlines,
    active: bool,
    first: bool,
    /// Bytes to the upstream, over all tries.
    pub(super) upstream_sent: u64,
    /// Bytes from the upstream, over all tries.
    pub(super) upstream_received: u64,
    /// Body bytes from the downstream.
    pub(super) request_bytes: u64,
    /// Body bytes to the downstream.
    pub(super) response_bytes: u64,
    /// Whether anything of an answer came in this try.
    pub(super) heard: bool,
    /// Whether `100 Continue` is passed on to this client.
    pub(super) pass_continue: bool,
    /// When the final head came.
    pub(super) head_at: Option<Instant>,
    /// Whether nothing was waited for since then.
    fresh: bool,
    /// Bytes of the final head.
    pub(super) head_len: usize,
}

impl Exchange {
    /// For a request of this framing, whose body (as far as it is there) is in [`Scratch::body`].
    pub(super) fn new(
        framing: Framing,
        trailer_bytes: usize,
        trailers: bool,
        deadlines: Deadlines,
    ) -> Exchange {
        let request_encode = match framing {
            Framing::Empty => Encode::Nothing,
            Framing::Length(_) | Framing::UntilClose => Encode::Raw,
            Framing::Chunked => Encode::Chunked,
        };
        let mut deadlines = deadlines;
        if framing == Framing::Empty {
            deadlines.request_done(None);
        }
        Exchange {
            request: BodyDecoder::new(framing, trailer_bytes),
            request_encode,
            request_done: framing == Framing::Empty,
            has_body: framing != Framing::Empty,
            keep: None,
            head_bytes: 0,
            upstream_deaf: false,
            trailers,
            phase: Phase::Head,
            deadlines,
            active: false,
            first: true,
            upstream_sent: 0,
            upstream_received: 0,
            request_bytes: 0,
            response_bytes: 0,
            heard: false,
            pass_continue: false,
            head_at: None,
            fresh: false,
            head_len: 0,
        }
    }

    /// How the request's body is written.
    pub(super) fn request_encode(&self) -> Encode {
        self.request_encode
    }

    /// Starts a try: `head` is the first `head_bytes` of [`Scratch::to_upstream`]; with `keep`, up to so many bytes of the body
    /// are kept for another one.
    pub(super) fn start_try(&mut self, head_bytes: usize, keep: Option<usize>) {
        self.head_bytes = head_bytes;
        self.keep = keep;
        self.upstream_deaf = false;
        self.heard = false;
        self.phase = Phase::Head;
    }

    /// The time, without asking the clock if the whole answer came at once.
    pub(super) fn now(&self) -> Instant {
        match self.head_at {
            Some(at) if self.fresh => at,
            _ => Instant::now(),
        }
    }

    /// Whether the request can be sent again from what was kept.
    pub(super) fn can_repeat(&self) -> bool {
        self.keep.is_some()
    }

    /// Length of the head of this try in [`Scratch::to_upstream`].
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Takes up the answer: its head is written, its body follows in this way.
    pub(super) fn respond(&mut self, framing: Framing, encode: Encode, trailer_bytes: usize) {
        self.keep = None;
        self.phase = Phase::Body(BodyDecoder::new(framing, trailer_bytes), encode);
    }

    /// Runs until something happens that needs a decision.
    pub(super) async fn run(
        &mut self,
        conn: &mut Conn,
        scratch: &mut Scratch,
        up: &mut upstream::Connection,
    ) -> Event {
        poll_fn(|cx| self.poll(conn, scratch, &mut up.stream, cx)).await
    }

    fn poll(
        &mut self,
        conn: &mut Conn,
        s: &mut Scratch,
        up: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        loop {
            // Set when bytes came in: only then can another turn move more.
            let mut again = false;
            if !self.request_done
                && s.to_upstream.pending() < HIGH_WATERMARK
                && let Err(error) = self.take_body(s)
            {
                return Poll::Ready(Event::BadRequest(error));
            }
            if s.to_upstream.pending() > 0 && !self.upstream_deaf {
                let before = s.to_upstream.sent();
                let flushed = s.to_upstream.poll_flush(up, cx);
                self.upstream_sent += (s.to_upstream.sent() - before) as u64;
                match flushed {
                    Poll::Ready(Ok(())) => {
                        self.active = true;
                        // What did not fit before may be taken now.
                        again |= !self.request_done && !s.body.is_empty();
                    }
                    // The upstream may have answered before it closed; reading tells.
                    Poll::Ready(Err(_)) => self.upstream_deaf = true,
                    Poll::Pending => {}
                }
                if self.keep.is_none() {
                    s.to_upstream.forget_sent();
                }
            }
            match self.read_upstream(s, up, cx) {
                Poll::Ready(Step::Event(event)) => return Poll::Ready(event),
                Poll::Ready(Step::Received) => again = true,
                Poll::Pending => {}
            }
            if s.to_downstream.pending() > 0 {
                // Decoding stops where too much waits for the client; it must go on once that is sent.
                let held_back = s.to_downstream.pending() >= HIGH_WATERMARK;
                let before = s.to_downstream.sent();
                let flushed = s.to_downstream.poll_flush(&mut conn.stream, cx);
                conn.shared
                    .config
                    .stats
                    .downstream_cx_tx_bytes_total
                    .add((s.to_downstream.sent() - before) as u64);
                match flushed {
                    Poll::Ready(Ok(())) => self.active = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(Event::DownstreamGone),
                    Poll::Pending => {}
                }
                s.to_downstream.forget_sent();
                again |= held_back && s.to_downstream.pending() < HIGH_WATERMARK;
            }
            if matches!(self.phase, Phase::End) && s.to_downstream.pending() == 0 {
                return Poll::Ready(Event::Done);
            }
            match self.read_downstream(conn, s, cx) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => {
                    return Poll::Ready(Event::DownstreamGone);
                }
                Poll::Ready(Ok(bytes)) => {
                    conn.shared
                        .config
                        .stats
                        .downstream_cx_rx_bytes_total
                        .add(bytes as u64);
                    again |= !self.request_done;
                    self.active = true;
                }
                Poll::Pending => {}
            }
            if again {
                continue;
            }
            self.fresh = false;
            if std::mem::take(&mut self.active) && !std::mem::take(&mut self.first) {
                self.deadlines.moved(Instant::now());
            }
            return match self.deadlines.next() {
                Some((deadline, limit)) if conn.timer.poll(cx, Some(deadline)) => {
                    Poll::Ready(Event::Expired(limit))
                }
                _ => Poll::Pending,
            };
        }
    }

    /// Reads the rest of the request, or, after it, what else the client sends: the end of the connection above all.
    fn read_downstream(
        &mut self,
        conn: &mut Conn,
        s: &mut Scratch,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        if !self.request_done {
            return match s.to_upstream.pending() < HIGH_WATERMARK {
                true => s.body.poll_fill(&mut conn.stream, cx),
                false => Poll::Pending,
            };
        }
        // Requests that were sent ahead wait here, up to a limit.
        if self.has_body && s.body.bytes().len() < READ_BYTES {
            s.body.poll_fill(&mut conn.stream, cx)
        } else if !self.has_body && s.received.len() < HIGH_WATERMARK {
            poll_fill(&mut s.received, &mut conn.stream, cx)
        } else {
            Poll::Pending
        }
    }

    /// Takes the framing off the request's body and puts the upstream's on.
    fn take_body(&mut self, s: &mut Scratch) -> Result<(), Error> {
        let Scratch {
            body, to_upstream, ..
        } = s;
        while to_upstream.pending() < HIGH_WATERMARK {
            let bytes = body.bytes();
            let (used, event) = self.request.decode(bytes)?;
            let done = matches!(event, BodyEvent::End | BodyEvent::Trailers(_));
            let more = !matches!(event, BodyEvent::NeedMore);
            if let BodyEvent::Data(range) = &event {
                self.request_bytes += range.len() as u64;
            }
            encode(
                &mut to_upstream.buffer,
                bytes,
                event,
                self.request_encode,
                self.trailers,
            )?;
            body.consume(used);
            if self
                .keep
                .is_some_and(|limit| to_upstream.buffer.len() > self.head_bytes + limit)
            {
                self.keep = None;
            }
            if done {
                self.request_done = true;
                self.deadlines.request_done(if self.first {
                    None
                } else {
                    Some(Instant::now())
                });
            }
            if done || !more {
                break;
            }
        }
        Ok(())
    }

    fn read_upstream(
        &mut self,
        s: &mut Scratch,
        up: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Step> {
        match self.decode_response(s) {
            Ok(Some(event)) => return Poll::Ready(Step::Event(event)),
            Ok(None) => {}
            Err(_) => return Poll::Ready(Step::Event(Event::BadUpstream)),
        }
        if matches!(self.phase, Phase::End) || s.to_downstream.pending() >= HIGH_WATERMARK {
            return Poll::Pending;
        }
        let closed = match s.from_upstream.poll_fill(up, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => true,
            Poll::Ready(Ok(bytes)) => {
                self.upstream_received += bytes as u64;
                false
            }
        };
        if closed {
            return Poll::Ready(self.upstream_closed(s));
        }
        self.heard = true;
        self.active = true;
        match self.decode_response(s) {
            Ok(Some(event)) => Poll::Ready(Step::Event(event)),
            Ok(None) => Poll::Ready(Step::Received),
            Err(_) => Poll::Ready(Step::Event(Event::BadUpstream)),
        }
    }

    fn upstream_closed(&mut self, s: &mut Scratch) -> Step {
        match &self.phase {
            Phase::Body(decoder, encode) if decoder.may_end_here() => {
                if *encode == Encode::Chunked {
                    s.to_downstream.buffer.extend_from_slice(LAST_CHUNK);
                }
                self.phase = Phase::End;
                Step::Received
            }
            // A body that is cut short is an error of the protocol, as Envoy sees it.
            Phase::Body(..) => Step::Event(Event::BadUpstream),
            Phase::Head | Phase::End => Step::Event(Event::UpstreamGone),
        }
    }

    fn decode_response(&mut self, s: &mut Scratch) -> Result<Option<Event>, Error> {
        loop {
            match &mut self.phase {
                Phase::End => return Ok(None),
                Phase::Head if s.from_upstream.is_empty() => return Ok(None),
                Phase::Head => {
                    let Parse::Complete(len) = s
                        .response
                        .parse(s.from_upstream.bytes(), &RESPONSE_LIMITS)?
                    else {
                        return Ok(None);
                    };
                    if !(100..200).contains(&s.response.status) || s.response.status == 101 {
                        self.head_len = len;
                        self.head_at = Some(Instant::now());
                        self.fresh = true;
                        return Ok(Some(Event::Head));
                    }
                    if s.response.status == 100 && std::mem::take(&mut self.pass_continue) {
                        s.to_downstream
                            .buffer
                            .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    s.from_upstream.consume(len);
                }
                Phase::Body(decoder, how) => {
                    if s.to_downstream.pending() >= HIGH_WATERMARK {
                        return Ok(None);
                    }
                    let bytes = s.from_upstream.bytes();
                    let (used, event) = decoder.decode(bytes)?;
                    let how = *how;
                    let done = matches!(event, BodyEvent::End | BodyEvent::Trailers(_));
                    let more = !matches!(event, BodyEvent::NeedMore);
                    if let BodyEvent::Data(range) = &event {
                        self.response_bytes += range.len() as u64;
                    }
                    encode(
                        &mut s.to_downstream.buffer,
                        bytes,
                        event,
                        how,
                        self.trailers,
                    )?;
                    s.from_upstream.consume(used);
                    if done {
                        self.phase = Phase::End;
                    }
                    if !more {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

enum Step {
    Event(Event),
    Received,
}

fn encode(
    out: &mut Vec<u8>,
    input: &[u8],
    event: BodyEvent,
    how: Encode,
    trailers: bool,
) -> Result<(), Error> {
    match (event, how) {
        (_, Encode::Nothing)
        | (BodyEvent::NeedMore, _)
        | (BodyEvent::End | BodyEvent::Trailers(_), Encode::Raw) => {}
        (BodyEvent::Data(range), Encode::Raw) => {
            out.extend_from_slice(input.get(range).unwrap_or_default())
        }
        (BodyEvent::Data(range), Encode::Chunked) => {
            put_chunk(out, input.get(range).unwrap_or_default())
        }
        (BodyEvent::End, Encode::Chunked) => out.extend_from_slice(LAST_CHUNK),
        (BodyEvent::Trailers(range), Encode::Chunked) => {
            out.extend_from_slice(b"0\r\n");
            if trailers {
                let block = input.get(range).unwrap_or_default();
                Trailers::for_each(block, |name, value| put_header(out, name, value))?;
            }
            out.extend_from_slice(b"\r\n");
        }
    }
    Ok(())
}
