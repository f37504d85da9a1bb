//! What an RPC protocol has to provide. The engine is generic over it, so that each protocol is
//! compiled into its own copy and nothing is dispatched at run time.

use std::borrow::Cow;

use wire::frame::{Edit, FrameError, Limits, Next};

use super::refusal::Refusal;
use super::upstream::{HostPool, Pool};

/// What a frame is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A call that wants an answer.
    Call,
    /// A call that gets no answer, whatever happens.
    OneWay,
    /// The answer to a call.
    Answer,
    /// A heartbeat that wants an acknowledgement.
    Heartbeat,
    /// The acknowledgement of a heartbeat.
    HeartbeatAck,
    /// The peer wants no new calls on this connection.
    Drain,
    /// Nothing that needs a reaction.
    Other,
}

/// The words of a call.
#[derive(Clone, Debug)]
pub(super) struct Words<'a> {
    /// Interface.
    pub(super) service: Cow<'a, [u8]>,
    /// Method.
    pub(super) method: Cow<'a, [u8]>,
    /// Version; empty for none.
    pub(super) version: Cow<'a, [u8]>,
    /// Group; empty for none.
    pub(super) group: Cow<'a, [u8]>,
    /// How long the caller waits, in milliseconds.
    pub(super) timeout_ms: Option<u32>,
}

/// How a call ended in the words of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A result.
    Ok,
    /// An error of the application, carried by an answer that is itself fine.
    AppError,
    /// An error of the framework or the network.
    TransportError,
}

/// The outcome of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Class.
    pub(super) class: Class,
    /// HTTP status that stands for it in metrics, retries and logs.
    pub(super) http: u16,
    /// Whether the answer says that no application has seen the call, so that it may be sent again.
    pub(super) unseen: bool,
}

impl Outcome {
    /// A result.
    pub(super) const OK: Outcome = Outcome {
        class: Class::Ok,
        http: 200,
        unseen: false,
    };
}

/// Changes that a route makes to a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Change<'a> {
    /// Header map or attachments.
    pub(super) edits: Vec<Edit<'a>>,
    /// Another interface to call.
    pub(super) service: Option<Cow<'a, [u8]>>,
}

/// A protocol of calls and answers that carry an id.
pub(super) trait Protocol: Sized + 'static {
    /// What remains of a frame when its bytes are gone: enough to answer it.
    type Head: Copy + std::fmt::Debug;

    /// Name in logs.
    const NAME: &'static str;
    /// Bits of a request id.
    const ID_BITS: u32;

    /// The pool of this protocol among those of a host.
    fn pool(pools: &HostPool) -> &Pool<Self>;
    /// Finds the end of the frame at the start of `bytes`.
    fn next_frame(bytes: &[u8], limits: &Limits) -> Result<Next, FrameError>;
    /// The head of a complete frame; verifies its checksum.
    fn head(frame: &[u8]) -> Result<Self::Head, FrameError>;
    /// The head of a frame of our own making, whose checksum may still be wrong.
    fn head_unchecked(frame: &[u8]) -> Result<Self::Head, FrameError>;
    /// The head of a frame that was refused before it was complete.
    fn head_of_refused(bytes: &[u8]) -> Option<Self::Head>;
    /// What the frame is.
    fn role(head: &Self::Head, frame: &[u8]) -> Role;
    /// Request id.
    fn id(head: &Self::Head) -> u64;
    /// Replaces the request id in a frame with this head.
    fn set_id(frame: &mut [u8], head: &Self::Head, id: u64);
    /// Tells the server how long the caller still waits, where the head has a place for it.
    fn set_timeout(frame: &mut [u8], head: &Self::Head, timeout_ms: u32);
    /// Frames of different flavours must not share an upstream connection.
    fn flavour(head: &Self::Head) -> usize;
    /// Whether answers to this call can be written by us.
    fn can_answer(head: &Self::Head) -> bool;
    /// The words of a call. The error is a text for the log.
    fn words<'a>(frame: &'a [u8], head: &Self::Head, limits: &Limits) -> Result<Words<'a>, String>;
    /// One value of the call's metadata; `lower` is compared without case.
    fn header<'a>(frame: &'a [u8], head: &Self::Head, lower: &str) -> Option<Cow<'a, [u8]>>;
    /// Every pair of the metadata of a call or an answer.
    fn each_header(frame: &[u8], head: &Self::Head, visit: &mut dyn FnMut(&[u8], &[u8]));
    /// How the answer ended the call.
    fn outcome(frame: &[u8], head: &Self::Head) -> Outcome;
    /// Appends a call with changes. Nothing is appended on an error.
    fn edit_call(
        frame: &[u8],
        head: &Self::Head,
        change: &Change<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), String>;
    /// Appends an answer with changes. Nothing is appended on an error.
    fn edit_answer(
        frame: &[u8],
        head: &Self::Head,
        edits: &[Edit<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), String>;
    /// Appends an answer of our own to a call with this head.
    fn refuse(out: &mut Vec<u8>, call: &Self::Head, refusal: &Refusal);
    /// Appends a heartbeat.
    fn heartbeat(out: &mut Vec<u8>, flavour: usize, id: u64);
    /// Appends the acknowledgement of a heartbeat.
    fn heartbeat_ack(out: &mut Vec<u8>, heartbeat: &Self::Head);
    /// Appends what tells a stock client to send no new calls; nothing where there is no such thing.
    fn drain_notice(out: &mut Vec<u8>);
}
