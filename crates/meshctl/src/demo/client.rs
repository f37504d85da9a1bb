//! A caller with one connection: sends a call, waits for its answer.

use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{bolt, dubbo, http};
use crate::up::plan::Protocol;

/// A call of a demo provider.
#[derive(Clone)]
pub(crate) struct Call {
    /// The method; for HTTP the path behind the slash.
    pub(crate) method: &'static str,
    pub(crate) argument: String,
    /// Headers of HTTP and Bolt, attachments of Dubbo.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) timeout: Duration,
}

impl Call {
    /// A call without headers that may take three seconds.
    pub(crate) fn new(method: &'static str, argument: &str) -> Self {
        Self {
            method,
            argument: argument.to_owned(),
            headers: Vec::new(),
            timeout: Duration::from_secs(3),
        }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// What a provider answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Which provider it was.
    pub(crate) provider: String,
    /// The header `demo-user` as the provider got it.
    pub(crate) user: String,
    /// The argument as the provider got it.
    pub(crate) argument: String,
}

impl Reply {
    /// Reads [`super::answer`].
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        match text.splitn(3, '|').collect::<Vec<_>>()[..] {
            [provider, user, argument] => Ok(Self {
                provider: provider.to_owned(),
                user: user.to_owned(),
                argument: argument.to_owned(),
            }),
            _ => Err(Failure::Unreadable(text.chars().take(100).collect())),
        }
    }
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The provider's code threw an exception.
    #[error("exception: {0}")]
    Exception(String),
    /// The mesh or the provider's framework refused the call.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection broke.
    #[error("connection: {0}")]
    Connection(String),
    /// The answer makes no sense.
    #[error("unreadable answer: {0}")]
    Unreadable(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Connection(error.to_string())
    }
}

/// Calls one address, over one connection that is opened when it is needed.
pub(crate) struct Client {
    protocol: Protocol,
    target: SocketAddrV4,
    next_id: u32,
    connection: Option<Connection>,
}

enum Connection {
    Http(http::Sender),
    Rpc { stream: TcpStream, input: Vec<u8> },
}

impl Client {
    /// A client that has not connected yet.
    pub(crate) fn new(protocol: Protocol, target: SocketAddrV4) -> Self {
        Self {
            protocol,
            target,
            next_id: 1,
            connection: None,
        }
    }

    /// Makes a call. After a failure that may have left an answer on its way, the next call opens a new connection.
    pub(crate) async fn call(&mut self, call: &Call) -> Result<Reply, Failure> {
        let result = tokio::time::timeout(call.timeout, self.exchange(call))
            .await
            .unwrap_or(Err(Failure::Timeout(call.timeout)));
        if let Err(Failure::Timeout(_) | Failure::Connection(_) | Failure::Unreadable(_)) = result {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, call: &Call) -> Result<Reply, Failure> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.target).await?;
                stream.set_nodelay(true)?;
                self.connection.insert(match self.protocol {
                    Protocol::Http => Connection::Http(http::connect(stream).await?),
                    Protocol::Bolt | Protocol::Dubbo => Connection::Rpc {
                        stream,
                        input: Vec::new(),
                    },
                })
            }
        };
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        match connection {
            Connection::Http(sender) => http::call(sender, call).await,
            Connection::Rpc { stream, input } => rpc(self.protocol, stream, input, id, call).await,
        }
    }
}

async fn rpc(
    protocol: Protocol,
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    id: u32,
    call: &Call,
) -> Result<Reply, Failure> {
    let mut output = Vec::new();
    match protocol {
        Protocol::Dubbo => dubbo::write_call(&mut output, u64::from(id), call),
        Protocol::Bolt | Protocol::Http => bolt::write_call(&mut output, id, call),
    }
    stream.write_all(&output).await?;
    loop {
        let answer = match protocol {
            Protocol::Dubbo => dubbo::take_answer(input, u64::from(id))?,
            Protocol::Bolt | Protocol::Http => bolt::take_answer(input, id)?,
        };
        if let Some(answer) = answer {
            return answer;
        }
        if stream.read_buf(input).await? == 0 {
            return Err(Failure::Connection("closed by the sidecar".to_owned()));
        }
    }
}
