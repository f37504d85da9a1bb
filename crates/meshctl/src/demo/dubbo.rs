//! Dubbo 2 of the demo applications.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::dubbo::message::{Invocation, Reply as DubboReply};
use wire::dubbo::write::Kind;
use wire::dubbo::{self, Head};
use wire::frame::{Limits, Next};
use wire::hessian2::Value;

use super::client::{Call, Failure, Reply};
use crate::up::plan::Protocol;

/// What Dubbo writes for an interface without a version.
const NO_VERSION: &str = "0.0.0";

/// Appends the frame of a call.
pub(super) fn write_call(output: &mut Vec<u8>, id: u64, call: &Call) {
    let interface = Protocol::Dubbo.service();
    let mut attachments = vec![
        ("path".to_owned(), interface.to_owned()),
        ("interface".to_owned(), interface.to_owned()),
        ("timeout".to_owned(), call.timeout.as_millis().to_string()),
    ];
    let own = call.headers.iter();
    attachments.extend(own.map(|(name, value)| ((*name).to_owned(), value.clone())));
    let invocation = Invocation {
        path: interface.to_owned(),
        version: NO_VERSION.to_owned(),
        method: call.method.to_owned(),
        descriptor: "Ljava/lang/String;".to_owned(),
        args: vec![Value::from(call.argument.as_str())],
        attachments,
    };
    invocation.write(output, Kind::Call, id);
}

/// Takes complete frames out of the input until the answer with this id has come.
pub(super) fn take_answer(
    input: &mut Vec<u8>,
    id: u64,
) -> Result<Option<Result<Reply, Failure>>, Failure> {
    while let Some((head, frame)) = take_frame(input).map_err(Failure::Unreadable)? {
        if !head.is_request() && !head.is_event() && head.id == id {
            return Ok(Some(read_answer(&head, &frame)));
        }
    }
    Ok(None)
}

fn read_answer(head: &Head, frame: &[u8]) -> Result<Reply, Failure> {
    match DubboReply::read(frame, head).map_err(|error| Failure::Unreadable(error.to_string()))? {
        DubboReply::Value(Value::String(text)) => Reply::parse(&text),
        DubboReply::Value(other) => Err(Failure::Unreadable(format!("{other:?}"))),
        DubboReply::Failed(status, message) => Err(Failure::Refused(format!(
            "Dubbo status {status}: {message}"
        ))),
        DubboReply::Exception(thrown) => Err(Failure::Exception(
            thrown
                .get("detailMessage")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        )),
    }
}

/// The next complete frame, taken out of the input.
fn take_frame(input: &mut Vec<u8>) -> Result<Option<(Head, Vec<u8>)>, String> {
    match dubbo::next_frame(input, &Limits::default()).map_err(|error| error.to_string())? {
        Next::NeedMore(_) => Ok(None),
        Next::Frame(length) => {
            let frame: Vec<u8> = input.drain(..length).collect();
            let head = Head::parse(&frame).map_err(|error| error.to_string())?;
            Ok(Some((head, frame)))
        }
    }
}

/// Answers calls for ever.
pub(super) async fn serve(listener: TcpListener, name: &str) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let name = name.to_owned();
        // A connection that breaks takes only its own calls with it; the caller reports them.
        tokio::spawn(async move { connection(stream, &name).await });
    }
}

async fn connection(mut stream: TcpStream, name: &str) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let mut output = Vec::new();
    loop {
        while let Some((head, frame)) = take_frame(&mut input).map_err(anyhow::Error::msg)? {
            respond(&head, &frame, name, &mut output);
        }
        stream.write_all(&output).await?;
        output.clear();
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

fn respond(head: &Head, frame: &[u8], name: &str, output: &mut Vec<u8>) {
    if !head.is_request() || !head.is_two_way() {
        return;
    }
    if head.is_event() {
        return dubbo::write_heartbeat_ack(output, head);
    }
    let reply = match Invocation::read(frame, head) {
        Ok(call) => {
            let argument = call
                .args
                .first()
                .and_then(Value::as_str)
                .unwrap_or_default();
            if call.method == "fail" {
                DubboReply::exception("java.lang.IllegalStateException", argument)
            } else {
                let user = call.attachment("demo-user").unwrap_or_default();
                DubboReply::Value(Value::String(super::answer(name, user, argument)))
            }
        }
        Err(error) => DubboReply::Failed(
            dubbo::status::BAD_REQUEST,
            format!("cannot read the call: {error}"),
        ),
    };
    reply.write(output, head.id, &[("dubbo", "2.0.2")]);
}
