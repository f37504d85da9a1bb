//! The SOFARegistry facade: with the stock client and with SOFARPC on it, and frame by frame.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use api::sofaregistry::session::v1 as pb;
use prost::Message;
use registry::facades::sofaregistry::{Config, serve};
use registry::{Hub, Instance, Registry, RegistrySource, ServiceKey};
use serde_json::json;
use testkit::http::request;
use testkit::net::Loopback;
use testkit::process::Process;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::bolt::{self, Head, Kind, Parts, codec, command, status};
use wire::frame::{self, Next};
use wire::hessian2::{Decoder, Dialect, Encoder, Value};
use wire::sofaregistry as messages;

const LIMIT: Duration = Duration::from_secs(60);
const MODEL: &str = "com.alipay.sofa.registry.core.model.";
const PB: &str = "com.alipay.sofa.registry.common.model.client.pb.";
const ORDER: &str = "com.foo.Order:1.0@DEFAULT SOFA";
const FILES: &str = "services:\n- {protocol: bolt, name: com.foo.Order, instances: [{address: 10.9.0.1, port: 12200, weight: 7}]}\n";

struct Facade {
    hub: Hub,
    registry: Registry,
    http: SocketAddr,
    bolt: SocketAddr,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Facade {
    async fn start(
        (hub, registry): (Hub, Registry),
        addresses: [SocketAddr; 2],
        edit: impl FnOnce(&mut Config),
    ) -> Result<Facade> {
        let [http, bolt] = addresses;
        let (http_listener, bolt_listener) = (
            TcpListener::bind(http).await?,
            TcpListener::bind(bolt).await?,
        );
        let (http, bolt) = (http_listener.local_addr()?, bolt_listener.local_addr()?);
        let mut config = Config::new(bolt);
        edit(&mut config);
        let (for_hub, for_registry) = (hub.clone(), registry.clone());
        let serving = serve(http_listener, bolt_listener, for_hub, for_registry, config);
        Ok(Facade {
            hub,
            registry,
            http,
            bolt,
            task: tokio::spawn(serving),
        })
    }

    async fn anywhere(edit: impl FnOnce(&mut Config)) -> Result<Facade> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Facade::start(common::hub(None)?, [any, any], edit).await
    }

    /// Ends it as a process does: with all connections.
    async fn stop(self) -> (Hub, Registry) {
        self.task.abort();
        // It ends because it is told to.
        let _ = self.task.await;
        (self.hub, self.registry)
    }

    /// `host:port weight` of what the mesh has.
    fn instances(&self, protocol: &str, name: &str) -> Vec<String> {
        common::told(&self.hub, &ServiceKey::new(protocol, name), tell)
    }

    async fn wait_instances(&self, protocol: &str, name: &str, expected: &[&str]) -> Result<()> {
        let key = ServiceKey::new(protocol, name);
        common::wait_told(&self.hub, &key, tell, expected).await
    }
}

fn tell(instance: &Instance) -> String {
    format!("{}:{} {}", instance.address, instance.port, instance.weight)
}

/// The stock client in a JVM.
struct Client(Process);

impl Client {
    fn start(name: &str, server: SocketAddr, folder: &Path) -> Result<Client> {
        let home = folder.join(name);
        std::fs::create_dir(&home)?;
        let (host, port) = (server.ip().to_string(), server.port().to_string());
        let arguments = ["--host", &host, "--port", &port].map(str::to_owned);
        let class = "mesh.apps.sofaregistry.Client";
        testkit::apps::start_client("sofaregistry", class, name, &arguments, &home).map(Client)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        let answer = self.0.ask(command, LIMIT)?;
        ensure!(!answer.starts_with("error"), "{command}: {answer}");
        Ok(answer)
    }

    /// Asks until the answer is this.
    fn wait(&mut self, command: &str, expected: &str) -> Result<()> {
        self.0.ask_until(command, expected, LIMIT)
    }
}

