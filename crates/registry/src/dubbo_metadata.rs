//! Asks Dubbo applications what they serve: `org.apache.dubbo.metadata.MetadataService`, by Dubbo2, or `MetadataServiceV2` by
//! Triple. What was learnt is kept by application and revision, beyond sessions with the registry.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use wire::dubbo::message::{Invocation, Reply};
use wire::dubbo::write::Kind;
use wire::dubbo::{Head, next_frame};
use wire::frame::{Limits, Next};
use wire::hessian2::Value;

use crate::naming::authority;
use crate::naming::dubbo_application::{MetadataInfo, Provider, ServiceInfo};

/// One attempt at one instance.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer.
const ANSWER_BYTES: usize = 8 << 20;
/// Revisions that are kept.
const KEPT: usize = 10_000;

/// What is known, by application and revision.
#[derive(Debug, Default)]
pub(crate) struct Revisions(Mutex<HashMap<(String, String), Arc<MetadataInfo>>>);

impl Revisions {
    /// What the instances of a revision serve, if that is known.
    pub(crate) fn get(&self, provider: &Provider) -> Option<Arc<MetadataInfo>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key(provider)).cloned()
    }

    /// Keeps what a revision serves.
    pub(crate) fn put(&self, provider: &Provider, info: MetadataInfo) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            // Whatever is still served will be asked for again.
            known.clear();
        }
        known.insert(key(provider), Arc::new(info));
    }
}

fn key(provider: &Provider) -> (String, String) {
    (provider.application.clone(), provider.revision.clone())
}

/// Asks an instance what it serves.
pub(crate) async fn ask(provider: &Provider) -> Result<MetadataInfo, String> {
    let (protocol, port) = match &provider.metadata_service {
        Some((protocol, port)) => (protocol.as_str(), *port),
        None => ("dubbo", provider.port),
    };
    let address = authority(&provider.address, port);
    let answer = async {
        match protocol {
            "dubbo" => ask_dubbo(provider, &address).await,
            "tri" => ask_triple(provider, &address).await,
            other => Err(format!("its MetadataService speaks {other}")),
        }
    };
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| format!("MetadataService at {address}: {error}")),
        Err(_) => Err(format!(
            "MetadataService at {address}: no answer in {TIMEOUT:?}"
        )),
    }
}

async fn ask_dubbo(provider: &Provider, address: &str) -> Result<MetadataInfo, String> {
    const SERVICE: &str = "org.apache.dubbo.metadata.MetadataService";
    let attachments = [
        ("path", SERVICE),
        ("interface", SERVICE),
        ("version", "1.0.0"),
        ("group", &provider.application),
    ];
    let call = Invocation {
        path: SERVICE.to_owned(),
        version: "1.0.0".to_owned(),
        method: "getMetadataInfo".to_owned(),
        descriptor: "Ljava/lang/String;".to_owned(),
        args: vec![Value::from(provider.revision.as_str())],
        attachments: attachments
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
    };
    let mut bytes = Vec::new();
    call.write(&mut bytes, Kind::Call, 1);
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(|e| e.to_string())?;
    stream.write_all(&bytes).await.map_err(|e| e.to_string())?;
    let limits = Limits {
        frame_bytes: ANSWER_BYTES,
        ..Limits::default()
    };
    let mut received = Vec::new();
    loop {
        while let Next::Frame(len) = next_frame(&received, &limits).map_err(|e| e.to_string())? {
            let frame: Vec<u8> = received.drain(..len).collect();
            let head = Head::parse(&frame).map_err(|e| e.to_string())?;
            // A server may send heartbeats of its own.
            if head.is_request() || head.is_event() || head.id != 1 {
                continue;
            }
            return match Reply::read(&frame, &head).map_err(|e| e.to_string())? {
                Reply::Value(Value::Null) => Err("it does not know the revision".to_owned()),
                Reply::Value(value) => {
                    MetadataInfo::from_hessian(&value).map_err(|e| e.to_string())
                }
                Reply::Exception(value) => {
                    let said = value.get("detailMessage").and_then(Value::as_str);
                    Err(format!(
                        "an exception: {}",
                        said.unwrap_or("without a message")
                    ))
                }
                Reply::Failed(status, message) => Err(format!("status {status}: {message}")),
            };
        }
        let read = stream.read_buf(&mut received).await;
        if read.map_err(|e| e.to_string())? == 0 {
            return Err("the connection ended before the answer".to_owned());
        }
    }
}

/// `org.apache.dubbo.metadata.MetadataRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct MetadataRequest {
    #[prost(string, tag = "1")]
    revision: String,
}

/// `org.apache.dubbo.metadata.MetadataInfoV2`
#[derive(Clone, PartialEq, prost::Message)]
struct MetadataInfoV2 {
    #[prost(btree_map = "string, message", tag = "3")]
    services: BTreeMap<String, ServiceInfoV2>,
}

/// `org.apache.dubbo.metadata.ServiceInfoV2`
#[derive(Clone, PartialEq, prost::Message)]
struct ServiceInfoV2 {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    group: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(string, tag = "4")]
    protocol: String,
    #[prost(int32, tag = "5")]
    port: i32,
    #[prost(string, tag = "6")]
    path: String,
    #[prost(btree_map = "string, string", tag = "7")]
    params: BTreeMap<String, String>,
}

async fn ask_triple(provider: &Provider, address: &str) -> Result<MetadataInfo, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|e| e.to_string())?;
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES);
    client.ready().await.map_err(|e| e.to_string())?;
    let mut request = tonic::Request::new(MetadataRequest {
        revision: provider.revision.clone(),
    });
    let group = provider
        .application
        .parse()
        .map_err(|_| "its name is no header".to_owned())?;
    let headers = request.metadata_mut();
    headers.insert(
        "tri-service-version",
        tonic::metadata::MetadataValue::from_static("2.0.0"),
    );
    headers.insert("tri-service-group", group);
    let path =
        PathAndQuery::from_static("/org.apache.dubbo.metadata.MetadataServiceV2/GetMetadataInfo");
    let codec = tonic_prost::ProstCodec::<MetadataRequest, MetadataInfoV2>::default();
    let answer = client.unary(request, path, codec).await;
    let answer = answer
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let said = |text: String| (!text.is_empty()).then_some(text);
    let services = answer.services.into_iter().map(|(key, service)| {
        let info = ServiceInfo {
            name: service.name,
            group: said(service.group),
            version: said(service.version),
            protocol: service.protocol,
            port: service.port.into(),
            path: said(service.path),
            params: service.params,
        };
        (key, info)
    });
    Ok(MetadataInfo {
        services: services.collect(),
    })
}
