//! What clients of SOFARegistry and its session servers say to each other inside Bolt, in its Hessian form
//! (`protocols/sofaregistry.md`). Fields are read by name, because other versions have more of them, and written in the
//! order of the Java client.

use std::collections::BTreeMap;

use crate::hessian2::{Decoder, Dialect, Encoder, Error, Limits, Value};

/// The Java package of all classes.
const MODEL: &str = "com.alipay.sofa.registry.core.model.";
/// `eventType` of a registration.
const REGISTER: &str = "REGISTER";
/// `eventType` of its end.
const UNREGISTER: &str = "UNREGISTER";

/// Class of the answer to a registration.
pub const REGISTER_RESPONSE: &str = "com.alipay.sofa.registry.core.model.RegisterResponse";
/// Class of the answer to [`Request::SyncConfig`].
pub const SYNC_CONFIG_RESPONSE: &str = "com.alipay.sofa.registry.core.model.SyncConfigResponse";
/// Class of a list that a server pushes.
pub const RECEIVED_DATA: &str = "com.alipay.sofa.registry.core.model.ReceivedData";
/// Class of a configuration item that a server pushes.
pub const RECEIVED_CONFIG_DATA: &str = "com.alipay.sofa.registry.core.model.ReceivedConfigData";
/// Class of a client's answer to a push.
pub const RESULT: &str = "com.alipay.sofa.registry.core.model.Result";

/// What a client wants of a registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventType {
    /// It begins, or has a new content.
    #[default]
    Register,
    /// It ends.
    Unregister,
    /// Servers answer success to anything else and do nothing.
    Other,
}

impl EventType {
    /// Reads the word; none is a registration.
    pub fn parse(word: &str) -> EventType {
        match word {
            "" | REGISTER => EventType::Register,
            UNREGISTER => EventType::Unregister,
            _ => EventType::Other,
        }
    }
}

/// What publishers, subscribers and configurators have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Empty for the default.
    pub instance_id: String,
    /// Empty for the default.
    pub zone: String,
    /// Name of the application.
    pub app_name: String,
    /// What is published or looked for.
    pub data_id: String,
    /// Group of the dataId.
    pub group: String,
    /// Made by the client: the identity of this publisher or subscriber.
    pub regist_id: String,
    /// What is wanted.
    pub event_type: EventType,
    /// Rises with each change.
    pub version: i64,
    /// When the client made this version, in ms.
    pub timestamp: i64,
}

/// How far the list of a subscriber reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The subscriber's zone. Servers take an unknown word for this one.
    #[default]
    Zone,
    /// The data centre.
    DataCenter,
    /// Everything.
    Global,
}

impl Scope {
    /// Reads the word.
    pub fn parse(word: &str) -> Scope {
        match word {
            "dataCenter" => Scope::DataCenter,
            "global" => Scope::Global,
            _ => Scope::Zone,
        }
    }

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Zone => "zone",
            Scope::DataCenter => "dataCenter",
            Scope::Global => "global",
        }
    }
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Publishes these data under one registId, or ends it.
    Publisher(Register, Vec<String>),
    /// Wants the list of a dataId, now and when it changes.
    Subscriber(Register, Scope),
    /// Wants a configuration item.
    Configurator(Register),
    /// Asks how the client should behave.
    SyncConfig,
}

impl Request {
    /// Reads the content of a request of a class; `None`: no class that clients send.
    pub fn read(class: &str, content: &[u8]) -> Result<Option<Request>, Error> {
        let kind = class.strip_prefix(MODEL).unwrap_or_default();
        if !matches!(
            kind,
            "PublisherRegister"
                | "SubscriberRegister"
                | "ConfiguratorRegister"
                | "SyncConfigRequest"
        ) {
            return Ok(None);
        }
        let object = object(content)?;
        Ok(Some(match kind {
            "PublisherRegister" => Request::Publisher(register(&object), boxes(&object)?),
            "SubscriberRegister" => {
                Request::Subscriber(register(&object), Scope::parse(text(&object, "scope")))
            }
            "ConfiguratorRegister" => Request::Configurator(register(&object)),
            _ => Request::SyncConfig,
        }))
    }
}

