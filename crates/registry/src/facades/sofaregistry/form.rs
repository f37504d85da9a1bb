//! The two forms of the messages: Hessian, which the Java client writes, and Protobuf, which others do. The class of a
//! request says which, and a client is told things in the form that it used last.

use api::sofaregistry::session::v1 as pb;
use prost::Message;
use wire::bolt::codec;
use wire::sofaregistry as hessian;
use wire::sofaregistry::{
    EventType, ReceivedConfigData, ReceivedData, Register, RegisterResponse, Request, Scope,
    SyncConfigResponse,
};

use super::lists::{Content, Zones};

/// What classes of the Protobuf form begin with.
const PB: &str = "com.alipay.sofa.registry.common.model.client.pb.";
const REGISTER_RESPONSE_PB: &str =
    "com.alipay.sofa.registry.common.model.client.pb.RegisterResponsePb";
const SYNC_CONFIG_RESPONSE_PB: &str =
    "com.alipay.sofa.registry.common.model.client.pb.SyncConfigResponsePb";
const RECEIVED_DATA_PB: &str = "com.alipay.sofa.registry.common.model.client.pb.ReceivedDataPb";

/// How a client writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Bolt's codec 1.
    Hessian,
    /// Bolt's codec 11.
    Protobuf,
}

/// An answer to a request.
pub(super) enum Reply {
    Registered(RegisterResponse),
    SyncConfig(SyncConfigResponse),
}

/// A class and its content.
pub(super) struct Written {
    pub(super) class: &'static str,
    pub(super) content: Vec<u8>,
}

/// Reads a request; `None`: no class that clients send.
pub(super) fn read(class: &str, content: &[u8]) -> Result<Option<(Form, Request)>, String> {
    let Some(class_pb) = class.strip_prefix(PB) else {
        let request = Request::read(class, content).map_err(|error| error.to_string())?;
        return Ok(request.map(|request| (Form::Hessian, request)));
    };
    let request = match class_pb {
        "PublisherRegisterPb" => {
            let message: pb::PublisherRegister = decode(content)?;
            let data = message.data_list.into_iter().map(|data| data.data);
            Request::Publisher(register(message.base_register), data.collect())
        }
        "SubscriberRegisterPb" => {
            let message: pb::SubscriberRegister = decode(content)?;
            let scope = Scope::parse(&message.scope);
            Request::Subscriber(register(message.base_register), scope)
        }
        "SyncConfigRequestPb" => {
            let _: pb::SyncConfigRequest = decode(content)?;
            Request::SyncConfig
        }
        _ => return Ok(None),
    };
    Ok(Some((Form::Protobuf, request)))
}

/// Reads whether a client took a push; of what is no answer to one it says nothing.
pub(super) fn read_result(class: &str, content: &[u8]) -> Option<bool> {
    if class.starts_with(PB) {
        return decode::<pb::Result>(content)
            .ok()
            .map(|result| result.success);
    }
    hessian::read_result(content).ok()
}

fn decode<M: Message + Default>(content: &[u8]) -> Result<M, String> {
    M::decode(content).map_err(|error| error.to_string())
}

fn register(base: Option<pb::BaseRegister>) -> Register {
    let base = base.unwrap_or_default();
    Register {
        instance_id: base.instance_id,
        zone: base.zone,
        app_name: base.app_name,
        data_id: base.data_id,
        group: base.group,
        regist_id: base.regist_id,
        event_type: EventType::parse(&base.event_type),
        version: base.version,
        timestamp: base.timestamp,
    }
}

impl Form {
    /// Bolt's number for it.
    pub(super) fn codec(self) -> u8 {
        match self {
            Form::Hessian => codec::HESSIAN2,
            Form::Protobuf => codec::PROTOBUF,
        }
    }

    /// Writes an answer.
    pub(super) fn reply(self, reply: &Reply) -> Written {
        match (self, reply) {
            (Form::Hessian, Reply::Registered(response)) => Written {
                class: hessian::REGISTER_RESPONSE,
                content: response.write(),
            },
            (Form::Hessian, Reply::SyncConfig(response)) => Written {
                class: hessian::SYNC_CONFIG_RESPONSE,
                content: response.write(),
            },
            (Form::Protobuf, Reply::Registered(response)) => Written {
                class: REGISTER_RESPONSE_PB,
                content: pb::RegisterResponse {
                    success: response.success,
                    regist_id: response.regist_id.clone(),
                    version: response.version,
                    refused: response.refused,
                    message: response.message.clone(),
                }
                .encode_to_vec(),
            },
            (Form::Protobuf, Reply::SyncConfig(response)) => Written {
                class: SYNC_CONFIG_RESPONSE_PB,
                content: pb::SyncConfigResponse {
                    result: Some(pb::Result {
                        success: true,
                        message: String::new(),
                    }),
                    available_segments: response.available_segments.clone(),
                    retry_interval: response.retry_interval,
                }
                .encode_to_vec(),
            },
        }
    }

