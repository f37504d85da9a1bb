//! A large service on the Nacos face: all who listen end with the last list, and changes that come fast are pushed as one.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::google::protobuf::Any;
use api::nacos::bi_request_stream_client::BiRequestStreamClient;
use api::nacos::request_client::RequestClient;
use api::nacos::{Metadata, Payload};
use registry::facades::nacos::{Config, GRPC_OFFSET, serve};
use registry::{Instance, ServiceKey};
use serde_json::{Value, json};
use testkit::net::Loopback;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const LIMIT: Duration = Duration::from_secs(90);
const INSTANCES: u16 = 4000;
const CHANGES: u16 = 100;
const SUBSCRIBERS: usize = 20;

fn payload(kind: &str, body: &Value) -> Payload {
    Payload {
        metadata: Some(Metadata {
            r#type: kind.to_owned(),
            ..Metadata::default()
        }),
        body: Some(Any {
            type_url: String::new(),
            value: body.to_string().into_bytes(),
        }),
    }
}

fn body(payload: &Payload) -> Result<Value> {
    let body = payload.body.as_ref().context("no body")?;
    Ok(serde_json::from_slice(&body.value)?)
}

/// A client that listens to the service: how many instances it was told last, and how often it was told.
struct Subscriber {
    told: watch::Receiver<usize>,
    pushes: Arc<AtomicUsize>,
    _channel: Channel,
}

impl Subscriber {
    async fn start(grpc: SocketAddr) -> Result<Subscriber> {
        let channel = Endpoint::from_shared(format!("http://{grpc}"))?
            .connect()
            .await?;
        let (out, stream) = mpsc::channel(4);
        let setup = json!({"clientVersion": "test", "tenant": "", "labels": {}});
        out.send(payload("ConnectionSetupRequest", &setup)).await?;
        let mut pushed = BiRequestStreamClient::new(channel.clone())
            .max_decoding_message_size(64 << 20)
            .request_bi_stream(ReceiverStream::new(stream))
            .await?
            .into_inner();
        let (tell, told) = watch::channel(0);
        let pushes = Arc::new(AtomicUsize::new(0));
        let counted = pushes.clone();
        let told_by_push = tell.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = pushed.message().await {
                let message = body(&message).unwrap_or_default();
                let done = json!({"resultCode": 200, "requestId": message["requestId"]});
                if out
                    .send(payload("NotifySubscriberResponse", &done))
                    .await
                    .is_err()
                {
                    return;
                }
                if let Some(hosts) = message["serviceInfo"]["hosts"].as_array() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    told_by_push.send_replace(hosts.len());
                }
            }
        });
        let mut calls = RequestClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let subscribe =
            json!({"serviceName": "big", "groupName": "DEFAULT_GROUP", "subscribe": true});
        let subscribed = async {
            loop {
                let request = payload("SubscribeServiceRequest", &subscribe);
                let answer = body(&calls.request(request).await?.into_inner())?;
                if answer["resultCode"] == 200 {
                    let hosts = answer["serviceInfo"]["hosts"].as_array();
                    return anyhow::Ok(hosts.context("no hosts")?.len());
                }
                // The set-up is on another stream.
                ensure!(answer["errorCode"] == 301, "{answer}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tell.send_replace(tokio::time::timeout(LIMIT, subscribed).await??);
        Ok(Subscriber {
            told,
            pushes,
            _channel: channel,
        })
    }
}

fn instance(port: u16) -> Instance {
    let mut instance = Instance::new(ServiceKey::new("springcloud", "big"), "10.0.0.1", port);
    instance.ttl = None;
    instance
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_large_service_are_pushed_as_one() -> Result<()> {
    let (hub, registry) = common::hub(None)?;
    let loopback = Loopback::claim()?;
    let (address, grpc) = (
        loopback.address(1, 8848),
        loopback.address(1, 8848 + GRPC_OFFSET),
    );
    let listeners = (
        TcpListener::bind(address).await?,
        TcpListener::bind(grpc).await?,
    );
    let config = Config {
        address,
        credentials: None,
    };
    let serving = serve(listeners.0, listeners.1, hub, registry.clone(), config);
    tokio::spawn(serving);
    let all: Vec<Instance> = (1..=INSTANCES).map(instance).collect();
    for batch in all.chunks(1000) {
        registry.register(batch.to_vec()).await?;
    }
    let mut subscribers = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut subscriber = Subscriber::start(grpc).await?;
        let whole = subscriber
            .told
            .wait_for(|told| *told == usize::from(INSTANCES));
        tokio::time::timeout(LIMIT, whole).await??;
        subscribers.push(subscriber);
    }
    for change in 1..=CHANGES {
        registry
            .register(vec![instance(INSTANCES + change)])
            .await?;
    }
    let last = usize::from(INSTANCES + CHANGES);
    let mut pushes = Vec::new();
    for subscriber in &mut subscribers {
        let whole = subscriber.told.wait_for(|told| *told == last);
        tokio::time::timeout(LIMIT, whole).await??;
        pushes.push(subscriber.pushes.load(Ordering::Relaxed));
    }
    eprintln!("pushes of {CHANGES} changes: {pushes:?}");
    ensure!(
        pushes
            .iter()
            .all(|pushes| *pushes <= usize::from(CHANGES / 2)),
        "{pushes:?}"
    );
    Ok(())
}
