//! One Bolt connection to a session server: numbered requests and their answers, pushes, which are answered at once, and
//! heartbeats.

use std::collections::HashMap;
use std::time::Duration;

use api::sofaregistry::session::v1 as pb;
use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use wire::bolt::{self, Head, Kind, Parts, Version, codec, command, status};
use wire::frame::{FrameError, Limits, Next};

use super::push::{self, Push};
use crate::naming::Malformed;
use crate::sofaregistry::DataInfoId;
use crate::source::Trouble;

/// Before the names of all messages.
const PACKAGE: &str = "com.alipay.sofa.registry.common.model.client.pb.";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a request without an answer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers drop a connection on which they heard nothing for 45 s; the stock client says something every 15 s.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A server that was silent for so long, in spite of heartbeats, is not there any more.
const SILENCE: Duration = Duration::from_secs(40);
/// Pushes that wait for the reader.
const PUSHES: usize = 256;
/// Of a push that is too large so much is looked at, for its name.
const BEGINNING: usize = 8 * 1024;

/// Why there is no connection (any longer).
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

    pub(super) fn protocol(reason: &(impl ToString + ?Sized)) -> Failure {
        Failure {
            trouble: Trouble::Protocol,
            reason: reason.to_string(),
        }
    }
}

/// What the server tells by itself.
#[derive(Debug)]
pub(super) enum Told {
    /// It holds this now.
    Push(Push),
    /// A push that could not be read, of this id if that much could be read.
    Unreadable(Option<DataInfoId>, Malformed),
}

struct Call {
    name: &'static str,
    content: Vec<u8>,
    answer: oneshot::Sender<Result<Bytes, String>>,
}

/// The requesting end of a connection.
#[derive(Clone)]
pub(super) struct Client {
    calls: mpsc::UnboundedSender<Call>,
}

/// The telling end: pushes, and at last why it ended.
pub(super) struct Events {
    pub(super) told: mpsc::Receiver<Told>,
    pub(super) ended: oneshot::Receiver<Failure>,
}

impl Client {
    /// Publishes, or ends that.
    pub(super) async fn publish(
        &self,
        publisher: &pb::PublisherRegister,
    ) -> Result<pb::RegisterResponse, String> {
        self.call("PublisherRegisterPb", publisher).await
    }

    /// Subscribes, or ends that.
    pub(super) async fn subscribe(
        &self,
        subscriber: &pb::SubscriberRegister,
    ) -> Result<pb::RegisterResponse, String> {
        self.call("SubscriberRegisterPb", subscriber).await
    }

    /// Asks what the server shows.
    pub(super) async fn sync_config(
        &self,
        request: &pb::SyncConfigRequest,
    ) -> Result<pb::SyncConfigResponse, String> {
        self.call("SyncConfigRequestPb", request).await
    }

    /// One whose server answers the contents of requests, or does not.
    #[cfg(test)]
    pub(super) fn of(mut server: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> Client {
        let (calls, mut received) = mpsc::unbounded_channel::<Call>();
        tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Some(call) = received.recv().await {
                match server(&call.content) {
                    Some(answer) => drop(call.answer.send(Ok(answer.into()))),
                    None => silent.push(call.answer),
                }
            }
        });
        Client { calls }
    }

    async fn call<A: Message + Default>(
        &self,
        name: &'static str,
        request: &impl Message,
    ) -> Result<A, String> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            name,
            content: request.encode_to_vec(),
            answer,
        };
        let ended = || "the connection has ended".to_owned();
        self.calls.send(call).map_err(|_| ended())?;
        let content = timeout(CALL_TIMEOUT, answered)
            .await
            .map_err(|_| format!("no answer within {CALL_TIMEOUT:?}"))?
            .map_err(|_| ended())??;
        A::decode(content).map_err(|error| format!("the answer to a {name}: {error}"))
    }
}

/// Opens a connection; frames may be as large as `limit`.
pub(super) async fn connect(server: &str, limit: usize) -> Result<(Client, Events), Failure> {
    let failed = |error: std::io::Error| Failure::unreachable(&format!("{server}: {error}"));
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await;
    let stream = stream
        .map_err(|_| Failure::unreachable(&format!("{server}: no answer in {CONNECT_TIMEOUT:?}")))?
        .map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (calls, received) = mpsc::unbounded_channel();
    let (tell, told) = mpsc::channel(PUSHES);
    let (end, ended) = oneshot::channel();
    let server = server.to_owned();
    tokio::spawn(async move {
        let failure = Connection::new(limit, tell).serve(stream, received).await;
        // Without a reader of it nobody needs the reason.
        let _ = end.send(Failure {
            reason: format!("{server}: {}", failure.reason),
            ..failure
        });
    });
    Ok((Client { calls }, Events { told, ended }))
}

struct Connection {
    limits: Limits,
    incoming: BytesMut,
    outgoing: Vec<u8>,
    /// Bytes of a frame that is too large which are still to come.
    passed_over: usize,
    pending: HashMap<u32, oneshot::Sender<Result<Bytes, String>>>,
    last_id: u32,
    told: mpsc::Sender<Told>,
}

