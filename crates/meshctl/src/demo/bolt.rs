//! SOFARPC on Bolt of the demo applications.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::bolt::sofarpc::{Answer, Call as SofaCall};
use wire::bolt::{self, Head, Headers, Kind, Parts, command, status};
use wire::frame::{Limits, Next};
use wire::hessian2::Value;

use super::client::{Call, Failure, Reply};
use crate::up::plan::Protocol;

/// Version of the interface, SOFARPC's default.
const VERSION: &str = "1.0";

/// The interface with its version, as SOFARPC names a service.
pub(crate) fn unique_name() -> String {
    format!("{}:{VERSION}", Protocol::Bolt.service())
}

/// Appends the frame of a call.
pub(super) fn write_call(output: &mut Vec<u8>, id: u32, call: &Call) {
    let sofa = SofaCall {
        service: unique_name(),
        method: call.method.to_owned(),
        types: vec!["java.lang.String".to_owned()],
        args: vec![Value::from(call.argument.as_str())],
        props: Value::Null,
    };
    let headers: Vec<(&str, &str)> = call
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let timeout_ms = i32::try_from(call.timeout.as_millis()).unwrap_or(i32::MAX);
    sofa.write(output, Kind::Request, timeout_ms, &Parts::v1(id), &headers);
}

/// Takes complete frames out of the input until the answer with this id has come.
pub(super) fn take_answer(
    input: &mut Vec<u8>,
    id: u32,
) -> Result<Option<Result<Reply, Failure>>, Failure> {
    while let Some((head, frame)) = take_frame(input).map_err(Failure::Unreadable)? {
        if head.kind == Kind::Response && head.command == command::RESPONSE && head.id == id {
            return Ok(Some(read_answer(&head, &frame)));
        }
    }
    Ok(None)
}

fn read_answer(head: &Head, frame: &[u8]) -> Result<Reply, Failure> {
    if head.status != status::SUCCESS {
        return Err(Failure::Refused(format!("Bolt status {}", head.status)));
    }
    let content = frame.get(head.content()).unwrap_or_default();
    let answer = Answer::decode(content).map_err(|error| Failure::Unreadable(error.to_string()))?;
    if let Some(message) = answer.error {
        return Err(Failure::Refused(message));
    }
    match &answer.response {
        Value::String(text) => Reply::parse(text),
        thrown @ Value::Object { .. } => Err(Failure::Exception(
            thrown
                .get("detailMessage")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        )),
        other => Err(Failure::Unreadable(format!("{other:?}"))),
    }
}

/// The next complete frame, taken out of the input.
fn take_frame(input: &mut Vec<u8>) -> Result<Option<(Head, Vec<u8>)>, String> {
    if input.is_empty() {
        return Ok(None);
    }
    match bolt::next_frame(input, &Limits::default()).map_err(|error| error.to_string())? {
        Next::NeedMore(_) => Ok(None),
        Next::Frame(length) => {
            let frame: Vec<u8> = input.drain(..length).collect();
            let head = Head::parse(&frame).map_err(|error| error.to_string())?;
            bolt::verify(&frame, &head).map_err(|error| error.to_string())?;
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
    match (head.kind, head.command) {
        (Kind::Request, command::HEARTBEAT) => return bolt::write_heartbeat_ack(output, head),
        (Kind::Request, _) => {}
        (Kind::OneWay | Kind::Response, _) => return,
    }
    let parts = Parts::answer(head);
    let call = match SofaCall::decode(frame.get(head.content()).unwrap_or_default()) {
        Ok(call) => call,
        Err(error) => {
            return Answer::error(&format!("cannot read the call: {error}")).write(
                output,
                &parts,
                true,
                &[],
            );
        }
    };
    let argument = call
        .args
        .first()
        .and_then(Value::as_str)
        .unwrap_or_default();
    if call.method == "fail" {
        return Answer::exception("java.lang.IllegalStateException", argument).write(
            output,
            &parts,
            true,
            &[],
        );
    }
    let user = Headers::of(frame, head)
        .find(b"demo-user")
        .unwrap_or_default();
    let text = super::answer(name, &String::from_utf8_lossy(user), argument);
    Answer::ok(Value::String(text)).write(output, &parts, false, &[]);
}