fn provider(host: &str, weight: u32) -> String {
    format!(
        "{host}:12200?rpcVer=51302&serialization=hessian2&weight={weight}&p=1&v=4.0&_SERIALIZETYPE=hessian2&_WEIGHT={weight}&app_name=shop&startTime=1700000000000"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_and_sofarpc_find_each_other_and_what_other_registries_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let addresses = [loopback.address(1, 9603), loopback.address(1, 9600)];
    let facade = Facade::start(common::hub(None)?, addresses, |_| {}).await?;
    let mut reader = Client::start("reader", facade.http, folder.path())?;
    let mut writer = Client::start("writer", facade.http, folder.path())?;

    // What is published is a service of the mesh, and for subscribers what it was.
    reader.ask(&format!("subscribe {ORDER} global"))?;
    reader.wait(&format!("seen {ORDER}"), "{}")?;
    let first = provider("10.0.0.5", 150);
    writer.ask(&format!("publish {ORDER} {first}"))?;
    reader.wait(
        &format!("seen {ORDER}"),
        &format!("{{DEFAULT_ZONE=[{first}]}}"),
    )?;
    let expected = ["10.0.0.5:12200 150"];
    facade
        .wait_instances("bolt", "com.foo.Order", &expected)
        .await?;

    // From a change to its push; the client answers how often it was told.
    let mut took = Vec::new();
    for weight in 1..=30 {
        let before: u32 = reader.ask(&format!("pushes {ORDER}"))?.parse()?;
        let begun = Instant::now();
        writer.ask(&format!("publish {ORDER} {}", provider("10.0.0.5", weight)))?;
        reader.wait(&format!("pushes {ORDER}"), &(before + 1).to_string())?;
        took.push(begun.elapsed());
    }
    took.sort();
    eprintln!(
        "from `publish` in one JVM to the observer in another: p50 {:?}, most {:?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );

    // What a folder of files says is there too, and what nobody knows is passed on.
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    std::fs::write(files.join("order.yaml"), FILES)?;
    let source: RegistrySource = serde_json::from_value(json!({"files": {"folder": files}}))?;
    facade.hub.set_sources(vec![source.compile("files")?]);
    let of_file = "10.9.0.1:12200?_SERIALIZETYPE=hessian2&_WEIGHT=7&p=1&serialization=hessian2&v=4.0&weight=7";
    let both = format!("{{DEFAULT_ZONE=[{}, {of_file}]}}", provider("10.0.0.5", 30));
    reader.wait(&format!("seen {ORDER}"), &both)?;
    reader.ask("subscribe something MINE zone")?;
    writer.ask("publish something MINE a=1 b")?;
    reader.wait("seen something MINE", "{DEFAULT_ZONE=[a=1, b]}")?;
    reader.ask("watch com.foo.Order:1.0@DEFAULT SOFA.CONFIG")?;
    reader.wait("config com.foo.Order:1.0@DEFAULT SOFA.CONFIG", "null")?;

    // SOFARPC calls through it.
    let host = loopback.ip(2).to_string();
    writer.ask(&format!("export {host} 12200 first - 100"))?;
    reader.ask("refer -")?;
    let answer = reader.ask("call - you")?;
    assert_eq!(answer, "first greets you");

    // A new session server finds everybody again, and nobody has lost anything meanwhile.
    let parts = facade.stop().await;
    let facade = Facade::start(parts, addresses, |_| {}).await?;
    let mut third = Client::start("third", facade.http, folder.path())?;
    third.ask(&format!("subscribe {ORDER} global"))?;
    third.wait(&format!("seen {ORDER}"), &both)?;
    assert_eq!(reader.ask("call - again")?, "first greets again");
    writer.ask(&format!("publish {ORDER} {}", provider("10.0.0.5", 99)))?;
    let both = format!("{{DEFAULT_ZONE=[{}, {of_file}]}}", provider("10.0.0.5", 99));
    reader.wait(&format!("seen {ORDER}"), &both)?;

    // A client that is killed takes what it published with it.
    let begun = Instant::now();
    writer.0.kill()?;
    reader.wait(
        &format!("seen {ORDER}"),
        &format!("{{DEFAULT_ZONE=[{of_file}]}}"),
    )?;
    eprintln!(
        "from the end of a client to the push: {:?}",
        begun.elapsed()
    );
    facade
        .wait_instances("bolt", "com.foo.Order", &["10.9.0.1:12200 7"])
        .await?;
    reader.wait("seen something MINE", "{}")?;
    reader.ask(&format!("unsubscribe {ORDER}"))?;
    reader.ask("unsubscribe something MINE")?;
    Ok(())
}

/// A client that writes frames.
struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    id: u32,
}

/// A frame that came.
struct Frame {
    head: Head,
    class: String,
    content: Vec<u8>,
}

impl Frame {
    fn value(&self) -> Result<Value> {
        let mut decoder =
            Decoder::new(&self.content, Dialect::Sofa, wire::hessian2::Limits::DECODE);
        Ok(decoder.value()?)
    }

    /// Zones and data of a push, and its version.
    fn list(&self) -> Result<(Vec<String>, i64)> {
        let value = self.value()?;
        let Some(Value::Map { entries, .. }) = value.get("data") else {
            anyhow::bail!("no data: {value:?}")
        };
        let mut all = Vec::new();
        for (zone, boxes) in entries {
            for data in boxes.items().unwrap_or_default() {
                let data = data.get("data").and_then(Value::as_str);
                all.push(format!(
                    "{} {}",
                    zone.as_str().unwrap_or_default(),
                    data.unwrap_or_default()
                ));
            }
        }
        let version = value.get("version").and_then(Value::as_i64);
        Ok((all, version.context("no version")?))
    }
}

impl Raw {
    async fn connect(address: SocketAddr) -> Result<Raw> {
        Ok(Raw {
            stream: TcpStream::connect(address).await?,
            buffer: Vec::new(),
            id: 1000,
        })
    }

    async fn send(&mut self, form: u8, class: &str, content: &[u8]) -> Result<()> {
        self.id += 1;
        let mut out = Vec::new();
        let parts = Parts {
            codec: form,
            class,
            content,
            ..Parts::v1(self.id)
        };
        bolt::write_request(&mut out, Kind::Request, 1000, &parts);
        self.stream.write_all(&out).await?;
        Ok(())
    }

    /// A registration in Hessian, and its answer.
    async fn register(&mut self, class: &str, fields: &[(&str, Value)]) -> Result<Value> {
        let class = format!("{MODEL}{class}");
        let object = Value::object(&class, fields.iter().cloned());
        let mut content = Vec::new();
        Encoder::new(Dialect::Sofa).encode(&object, &mut content);
        self.send(codec::HESSIAN2, &class, &content).await?;
        let answer = self.next().await?;
        assert_eq!(answer.head.status, status::SUCCESS);
        answer.value()
    }

    async fn publish(&mut self, id: &str, version: i64, data: &[&str]) -> Result<Value> {
        let class = format!("{MODEL}DataBox");
        let boxes = data
            .iter()
            .map(|data| Value::object(&class, [("data", Value::from(*data))]));
        let boxes = ("dataList", Value::list(boxes.collect()));
        let fields = [&base(id, "a", version)[..], &[boxes]].concat();
        self.register("PublisherRegister", &fields).await
    }

    async fn subscribe(&mut self, id: &str, data_id: &str) -> Result<()> {
        let scope = ("scope", Value::from("global"));
        let fields = [&base(id, data_id, 1)[..], &[scope]].concat();
        self.register("SubscriberRegister", &fields).await?;
        Ok(())
    }

    async fn next(&mut self) -> Result<Frame> {
        tokio::time::timeout(LIMIT, async {
            loop {
                let limits = frame::Limits::default();
                if let Next::Frame(length) = bolt::next_frame(&self.buffer, &limits)? {
                    let frame: Vec<u8> = self.buffer.drain(..length).collect();
                    let head = Head::parse(&frame)?;
                    let class = String::from_utf8(frame[head.class()].to_vec())?;
                    let content = frame[head.content()].to_vec();
                    return Ok(Frame {
                        head,
                        class,
                        content,
                    });
                }
                let read = self.stream.read_buf(&mut self.buffer).await?;
                ensure!(read > 0, "the server has closed the connection");
            }
        })
        .await?
    }

    async fn take(&mut self, push: &Frame) -> Result<()> {
        let mut out = Vec::new();
        let content = messages::write_result(true, None);
        let parts = Parts {
            class: messages::RESULT,
            content: &content,
            ..Parts::answer(&push.head)
        };
        bolt::write_response(&mut out, status::SUCCESS, &parts);
        self.stream.write_all(&out).await?;
        Ok(())
    }

    /// The next push, which is taken.
    async fn pushed(&mut self) -> Result<(Vec<String>, i64)> {
        let push = self.next().await?;
        assert_eq!(push.class, messages::RECEIVED_DATA);
        self.take(&push).await?;
        push.list()
    }

    async fn is_closed(&mut self) -> bool {
        let mut rest = [0; 64];
        let closed = tokio::time::timeout(LIMIT, self.stream.read(&mut rest)).await;
        matches!(closed, Ok(Ok(0) | Err(_)))
    }
}

fn base(id: &str, data_id: &str, version: i64) -> [(&'static str, Value); 6] {
    [
        ("dataId", Value::from(data_id)),
        ("group", Value::from("MINE")),
        ("registId", Value::from(id)),
        ("eventType", Value::from("REGISTER")),
        ("version", Value::Long(version)),
        ("timestamp", Value::Long(version)),
    ]
}

fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn succeeded(value: &Value) -> bool {
    value.get("success").and_then(Value::as_bool) == Some(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_belongs_to_the_connection_that_used_it_last() -> Result<()> {
    let facade = Facade::anywhere(|_| {}).await?;
    let mut reader = Raw::connect(facade.bolt).await?;
    reader.subscribe("reader", "a").await?;
    // Of what is not known yet nothing is said that a client would believe more than what it knows.
    assert_eq!(reader.pushed().await?, (vec![], 1));

    let mut first = Raw::connect(facade.bolt).await?;
    let answer = first.publish("p", 2, &["x"]).await?;
    assert_eq!(word(&answer, "message"), "Publisher register success!");
    let (seen, version) = reader.pushed().await?;
    assert_eq!(seen, ["DEFAULT_ZONE x"]);
    assert!(version > 1);
    // An older version is answered well and ignored.
    assert!(succeeded(&first.publish("p", 1, &["old"]).await?));
    let mut second = Raw::connect(facade.bolt).await?;
    assert!(succeeded(&second.publish("p", 2, &["y"]).await?));
    let (seen, next) = reader.pushed().await?;
    assert_eq!(seen, ["DEFAULT_ZONE y"]);
    assert!(next > version);
    drop(first);
    // The end of the first connection takes nothing away: the next push is of the second's end.
    let mut third = Raw::connect(facade.bolt).await?;
    assert!(succeeded(&third.publish("q", 1, &["z"]).await?));
    assert_eq!(
        reader.pushed().await?.0,
        ["DEFAULT_ZONE y", "DEFAULT_ZONE z"]
    );
    drop(second);
    assert_eq!(reader.pushed().await?.0, ["DEFAULT_ZONE z"]);

    // A push that is not answered comes again, and what changed meanwhile is in it.
    assert!(succeeded(&third.publish("q", 2, &["unanswered"]).await?));
    let unanswered = reader.next().await?;
    assert_eq!(unanswered.list()?.0, ["DEFAULT_ZONE unanswered"]);
    for version in 3..10 {
        let data = format!("v{version}");
        assert!(succeeded(&third.publish("q", version, &[&data]).await?));
    }
    assert_eq!(reader.pushed().await?.0, ["DEFAULT_ZONE v9"]);
    let mut gone = base("q", "a", 10);
    gone[3].1 = Value::from("UNREGISTER");
    assert!(succeeded(
        &third.register("PublisherRegister", &gone).await?
    ));
    assert!(reader.pushed().await?.0.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_clients_are_answered_and_told_in_protobuf() -> Result<()> {
    let facade = Facade::anywhere(|_| {}).await?;
    let base = |id: &str| pb::BaseRegister {
        data_id: "com.foo.Order:1.0@DEFAULT".to_owned(),
        group: "SOFA".to_owned(),
        zone: "EAST".to_owned(),
        regist_id: id.to_owned(),
        version: 1,
        event_type: "REGISTER".to_owned(),
        ..pb::BaseRegister::default()
    };
    let mut client = Raw::connect(facade.bolt).await?;
    let publisher = pb::PublisherRegister {
        data_list: vec![pb::DataBox {
            data: "10.0.0.5:12200?weight=3".to_owned(),
        }],
        base_register: Some(base("p")),
    };
    let class = format!("{PB}PublisherRegisterPb");
    client
        .send(codec::PROTOBUF, &class, &publisher.encode_to_vec())
        .await?;
    let answer = client.next().await?;
    assert_eq!(answer.class, format!("{PB}RegisterResponsePb"));
    let answer = pb::RegisterResponse::decode(&*answer.content)?;
    assert!(answer.success && answer.regist_id == "p", "{answer:?}");
    // It is in the registry when its publisher is told so.
    let key = ServiceKey::new("bolt", "com.foo.Order");
    assert_eq!(
        facade
            .registry
            .snapshot()
            .get(&key)
            .map(|s| s.instances.len()),
        Some(1)
    );
    let mut other = Instance::new(key, "10.0.0.6", 12200);
    other.id = "other".into();
    other.version = "1.0".into();
    facade.registry.register(vec![other]).await?;
    let expected = ["10.0.0.5:12200 3", "10.0.0.6:12200 100"];
    facade
        .wait_instances("bolt", "com.foo.Order", &expected)
        .await?;

    for (scope, counts) in [
        ("global", vec![("DEFAULT_ZONE", 1), ("EAST", 1)]),
        ("zone", vec![("EAST", 1)]),
    ] {
        let subscriber = pb::SubscriberRegister {
            scope: scope.to_owned(),
            base_register: Some(base(scope)),
            ..pb::SubscriberRegister::default()
        };
        let class = format!("{PB}SubscriberRegisterPb");
        client
            .send(codec::PROTOBUF, &class, &subscriber.encode_to_vec())
            .await?;
        client.next().await?;
        loop {
            let push = client.next().await?;
            assert_eq!(
                (push.head.codec, &*push.class),
                (codec::PROTOBUF, &*format!("{PB}ReceivedDataPb"))
            );
            let list = pb::ReceivedData::decode(&*push.content)?;
            assert_eq!(list.subscriber_regist_ids, [scope]);
            assert_eq!(
                (&*list.segment, &*list.local_zone),
                ("DefaultDataCenter", "EAST")
            );
            let mut out = Vec::new();
            let content = pb::Result {
                success: true,
                message: String::new(),
            }
            .encode_to_vec();
            let class = format!("{PB}ResultPb");
            let parts = Parts {
                class: &class,
                content: &content,
                ..Parts::answer(&push.head)
            };
            bolt::write_response(&mut out, status::SUCCESS, &parts);
            client.stream.write_all(&out).await?;
            let counted = list.push_data_count.iter();
            let mut found: Vec<(&str, i32)> = counted.map(|(zone, n)| (&**zone, *n)).collect();
            found.sort_unstable();
            // The facade may learn of the other one after the test has.
            if found == counts {
                break;
            }
        }
    }
    drop(client);
    facade
        .wait_instances("bolt", "com.foo.Order", &expected[1..])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_and_harms_nobody() -> Result<()> {
    let facade = Facade::anywhere(|config| {
        config.registrations_per_connection = 3;
        config.frame_bytes = 4096;
        config.boxes = 2;
        config.connections = 3;
        config.advertised = Some("mesh.example:9600".to_owned());
    })
    .await?;
    let mut client = Raw::connect(facade.bolt).await?;
    let publisher = format!("{MODEL}PublisherRegister");
    client
        .send(codec::HESSIAN2, &publisher, b"\xff\x00O")
        .await?;
    assert_eq!(
        client.next().await?.head.status,
        status::SERVER_DESERIAL_EXCEPTION
    );
    client
        .send(codec::HESSIAN2, "java.lang.Runtime", b"N")
        .await?;
    assert_eq!(client.next().await?.head.status, status::NO_PROCESSOR);
    let mut heartbeat = Vec::new();
    bolt::write_heartbeat(&mut heartbeat, bolt::Version::V1, 77);
    client.stream.write_all(&heartbeat).await?;
    let ack = client.next().await?.head;
    assert_eq!((ack.command, ack.id), (command::HEARTBEAT, 77));

    let nameless = client
        .register("PublisherRegister", &base("p", "", 1))
        .await?;
    assert!(!succeeded(&nameless));
    assert!(word(&nameless, "message").starts_with("Publisher register failed!Type:REGISTER"));
    assert!(!succeeded(&client.publish("p", 1, &["a", "b", "c"]).await?));
    for id in ["1", "2", "3"] {
        assert!(succeeded(&client.publish(id, 1, &["x"]).await?));
    }
    assert!(!succeeded(&client.publish("4", 1, &["x"]).await?));
    // What says no provider hides nobody and is passed on.
    let data = Value::object(
        &format!("{MODEL}DataBox"),
        [("data", Value::from("no address"))],
    );
    let mut fields = base("1", "com.foo.Bad:1.0@DEFAULT", 2);
    fields[1].1 = Value::from("SOFA");
    let fields = [&fields[..], &[("dataList", Value::list(vec![data]))]].concat();
    assert!(succeeded(
        &client.register("PublisherRegister", &fields).await?
    ));
    assert!(facade.instances("bolt", "com.foo.Bad").is_empty());

    let mut garbage = Raw::connect(facade.bolt).await?;
    garbage.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    assert!(garbage.is_closed().await);
    let mut huge = Raw::connect(facade.bolt).await?;
    huge.send(codec::HESSIAN2, &publisher, &[0; 5000]).await?;
    assert!(huge.is_closed().await);

    let mut few = Vec::new();
    for _ in 0..5 {
        few.push(Raw::connect(facade.bolt).await?);
    }
    assert!(few[4].is_closed().await);
    assert!(succeeded(&client.publish("2", 2, &["still here"]).await?));

    let get = |path: &str| -> Result<String> {
        let answer = request(facade.http, "GET", path, &[], &[])?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        Ok(String::from_utf8(answer.body)?)
    };
    let weighed = get("/api/servers/queryWithWeight?zone=null")?;
    assert!(
        weighed.starts_with("mesh.example:9600?weight="),
        "{weighed}"
    );
    assert_eq!(get("/api/servers/query")?, "mesh.example:9600");
    assert_eq!(get("/api/servers/query.json")?, "[\"mesh.example:9600\"]");
    assert_eq!(get("/api/servers/alive")?, "OK");
    assert!(get("/health/check")?.contains("\"success\":true"));
    Ok(())
}