impl Connection {
    fn new(limit: usize, told: mpsc::Sender<Told>) -> Connection {
        Connection {
            limits: Limits {
                frame_bytes: limit,
                ..Limits::default()
            },
            incoming: BytesMut::new(),
            outgoing: Vec::new(),
            passed_over: 0,
            pending: HashMap::new(),
            last_id: 0,
            told,
        }
    }

    /// Until the connection breaks, or nobody has requests any more.
    async fn serve(
        mut self,
        stream: TcpStream,
        mut calls: mpsc::UnboundedReceiver<Call>,
    ) -> Failure {
        let (mut read, mut write) = stream.into_split();
        let (mut heard, mut said) = (Instant::now(), Instant::now());
        loop {
            let (silent, idle) = (heard + SILENCE, said + HEARTBEAT);
            let mut sending = self.outgoing.as_slice();
            let sent = tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => {
                        self.request(call);
                        0
                    }
                    None => return Failure::unreachable("closed"),
                },
                result = write.write_buf(&mut sending), if !self.outgoing.is_empty() => match result {
                    Ok(sent) => {
                        said = Instant::now();
                        sent
                    }
                    Err(error) => return Failure::unreachable(&error),
                },
                result = read.read_buf(&mut self.incoming) => match result {
                    Ok(0) => return Failure::unreachable("the server has closed the connection"),
                    Ok(_) => {
                        heard = Instant::now();
                        if let Err(failure) = self.take().await {
                            return failure;
                        }
                        0
                    }
                    Err(error) => return Failure::unreachable(&error),
                },
                () = tokio::time::sleep_until(silent) => {
                    return Failure::unreachable(&format!("silent for {SILENCE:?}"));
                }
                () = tokio::time::sleep_until(idle) => {
                    said = Instant::now();
                    // Those who waited for too long have gone.
                    self.pending.retain(|_, answer| !answer.is_closed());
                    let id = self.next_id();
                    bolt::write_heartbeat(&mut self.outgoing, Version::V1, id);
                    0
                }
            };
            self.outgoing.drain(..sent);
        }
    }

    fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    fn request(&mut self, call: Call) {
        let id = self.next_id();
        self.pending.insert(id, call.answer);
        let class = format!("{PACKAGE}{}", call.name);
        let parts = Parts {
            codec: codec::PROTOBUF,
            class: &class,
            content: &call.content,
            ..Parts::v1(id)
        };
        let timeout_ms = i32::try_from(CALL_TIMEOUT.as_millis()).unwrap_or(i32::MAX);
        bolt::write_request(&mut self.outgoing, Kind::Request, timeout_ms, &parts);
    }

    /// Takes all whole frames.
    async fn take(&mut self) -> Result<(), Failure> {
        loop {
            let passed = self.passed_over.min(self.incoming.len());
            self.incoming.advance(passed);
            self.passed_over -= passed;
            match bolt::next_frame(&self.incoming, &self.limits) {
                Ok(Next::NeedMore(bytes)) => {
                    // As much as came, once more: a length alone takes no memory.
                    let more = bytes.saturating_sub(self.incoming.len());
                    self.incoming
                        .reserve(more.min(self.incoming.len().max(8 * 1024)));
                    return Ok(());
                }
                Ok(Next::Frame(length)) => {
                    let frame = self.incoming.split_to(length).freeze();
                    let head = Head::parse(&frame).map_err(|e| Failure::protocol(&e))?;
                    self.frame(&head, &frame).await;
                }
                Err(FrameError::TooLarge { bytes, limit, .. }) => {
                    if !self.pass_over(bytes, limit).await? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(Failure::protocol(&error)),
            }
        }
    }

    /// Leaves a frame out whose size is known; `false` while its beginning is not there.
    async fn pass_over(&mut self, bytes: u64, limit: usize) -> Result<bool, Failure> {
        let head = Head::parse(&self.incoming).map_err(|e| Failure::protocol(&e))?;
        let length = head.frame_len();
        let beginning = length.min(head.content().start + BEGINNING);
        let Some(frame) = self.incoming.get(..beginning) else {
            return Ok(false);
        };
        let why = Malformed::new(format!("{bytes} bytes, the limit is {limit}"));
        match head.kind {
            Kind::Response => self.answer(head.id, Err(why.to_string())),
            Kind::Request | Kind::OneWay => {
                let content = frame.get(head.content().start..).unwrap_or_default();
                let id = push::id_of_beginning(content);
                // Without an answer it would come again and again.
                self.acknowledge(&head);
                self.tell(Told::Unreadable(id, why)).await;
            }
        }
        self.passed_over = length;
        Ok(true)
    }

    async fn frame(&mut self, head: &Head, frame: &Bytes) {
        let class = frame.get(head.class()).unwrap_or_default();
        let class = String::from_utf8_lossy(class);
        let content = frame.slice(head.content());
        match (head.kind, head.command) {
            (Kind::Response, command::HEARTBEAT) => {}
            (Kind::Response, _) if head.status != status::SUCCESS => {
                let why = format!("the server answers with status {}", head.status);
                self.answer(head.id, Err(why));
            }
            (Kind::Response, _) if !class.starts_with(PACKAGE) => {
                let class: String = class.chars().take(100).collect();
                self.answer(head.id, Err(format!("the server answers a {class}")));
            }
            (Kind::Response, _) => self.answer(head.id, Ok(content)),
            (_, command::HEARTBEAT) => bolt::write_heartbeat_ack(&mut self.outgoing, head),
            (Kind::Request | Kind::OneWay, _) => {
                self.acknowledge(head);
                match push::decode(&class, &content, self.limits.frame_bytes) {
                    Ok(Some(push)) => self.tell(Told::Push(push)).await,
                    Ok(None) => {}
                    Err(why) => {
                        let id = push::id_of_beginning(&content);
                        self.tell(Told::Unreadable(id, why)).await;
                    }
                }
            }
        }
    }

    fn answer(&mut self, id: u32, result: Result<Bytes, String>) {
        if let Some(answer) = self.pending.remove(&id) {
            // One who does not wait any more does not need it.
            let _ = answer.send(result);
        }
    }

    /// Answers a push: what is not answered in 2 s is pushed again.
    fn acknowledge(&mut self, head: &Head) {
        if head.kind != Kind::Request {
            return;
        }
        let result = pb::Result {
            success: true,
            message: String::new(),
        };
        let class = format!("{PACKAGE}ResultPb");
        let content = result.encode_to_vec();
        let parts = Parts {
            codec: codec::PROTOBUF,
            class: &class,
            content: &content,
            ..Parts::answer(head)
        };
        bolt::write_response(&mut self.outgoing, status::SUCCESS, &parts);
    }

    async fn tell(&self, told: Told) {
        // Without a reader the connection is about to be dropped.
        let _ = self.told.send(told).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 4096;

    fn push(id: u32, class: &str, content: &[u8]) -> Vec<u8> {
        let class = format!("{PACKAGE}{class}");
        let mut bytes = Vec::new();
        // The server says codec 1 though the content is Protobuf.
        let parts = Parts {
            class: &class,
            content,
            ..Parts::v1(id)
        };
        bolt::write_request(&mut bytes, Kind::Request, 2000, &parts);
        bytes
    }

    fn received(data_id: &str, data: &str) -> Vec<u8> {
        let boxes = pb::DataBoxes {
            data: vec![pb::DataBox {
                data: data.to_owned(),
            }],
        };
        pb::ReceivedData {
            data_id: data_id.to_owned(),
            group: "SOFA".to_owned(),
            instance_id: "I".to_owned(),
            data: [("Z".to_owned(), boxes)].into_iter().collect(),
            ..pb::ReceivedData::default()
        }
        .encode_to_vec()
    }

    #[tokio::test]
    async fn a_push_over_the_limit_is_named_and_passed_over() {
        let (tell, mut told) = mpsc::channel(16);
        let mut connection = Connection::new(LIMIT, tell);
        let large = received("large@DEFAULT", &"x".repeat(100_000));
        let mut bytes = push(1, "ReceivedDataPb", &large);
        bytes.extend(push(
            2,
            "ReceivedDataPb",
            &received("small@DEFAULT", "10.0.0.1:1"),
        ));
        for part in bytes.chunks(1000) {
            connection.incoming.extend_from_slice(part);
            connection.take().await.expect("no failure");
            assert!(connection.incoming.capacity() < 4 * BEGINNING);
        }
        match told.try_recv() {
            Ok(Told::Unreadable(Some(id), why)) => {
                assert_eq!(id.data_id, "large@DEFAULT");
                assert!(why.to_string().contains("the limit is 4096"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        match told.try_recv() {
            Ok(Told::Push(push)) => assert_eq!(push.id.data_id, "small@DEFAULT"),
            other => panic!("{other:?}"),
        }
        // Both were answered.
        let Ok(Next::Frame(first)) = bolt::next_frame(&connection.outgoing, &Limits::default())
        else {
            panic!("no answer");
        };
        let second = Head::parse(&connection.outgoing[first..]).expect("a second answer");
        assert_eq!((second.id, second.kind), (2, Kind::Response));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..300) {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.expect("a runtime").block_on(async {
                let mut damaged = push(1, "ReceivedDataPb", &received("a@DEFAULT", "b"));
                if let Some(byte) = damaged.get_mut(at) {
                    *byte = bytes.first().copied().unwrap_or_default();
                }
                for bytes in [bytes, damaged] {
                    let (tell, _told) = mpsc::channel(16);
                    let mut connection = Connection::new(LIMIT, tell);
                    connection.incoming.extend_from_slice(&bytes);
                    // A failure is as good as an answer.
                    let _ = connection.take().await;
                }
            });
        }
    }
}
