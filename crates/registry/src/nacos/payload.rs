//! The envelope of a message.

use std::collections::BTreeMap;

use api::google::protobuf::Any;
use api::nacos::{Metadata, Payload};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::host::write_with;
use super::messages::{FAIL, NO_RIGHT, NotifySubscriberRequest, Request, Response, SUCCESS};
use crate::naming::Malformed;

/// Bytes of a message: a service of ten thousand instances has some 5 MB.
pub const MESSAGE_BYTES: usize = 64 << 20;

/// A request that came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The answer to a request on a stream has to name it.
    pub id: String,
    /// `None`: its name is unknown here.
    pub request: Option<Request>,
}

/// An answer that came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Of the request, where the server says it.
    pub id: String,
    /// What was refused, and why.
    pub refused: Option<Refused>,
    /// `None`: its name is unknown here.
    pub response: Option<Response>,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error {code}: {message}")]
pub struct Refused {
    /// `errorCode`.
    pub code: i32,
    /// For people.
    pub message: String,
}

impl Refused {
    /// It is a matter of who asks.
    pub fn is_of_access(&self) -> bool {
        self.code == NO_RIGHT || self.code == 401
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    request_id: String,
    result_code: Option<i32>,
    error_code: i32,
    message: String,
}

/// A request as it is sent, with the headers that say who asks.
pub fn ask(request: &Request, id: &str, headers: &BTreeMap<String, String>) -> Payload {
    let mut body = object(request.write());
    body.insert("requestId".to_owned(), id.into());
    payload(request.kind(), headers.clone(), body)
}

/// The answer to a request.
pub fn answer(response: &Response, id: &str) -> Payload {
    let mut body = object(response.write());
    say_done(&mut body, id);
    payload(response.kind(), BTreeMap::new(), body)
}

/// The answer to a request that is refused.
pub fn refusal(response: &Response, id: &str, code: i32, message: &str) -> Payload {
    let mut body = object(response.write());
    say_done(&mut body, id);
    body.insert("resultCode".to_owned(), FAIL.into());
    body.insert("errorCode".to_owned(), code.into());
    body.insert("message".to_owned(), message.into());
    body.insert("success".to_owned(), false.into());
    payload(response.kind(), BTreeMap::new(), body)
}

fn say_done(body: &mut Map<String, Value>, id: &str) {
    body.insert("resultCode".to_owned(), SUCCESS.into());
    body.insert("errorCode".to_owned(), 0.into());
    body.insert("success".to_owned(), true.into());
    body.insert("requestId".to_owned(), id.into());
}

/// The push of a list that is written already.
pub(crate) fn notify(request: &NotifySubscriberRequest, id: &str, info: &[u8]) -> Payload {
    let mut body = object(serde_json::to_value(request));
    body.insert("requestId".to_owned(), id.into());
    written("NotifySubscriberRequest", body, info)
}

/// The answer with a list that is written already.
pub(crate) fn answer_with(kind: &str, id: &str, info: &[u8]) -> Payload {
    let mut body = Map::new();
    say_done(&mut body, id);
    written(kind, body, info)
}

fn written(kind: &str, body: Map<String, Value>, info: &[u8]) -> Payload {
    let body = write_with(Value::Object(body), "serviceInfo", info);
    envelope(kind, BTreeMap::new(), body)
}

/// Reads a request.
pub fn asked(payload: &Payload) -> Result<Asked, Malformed> {
    let (kind, body) = open(payload)?;
    let head = head(kind, &body)?;
    Ok(Asked {
        id: head.request_id,
        request: Request::read(kind, body).map_err(|e| malformed(kind, &e))?,
    })
}

/// Reads an answer.
pub fn answered(payload: &Payload) -> Result<Answer, Malformed> {
    let (kind, body) = open(payload)?;
    let head = head(kind, &body)?;
    let refused = match head.result_code {
        Some(SUCCESS) if kind != "ErrorResponse" => None,
        _ => Some(Refused {
            code: head.error_code,
            message: head.message,
        }),
    };
    Ok(Answer {
        id: head.request_id,
        refused,
        response: Response::read(kind, body).map_err(|e| malformed(kind, &e))?,
    })
}

fn head(kind: &str, body: &Value) -> Result<Head, Malformed> {
    Head::deserialize(body).map_err(|e| malformed(kind, &e))
}

fn open(payload: &Payload) -> Result<(&str, Value), Malformed> {
    let kind = payload.metadata.as_ref().map_or("", |m| m.r#type.as_str());
    let body = payload.body.as_ref().map_or(&[][..], |body| &body.value);
    if body.len() > MESSAGE_BYTES {
        let message = format!("{kind} of {} bytes is too long", body.len());
        return Err(Malformed::new(message));
    }
    if body.is_empty() {
        return Ok((kind, Value::Object(Map::new())));
    }
    let mut value: Value = serde_json::from_slice(body).map_err(|e| malformed(kind, &e))?;
    drop_nulls(&mut value);
    Ok((kind, value))
}

/// To Java a field that is not there and one that is null are the same.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn malformed(kind: &str, error: &serde_json::Error) -> Malformed {
    Malformed::new(format!("{kind}: {error}"))
}

/// What cannot be said in JSON (a weight that is no number) is not said.
fn object(written: Result<Value, serde_json::Error>) -> Map<String, Value> {
    match written {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

fn payload(kind: &str, headers: BTreeMap<String, String>, body: Map<String, Value>) -> Payload {
    envelope(kind, headers, Value::Object(body).to_string().into_bytes())
}

fn envelope(kind: &str, headers: BTreeMap<String, String>, body: Vec<u8>) -> Payload {
    Payload {
        metadata: Some(Metadata {
            r#type: kind.to_owned(),
            headers,
            client_ip: String::new(),
        }),
        body: Some(Any {
            type_url: String::new(),
            value: body,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Entry, Host, NotifySubscriberRequest};
    use super::*;

    fn raw(kind: &str, body: &str) -> Payload {
        Payload {
            metadata: Some(Metadata {
                r#type: kind.to_owned(),
                ..Metadata::default()
            }),
            body: Some(Any {
                type_url: String::new(),
                value: body.as_bytes().to_vec(),
            }),
        }
    }

    #[test]
    fn what_servers_say_differently_is_read_alike() -> Result<(), Malformed> {
        // The first as Nacos 3.1 says it, the second as r-nacos 0.8.8.
        for body in [
            r#"{"requestId":"7","module":"naming","namespace":"public","groupName":"DEFAULT_GROUP","serviceName":"h","headers":{},
                "serviceInfo":{"name":"h","groupName":"DEFAULT_GROUP","clusters":"","cacheMillis":10000,"lastRefTime":5,"checksum":"","allIps":true,"valid":true,"jsonFromServer":"",
                "hosts":[{"instanceId":"10.0.0.1#80#DEFAULT#DEFAULT_GROUP@@h","ip":"10.0.0.1","port":80,"weight":2.5,"healthy":true,"enabled":true,"ephemeral":true,"clusterName":"DEFAULT","serviceName":"DEFAULT_GROUP@@h","metadata":{"a":"1"},"instanceHeartBeatInterval":5000},
                         {"ip":"10.0.0.2","port":"eighty"}]}}"#,
            r#"{"requestId":"7","serviceInfo":{"name":"h","groupName":"DEFAULT_GROUP","clusters":null,"cacheMillis":10000,"lastRefTime":5,"checksum":null,"allIPs":true,
                "hosts":[{"instanceId":"10.0.0.1#80","ip":"10.0.0.1","port":80,"weight":2.5,"healthy":true,"enabled":true,"ephemeral":true,"clusterName":"DEFAULT","serviceName":null,"metadata":{"a":1,"b":null}},
                         {"ip":"10.0.0.2","port":70000}]}}"#,
        ] {
            let asked = asked(&raw("NotifySubscriberRequest", body))?;
            assert_eq!(asked.id, "7");
            let Some(Request::NotifySubscriber(push)) = asked.request else {
                panic!("{asked:?}");
            };
            let info = push.service_info;
            assert!(info.all_ips && info.last_ref_time == 5 && info.hosts.len() == 2);
            let (Entry::Host(host), Entry::Broken(broken)) = (&info.hosts[0], &info.hosts[1])
            else {
                panic!("{:?}", info.hosts);
            };
            assert_eq!((host.port, host.weight, host.metadata.len()), (80, 2.5, 1));
            assert!(broken.entry.contains("10.0.0.2"), "{broken:?}");
        }
        // Nacos does not say in its answers what they answer.
        let answer = answered(&raw(
            "ServiceListResponse",
            r#"{"resultCode":200,"errorCode":0,"count":1,"serviceNames":["a@@b"]}"#,
        ))?;
        assert!(answer.refused.is_none() && answer.id.is_empty());
        let refused = answered(&raw(
            "ErrorResponse",
            r#"{"resultCode":500,"errorCode":403,"message":"authorize failed!"}"#,
        ))?;
        assert!(
            refused
                .refused
                .is_some_and(|refused| refused.is_of_access())
        );
        assert_eq!(self::asked(&raw("NoSuchRequest", "{}"))?.request, None);
        Ok(())
    }

    #[test]
    fn what_is_written_is_read_the_same() -> Result<(), Malformed> {
        let mut push = NotifySubscriberRequest {
            service_name: "h".to_owned(),
            ..NotifySubscriberRequest::default()
        };
        let host = Host {
            ip: "::1".to_owned(),
            port: 9,
            metadata: [("k".to_owned(), "\"v\"".to_owned())].into(),
            ..Host::default()
        };
        push.service_info.hosts.push(Entry::Host(host));
        let request = Request::NotifySubscriber(Box::new(push));
        let sent = ask(&request, "3", &BTreeMap::new());
        let read = asked(&sent)?;
        assert_eq!((read.id.as_str(), read.request), ("3", Some(request)));
        let response = Response::NotifySubscriber(super::super::Nothing {});
        let read = answered(&answer(&response, "3"))?;
        assert_eq!((read.response, read.refused), (Some(response), None));
        Ok(())
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind in "(NotifySubscriberRequest|InstanceRequest|ConnectionSetupRequest|ServiceListResponse|ErrorResponse|\\PC*)",
                          body in proptest::collection::vec(any::<u8>(), 0..100),
                          json in "(\\{\"(instance|serviceInfo|hosts|contexts|requestId)\":|\\[|\\]|\\}|null|1e99|\"x\"|,){0,20}") {
            for body in [body, json.into_bytes()] {
                let body = Any { type_url: String::new(), value: body };
                let payload = Payload { body: Some(body), ..raw(&kind, "") };
                let _ = asked(&payload);
                let _ = answered(&payload);
            }
        }
    }
}