fn object(content: &[u8]) -> Result<Value, Error> {
    match Decoder::new(content, Dialect::Sofa, Limits::DECODE).value()? {
        object @ Value::Object { .. } => Ok(object),
        _ => Err(Error::Expected("object")),
    }
}

/// A string field; null and absent ones are empty.
fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn number(object: &Value, field: &str) -> i64 {
    object
        .get(field)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

fn register(object: &Value) -> Register {
    let word = |field: &str| text(object, field).to_owned();
    Register {
        instance_id: word("instanceId"),
        zone: word("zone"),
        app_name: word("appName"),
        data_id: word("dataId"),
        group: word("group"),
        regist_id: word("registId"),
        event_type: EventType::parse(text(object, "eventType")),
        version: number(object, "version"),
        timestamp: number(object, "timestamp"),
    }
}

/// The data of a publisher: DataBoxes, of which null ones say nothing.
fn boxes(object: &Value) -> Result<Vec<String>, Error> {
    let list = match object.get("dataList") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(list) => list.items().ok_or(Error::Expected("list"))?,
    };
    let mut data = Vec::with_capacity(list.len());
    for item in list {
        match item {
            Value::Null => {}
            Value::Object { .. } => data.push(text(item, "data").to_owned()),
            _ => return Err(Error::Expected("DataBox")),
        }
    }
    Ok(data)
}

/// Reads whether a client took a push.
pub fn read_result(content: &[u8]) -> Result<bool, Error> {
    let object = object(content)?;
    let success = object.get("success").and_then(Value::as_bool);
    success.ok_or(Error::Expected("success"))
}

fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(Dialect::Sofa).encode(value, &mut out);
    out
}

fn word_or_null(text: Option<&str>) -> Value {
    text.map_or(Value::Null, Value::from)
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterResponse {
    /// Without it the client tries again.
    pub success: bool,
    /// Whose registration it was.
    pub regist_id: String,
    /// Its version.
    pub version: i64,
    /// The client gives up.
    pub refused: bool,
    /// For people.
    pub message: String,
}

impl RegisterResponse {
    /// The content of [`REGISTER_RESPONSE`].
    pub fn write(&self) -> Vec<u8> {
        encode(&Value::object(
            REGISTER_RESPONSE,
            [
                ("success", Value::Bool(self.success)),
                ("registId", Value::from(self.regist_id.as_str())),
                ("version", Value::Long(self.version)),
                ("refused", Value::Bool(self.refused)),
                ("message", Value::from(self.message.as_str())),
            ],
        ))
    }
}

/// The answer to [`Request::SyncConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncConfigResponse {
    /// When the client asks again, in ms.
    pub retry_interval: i32,
    /// Data centres whose lists the client takes.
    pub available_segments: Vec<String>,
}

impl SyncConfigResponse {
    /// The content of [`SYNC_CONFIG_RESPONSE`].
    pub fn write(&self) -> Vec<u8> {
        let segments = self.available_segments.iter();
        encode(&Value::object(
            SYNC_CONFIG_RESPONSE,
            [
                ("retryInterval", Value::Int(self.retry_interval)),
                ("success", Value::Bool(true)),
                ("message", Value::Null),
                (
                    "availableSegments",
                    Value::list(segments.map(|s| Value::from(s.as_str())).collect()),
                ),
            ],
        ))
    }
}

const RECEIVED_DATA_FIELDS: [&str; 10] = [
    "dataId",
    "group",
    "instanceId",
    "segment",
    "scope",
    "version",
    "localZone",
    "subscriberRegistIds",
    "data",
    "dataCount",
];