    /// Writes a push of a list.
    pub(super) fn list(self, push: &ReceivedData<'_>, content: &Content, zone: &str) -> Written {
        let seen = content.seen(push.scope, zone);
        match self {
            Form::Hessian => {
                let zones = match &seen {
                    Some(seen) => hessian::write_zones(seen).into(),
                    None => content.written(0, hessian::write_zones),
                };
                Written {
                    class: hessian::RECEIVED_DATA,
                    content: push.write(&zones),
                }
            }
            Form::Protobuf => {
                let zones = match &seen {
                    Some(seen) => zones_pb(seen).into(),
                    None => content.written(1, zones_pb),
                };
                let head = pb::ReceivedData {
                    data_id: push.data_id.to_owned(),
                    group: push.group.to_owned(),
                    instance_id: push.instance_id.to_owned(),
                    segment: push.segment.to_owned(),
                    scope: push.scope.name().to_owned(),
                    subscriber_regist_ids: push
                        .subscribers
                        .iter()
                        .map(|id| (*id).to_owned())
                        .collect(),
                    version: push.version,
                    local_zone: push.local_zone.to_owned(),
                    ..pb::ReceivedData::default()
                };
                // A message and a message are one with the fields of both.
                let mut content = head.encode_to_vec();
                content.extend_from_slice(&zones);
                Written {
                    class: RECEIVED_DATA_PB,
                    content,
                }
            }
        }
    }
}

/// Configuration items have no Protobuf form, nor have the requests for them.
pub(super) fn config(push: &ReceivedConfigData<'_>) -> Written {
    Written {
        class: hessian::RECEIVED_CONFIG_DATA,
        content: push.write(),
    }
}

fn zones_pb(zones: &Zones) -> Vec<u8> {
    let boxes = |data: &[std::sync::Arc<str>]| pb::DataBoxes {
        data: data
            .iter()
            .map(|data| pb::DataBox {
                data: data.to_string(),
            })
            .collect(),
    };
    let message = pb::ReceivedData {
        data: zones
            .iter()
            .map(|(zone, data)| (zone.to_string(), boxes(data)))
            .collect(),
        push_data_count: zones
            .iter()
            .map(|(zone, data)| {
                let count = i32::try_from(data.len()).unwrap_or(i32::MAX);
                (zone.to_string(), count)
            })
            .collect(),
        ..pb::ReceivedData::default()
    };
    message.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_say_the_same() -> Result<(), Box<dyn std::error::Error>> {
        let base = pb::BaseRegister {
            data_id: "a".to_owned(),
            group: "g".to_owned(),
            regist_id: "r".to_owned(),
            event_type: "UNREGISTER".to_owned(),
            version: 7,
            ..pb::BaseRegister::default()
        };
        let message = pb::PublisherRegister {
            data_list: vec![pb::DataBox {
                data: "x".to_owned(),
            }],
            base_register: Some(base),
        };
        let class = format!("{PB}PublisherRegisterPb");
        let read = read(&class, &message.encode_to_vec())?;
        let Some((Form::Protobuf, Request::Publisher(register, data))) = read else {
            return Err("no publisher".into());
        };
        assert_eq!((register.version, &data[..]), (7, &["x".to_owned()][..]));
        assert_eq!(register.event_type, EventType::Unregister);

        let zones = Zones::from([("Z".into(), vec!["x".into(), "y".into()])]);
        let push = ReceivedData {
            data_id: "a",
            group: "g",
            instance_id: "i",
            segment: "s",
            scope: Scope::Global,
            version: 9,
            local_zone: "Z",
            subscribers: &["r"],
        };
        let written = Form::Protobuf.list(&push, &Content::new(9, zones), "Z");
        let again = pb::ReceivedData::decode(&*written.content)?;
        assert_eq!(
            (again.version, again.subscriber_regist_ids),
            (9, vec!["r".to_owned()])
        );
        assert_eq!(again.push_data_count.get("Z"), Some(&2));
        let boxes = again.data.get("Z").map(|boxes| boxes.data.len());
        assert_eq!(boxes, Some(2));
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_panics(kind in 0_usize..4, content in proptest::collection::vec(any::<u8>(), 0..120)) {
            let kinds = ["PublisherRegisterPb", "SubscriberRegisterPb", "SyncConfigRequestPb", "ResultPb"];
            let class = format!("{PB}{}", kinds.get(kind).copied().unwrap_or_default());
            // Whatever it is, it is read or refused.
            let _ = (read(&class, &content), read_result(&class, &content));
        }
    }
}
