//! SOFARegistry's messages against what its Java client writes, and against hostile bytes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;

use proptest::prelude::*;
use wire::sofaregistry::{
    EventType, ReceivedConfigData, ReceivedData, RegisterResponse, Request, Scope,
    SyncConfigResponse, read_result, write_result, write_zones,
};

const REGIST_ID: &str = "11111111-2222-3333-4444-555555555555";
const DATA_ID: &str = "demo.Svc:1.0@DEFAULT";

/// Class and content by name.
fn vectors() -> HashMap<String, (String, Vec<u8>)> {
    let text = fs::read_to_string(common::folder().join("vectors-sofaregistry.tsv")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let vectors = lines.map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [name, class, hex] = cells.as_slice() else {
            panic!("{line}")
        };
        (
            (*name).to_owned(),
            ((*class).to_owned(), common::unhex(hex)),
        )
    });
    vectors.collect()
}

#[test]
fn reads_what_the_java_client_sends() {
    let vectors = vectors();
    let read = |name: &str| {
        let (class, content) = &vectors[name];
        Request::read(class, content).unwrap().unwrap()
    };
    let Request::Publisher(register, data) = read("PublisherRegister") else {
        panic!("no publisher")
    };
    assert_eq!(
        (&*register.data_id, &*register.group, &*register.regist_id),
        (DATA_ID, "SOFA", REGIST_ID)
    );
    assert_eq!(
        (&*register.zone, &*register.app_name),
        ("DEFAULT_ZONE", "demo-app")
    );
    assert_eq!(
        (register.version, register.timestamp),
        (1, 1_700_000_000_000)
    );
    assert_eq!(register.event_type, EventType::Register);
    assert!(matches!(&data[..], [data] if data.starts_with("10.0.0.5:12200?rpcVer=51302&")));
    let Request::Publisher(register, data) = read("PublisherUnregister") else {
        panic!("no publisher")
    };
    assert_eq!(
        (register.event_type, register.version),
        (EventType::Unregister, 2)
    );
    assert!(data.is_empty());
    let Request::Subscriber(register, scope) = read("SubscriberRegister") else {
        panic!("no subscriber")
    };
    assert_eq!((&*register.data_id, scope), (DATA_ID, Scope::Global));
    let Request::Configurator(register) = read("ConfiguratorRegister") else {
        panic!("no configurator")
    };
    assert_eq!(register.group, "SOFA.CONFIG");
    assert_eq!(read("SyncConfigRequest"), Request::SyncConfig);
    assert_eq!(read_result(&vectors["Result"].1), Ok(true));
    assert_eq!(Request::read("java.util.HashMap", b"N"), Ok(None));
}

#[test]
fn writes_what_the_java_client_reads() {
    let zones = BTreeMap::from([(
        "DEFAULT_ZONE",
        vec!["10.0.0.5:12200?weight=100", "10.0.0.6:12200?weight=100"],
    )]);
    let data = ReceivedData {
        data_id: DATA_ID,
        group: "SOFA",
        instance_id: "DEFAULT_INSTANCE_ID",
        segment: "DefaultDataCenter",
        scope: Scope::Global,
        version: 1_700_000_000_123,
        local_zone: "DEFAULT_ZONE",
        subscribers: &[REGIST_ID],
    };
    let config = ReceivedConfigData {
        data_id: DATA_ID,
        group: "SOFA.CONFIG",
        instance_id: "DEFAULT_INSTANCE_ID",
        version: 1,
        configurators: &["r1"],
        data: Some("x"),
    };
    let registered = RegisterResponse {
        success: true,
        regist_id: REGIST_ID.to_owned(),
        version: 1,
        refused: false,
        message: "Publisher register success!".to_owned(),
    };
    let sync = SyncConfigResponse {
        retry_interval: 30_000,
        available_segments: vec!["DefaultDataCenter".to_owned()],
    };
    let vectors = vectors();
    for (name, written) in [
        ("ReceivedData", data.write(&write_zones(&zones))),
        ("ReceivedConfigData", config.write()),
        ("RegisterResponse", registered.write()),
        ("SyncConfigResponse", sync.write()),
        ("Result", write_result(true, None)),
    ] {
        assert_eq!(written, vectors[name].1, "{name}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(class in 0_usize..4, content in proptest::collection::vec(any::<u8>(), 0..200)) {
        let classes = ["PublisherRegister", "SubscriberRegister", "ConfiguratorRegister", "SyncConfigRequest"];
        // Whatever it is, it is read or refused.
        let _ = Request::read(&format!("com.alipay.sofa.registry.core.model.{}", classes[class]), &content);
        let _ = read_result(&content);
    }

    /// Bytes that begin well reach further.
    #[test]
    fn nothing_panics_on_damaged_messages(at in 0_usize..900, byte in any::<u8>(), cut in 0_usize..900) {
        for (name, (class, content)) in vectors() {
            let mut content = content.clone();
            if let Some(place) = content.get_mut(at) {
                *place = byte;
            }
            content.truncate(cut.max(1));
            let _ = Request::read(&class, &content);
            if name == "Result" {
                let _ = read_result(&content);
            }
        }
    }
}