/// A push of a list, but for the list: that is the same for many subscribers, see [`write_zones`].
#[derive(Clone, Debug)]
pub struct ReceivedData<'a> {
    /// What was looked for.
    pub data_id: &'a str,
    /// Its group.
    pub group: &'a str,
    /// Its instance id.
    pub instance_id: &'a str,
    /// The data centre.
    pub segment: &'a str,
    /// How far the list reaches.
    pub scope: Scope,
    /// A client only takes a higher one than it has.
    pub version: i64,
    /// The subscriber's zone.
    pub local_zone: &'a str,
    /// The subscribers of one connection that it is for.
    pub subscribers: &'a [&'a str],
}

impl ReceivedData<'_> {
    /// The content of [`RECEIVED_DATA`]; `zones` is what [`write_zones`] made.
    pub fn write(&self, zones: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + zones.len());
        let mut encoder = Encoder::new(Dialect::Sofa);
        encoder.object(
            RECEIVED_DATA,
            RECEIVED_DATA_FIELDS.iter().copied(),
            &mut out,
        );
        let subscribers = self.subscribers.iter().map(|id| Value::from(*id));
        for value in [
            Value::from(self.data_id),
            Value::from(self.group),
            Value::from(self.instance_id),
            Value::from(self.segment),
            Value::from(self.scope.name()),
            Value::Long(self.version),
            Value::from(self.local_zone),
            Value::list(subscribers.collect()),
        ] {
            encoder.encode(&value, &mut out);
        }
        out.extend_from_slice(zones);
        out
    }
}

/// The last two fields of [`ReceivedData`]: the data by zone, and how many each zone has.
pub fn write_zones<T: AsRef<str>>(zones: &BTreeMap<T, Vec<T>>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(Dialect::Sofa);
    // The class that the push itself is of comes first in the stream.
    let fields = RECEIVED_DATA_FIELDS.iter().copied();
    encoder.object(RECEIVED_DATA, fields, &mut Vec::new());
    let data = zones.iter().map(|(zone, data)| {
        let boxes = data.iter().map(|data| data_box(data.as_ref())).collect();
        (Value::from(zone.as_ref()), Value::list(boxes))
    });
    encoder.encode(&Value::map(data.collect()), &mut out);
    let counts = zones.iter().map(|(zone, data)| {
        let count = i32::try_from(data.len()).unwrap_or(i32::MAX);
        (Value::from(zone.as_ref()), Value::Int(count))
    });
    encoder.encode(&Value::map(counts.collect()), &mut out);
    out
}

fn data_box(data: &str) -> Value {
    Value::object(&format!("{MODEL}DataBox"), [("data", Value::from(data))])
}

/// A push of a configuration item.
#[derive(Clone, Debug)]
pub struct ReceivedConfigData<'a> {
    /// What was looked for.
    pub data_id: &'a str,
    /// Its group.
    pub group: &'a str,
    /// Its instance id.
    pub instance_id: &'a str,
    /// A client only takes a higher one than it has.
    pub version: i64,
    /// The configurators of one connection that it is for.
    pub configurators: &'a [&'a str],
    /// The item, if there is one.
    pub data: Option<&'a str>,
}

impl ReceivedConfigData<'_> {
    /// The content of [`RECEIVED_CONFIG_DATA`].
    pub fn write(&self) -> Vec<u8> {
        let configurators = self.configurators.iter().map(|id| Value::from(*id));
        encode(&Value::object(
            RECEIVED_CONFIG_DATA,
            [
                ("dataId", Value::from(self.data_id)),
                ("group", Value::from(self.group)),
                ("instanceId", Value::from(self.instance_id)),
                ("version", Value::Long(self.version)),
                (
                    "configuratorRegistIds",
                    Value::list(configurators.collect()),
                ),
                ("dataBox", self.data.map_or(Value::Null, data_box)),
            ],
        ))
    }
}

/// The content of [`RESULT`].
pub fn write_result(success: bool, message: Option<&str>) -> Vec<u8> {
    encode(&Value::object(
        RESULT,
        [
            ("success", Value::Bool(success)),
            ("message", word_or_null(message)),
        ],
    ))
}
