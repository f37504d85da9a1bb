//! Dubbo against captured frames and hostile bytes.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;

use proptest::prelude::*;
use wire::dubbo::call::{error_text, parameter_count, response_attachments, response_kind};
use wire::dubbo::message::{Invocation, Reply};
use wire::dubbo::write::Kind;
use wire::dubbo::{
    self, Attachments, Call, Head, Rewrite, Serialization, rewrite_call, rewrite_response,
};
use wire::frame::{Edit, FrameError, Limits, Next};
use wire::hessian2::Value;

const SERVICE: &str = "com.example.mesh.api.DemoService";

fn limits() -> Limits {
    Limits::default()
}

fn map(attachments: Attachments<'_>) -> HashMap<String, String> {
    let mut all = HashMap::new();
    attachments
        .each(|pair| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            all.insert(
                text(&pair.key),
                pair.value.as_deref().map(text).unwrap_or_default(),
            );
        })
        .unwrap();
    all
}

fn attachments_of(frame: &[u8]) -> HashMap<String, String> {
    let head = Head::parse(frame).unwrap();
    map(Call::read(frame, &head).unwrap().attachments().unwrap())
}

#[test]
fn every_captured_frame_is_one_frame_and_each_prefix_needs_more() {
    for name in common::names("dubbo2") {
        let frame = common::frame(&name);
        assert_eq!(
            dubbo::next_frame(&frame, &limits()),
            Ok(Next::Frame(frame.len())),
            "{name}"
        );
        for end in 0..frame.len() {
            match dubbo::next_frame(&frame[..end], &limits()) {
                Ok(Next::NeedMore(more)) => {
                    assert!(more > end && more <= frame.len(), "{name} {end}")
                }
                other => panic!("{name} at {end}: {other:?}"),
            }
            assert!(
                dubbo::detect(&frame[..end]) != Some(false),
                "{name} at {end}"
            );
        }
    }
}

#[test]
fn reads_the_words_and_attachments_of_every_captured_call() {
    for name in common::names("dubbo2") {
        let frame = common::frame(&name);
        let head = Head::parse(&frame).unwrap();
        if !head.is_request() || head.is_event() {
            continue;
        }
        let call = Call::read(&frame, &head).unwrap();
        let attachments = map(call.attachments().unwrap());
        assert_eq!(attachments["path"].as_bytes(), &*call.path, "{name}");
        assert_eq!(head.is_two_way(), !name.contains("oneway"), "{name}");
        assert!(
            call.version.starts_with(b"0.") || call.version.starts_with(b"1."),
            "{name}"
        );
    }
    let frame = common::frame("dubbo2-attachments-req");
    let attachments = attachments_of(&frame);
    assert_eq!(attachments["k"], "v1");
    assert!(attachments["traceparent"].starts_with("00-"));
    let frame = common::frame("dubbo2-fastjson2-req");
    let head = Head::parse(&frame).unwrap();
    assert_eq!(head.serialization(), Serialization::FASTJSON2);
    let call = Call::read(&frame, &head).unwrap();
    assert_eq!(
        (&*call.path, &*call.method),
        (SERVICE.as_bytes(), b"sayHello".as_slice())
    );
    assert_eq!(attachments_of(&frame)["timeout"], "3000");
    let frame = common::frame("dubbo2-generic-hello-req");
    let head = Head::parse(&frame).unwrap();
    let call = Call::read(&frame, &head).unwrap();
    assert_eq!(
        (&*call.method, &*call.effective_method()),
        (b"$invoke".as_slice(), b"sayHello".as_slice())
    );
}

#[test]
fn tells_the_outcome_of_every_captured_answer() {
    use dubbo::Outcome::{AppError, Ok as Good, TransportError};
    for (name, expected, kind) in [
        ("dubbo2-hello-resp", Good, Some(4)),
        ("dubbo2-exception-checked-resp", AppError, Some(3)),
        ("dubbo2-exception-runtime-resp", AppError, Some(3)),
        ("dubbo2-unknown-service-resp", TransportError, None),
        ("dubbo2-fastjson2-resp", Good, Some(4)),
    ] {
        let frame = common::frame(name);
        let head = Head::parse(&frame).unwrap();
        assert_eq!(dubbo::call::outcome(&frame, &head), expected, "{name}");
        if kind.is_some() {
            assert_eq!(response_kind(&frame, &head), kind, "{name}");
        }
    }
    let frame = common::frame("dubbo2-attachments-resp");
    let head = Head::parse(&frame).unwrap();
    let attachments = map(response_attachments(&frame, &head).unwrap().unwrap());
    assert_eq!(attachments["resp-key"], "resp-v1");
    let frame = common::frame("dubbo2-unknown-service-resp");
    let head = Head::parse(&frame).unwrap();
    assert!(
        error_text(&frame, &head)
            .unwrap()
            .contains("Not found exported service")
    );
}

#[test]
fn events_are_told_apart_and_answered_with_the_same_bytes_as_java() {
    let heartbeat = common::frame("dubbo2-heartbeat-req");
    let head = Head::parse(&heartbeat).unwrap();
    assert!(head.is_heartbeat(&heartbeat) && !head.is_readonly(&heartbeat));
    let mut out = Vec::new();
    dubbo::write_heartbeat_ack(&mut out, &head);
    assert_eq!(out, common::frame("dubbo2-heartbeat-resp"));
    out.clear();
    dubbo::write_heartbeat(&mut out, Serialization::HESSIAN2, head.id);
    assert_eq!(out, heartbeat);
    let readonly = common::frame("dubbo2-readonly-event");
    let head = Head::parse(&readonly).unwrap();
    assert!(head.is_readonly(&readonly) && !head.is_two_way());
    out.clear();
    dubbo::write_readonly(&mut out, head.serialization(), head.id);
    assert_eq!(out, readonly);
    for serialization in [Serialization::HESSIAN2, Serialization::FASTJSON2] {
        out.clear();
        dubbo::write_readonly(&mut out, serialization, 1);
        assert!(Head::parse(&out).unwrap().is_readonly(&out));
    }
}

#[test]
fn worked_examples_of_the_document() {
    let call = Invocation {
        path: "demo.Svc".into(),
        version: "1.0.0".into(),
        method: "hello".into(),
        descriptor: "Ljava/lang/String;".into(),
        args: vec!["bob".into()],
        attachments: [
            ("path", "demo.Svc"),
            ("interface", "demo.Svc"),
            ("version", "1.0.0"),
            ("group", "g1"),
            ("timeout", "3000"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec(),
    };
    let mut out = Vec::new();
    call.write(&mut out, Kind::Call, 1);
    assert_eq!(
        &out[..16],
        common::unhex("dabbc200 0000000000000001 00000079")
    );
    let head = Head::parse(&out).unwrap();
    assert_eq!(Invocation::read(&out, &head), Ok(call));
    out.clear();
    Reply::Value("hi".into()).write(&mut out, 1, &[("dubbo", "2.0.2")]);
    assert_eq!(
        out,
        common::unhex(
            "dabb0214 0000000000000001 00000012  94 026869 48 05647562626f 05322e302e32 5a"
        )
    );
    out.clear();
    dubbo::write_status(&mut out, &head, 31, "timeout");
    assert_eq!(
        out,
        common::unhex("dabb021f 0000000000000001 00000008  0774696d656f7574")
    );
    out.clear();
    dubbo::write_exception(&mut out, &head, "refused");
    let answer = Head::parse(&out).unwrap();
    let Reply::Exception(value) = Reply::read(&out, &answer).unwrap() else {
        panic!("no exception");
    };
    assert_eq!(value.get("detailMessage"), Some(&Value::from("refused")));
}

#[test]
fn edits_reach_the_attachments_and_leave_the_arguments() {
    for name in [
        "dubbo2-attachments-req",
        "dubbo2-pojo-req",
        "dubbo2-fastjson2-req",
        "dubbo2-any-map-req",
        "dubbo2-generic-pojo-req",
    ] {
        let frame = common::frame(name);
        let head = Head::parse(&frame).unwrap();
        let mut expected = attachments_of(&frame);
        let edits = [
            Edit::Set(b"x-new", b"one"),
            Edit::Set(b"timeout", b"77"),
            Edit::Remove(b"remote.application"),
        ];
        let change = Rewrite {
            path: Some(b"other.Svc"),
            version: None,
            attachments: &edits,
        };
        let mut out = b"before".to_vec();
        rewrite_call(&frame, &head, &change, &mut out).unwrap();
        let out = &out[6..];
        assert_eq!(
            dubbo::next_frame(out, &limits()),
            Ok(Next::Frame(out.len())),
            "{name}"
        );
        for (key, value) in [
            ("x-new", "one"),
            ("timeout", "77"),
            ("path", "other.Svc"),
            ("interface", "other.Svc"),
        ] {
            expected.insert(key.into(), value.into());
        }
        expected.remove("remote.application");
        assert_eq!(attachments_of(out), expected, "{name}");
        let new_head = Head::parse(out).unwrap();
        let call = Call::read(out, &new_head).unwrap();
        assert_eq!(&*call.path, b"other.Svc");
        if head.serialization() == Serialization::HESSIAN2 {
            let before = Invocation::read(&frame, &head).unwrap();
            assert_eq!(
                Invocation::read(out, &new_head).unwrap().args,
                before.args,
                "{name}"
            );
        }
    }
    for name in [
        "dubbo2-attachments-resp",
        "dubbo2-pojo-resp",
        "dubbo2-fastjson2-resp",
        "dubbo2-exception-runtime-resp",
    ] {
        let frame = common::frame(name);
        let head = Head::parse(&frame).unwrap();
        let mut out = Vec::new();
        rewrite_response(&frame, &head, &[Edit::Set(b"x-new", b"one")], &mut out).unwrap();
        let new_head = Head::parse(&out).unwrap();
        let all = map(response_attachments(&out, &new_head).unwrap().unwrap());
        assert_eq!(
            (all["x-new"].as_str(), all["dubbo"].as_str()),
            ("one", "2.0.2"),
            "{name}"
        );
    }
}

#[test]
fn a_map_with_containers_keeps_its_numbering() {
    // Attachments {a: [], b: ref 1, c: "x"}: dropping `a` would turn the reference into another one.
    let mut frame = Vec::new();
    dubbo::write::write_frame(&mut frame, Kind::Call, Serialization::HESSIAN2, 1, |out| {
        out.extend_from_slice(&common::unhex(
            "05322e302e32 0161 00 0162 00 48 0161 78 0162 51 91 0163 0178 5a",
        ));
    });
    let head = Head::parse(&frame).unwrap();
    let change = Rewrite {
        attachments: &[Edit::Remove(b"a"), Edit::Remove(b"c")],
        ..Rewrite::default()
    };
    let mut out = Vec::new();
    rewrite_call(&frame, &head, &change, &mut out).unwrap();
    assert_eq!(
        &out[16 + 12..],
        common::unhex("48 0161 78 0162 51 91 0161 4e 5a")
    );
    // No map at all, and a null one, become a map.
    for tail in ["", "4e"] {
        let mut frame = Vec::new();
        dubbo::write::write_frame(&mut frame, Kind::Call, Serialization::HESSIAN2, 1, |out| {
            out.extend_from_slice(&common::unhex(&format!(
                "05322e302e32 0161 00 0162 00 {tail}"
            )));
        });
        let change = Rewrite {
            attachments: &[Edit::Set(b"k", b"v")],
            ..Rewrite::default()
        };
        let mut out = Vec::new();
        rewrite_call(&frame, &Head::parse(&frame).unwrap(), &change, &mut out).unwrap();
        assert_eq!(attachments_of(&out)["k"], "v");
    }
}

#[test]
fn counts_parameters() {
    for (descriptor, expected) in [
        ("", Some(0)),
        ("Ljava/lang/String;I", Some(2)),
        ("[I[[Ljava/lang/String;J", Some(3)),
        ("Ljava/lang/String", None),
        ("Q", None),
        ("[", None),
    ] {
        assert_eq!(
            parameter_count(descriptor.as_bytes()),
            expected,
            "{descriptor}"
        );
    }
}

#[test]
fn refuses_what_no_peer_sends() {
    let good = common::frame("dubbo2-hello-req");
    let with_len = |len: u32| {
        let mut frame = good.clone();
        frame[12..16].copy_from_slice(&len.to_be_bytes());
        dubbo::next_frame(&frame, &limits())
    };
    assert!(matches!(
        with_len(0xffff_ffff),
        Err(FrameError::Garbage { .. })
    ));
    assert!(matches!(
        with_len(64 << 20),
        Err(FrameError::TooLarge { .. })
    ));
    assert!(dubbo::next_frame(b"da", &limits()).is_err());
    let mut empty = good[..16].to_vec();
    empty[12..16].copy_from_slice(&[0; 4]);
    let head = Head::parse(&empty).unwrap();
    assert!(Call::read(&empty, &head).is_err());
}

proptest! {
    #[test]
    fn flipped_bytes_of_real_frames_never_panic(pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let names = common::names("dubbo2");
        let mut frame = common::frame(&names[pick.index(names.len())]);
        let at = at.index(frame.len());
        frame[at] = byte;
        if let Ok(Next::Frame(len)) = dubbo::next_frame(&frame, &limits()) {
            let frame = &frame[..len];
            let head = Head::parse(frame).unwrap();
            let _ = (head.is_heartbeat(frame), dubbo::call::outcome(frame, &head), error_text(frame, &head));
            let _ = (Invocation::read(frame, &head), Reply::read(frame, &head));
            let mut out = Vec::new();
            let change = Rewrite { path: Some(b"x"), version: Some(b"y"), attachments: &[Edit::Set(b"k", b"v"), Edit::Remove(b"path")] };
            if rewrite_call(frame, &head, &change, &mut out).is_ok() {
                prop_assert_eq!(dubbo::next_frame(&out, &limits()), Ok(Next::Frame(out.len())));
            } else {
                prop_assert!(out.is_empty());
            }
            let mut out = Vec::new();
            let _ = rewrite_response(frame, &head, &[Edit::Set(b"k", b"v")], &mut out);
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..150), json in any::<bool>()) {
        let serialization = if json { Serialization::FASTJSON2 } else { Serialization::HESSIAN2 };
        let mut frame = Vec::new();
        dubbo::write::write_frame(&mut frame, Kind::Call, serialization, 1, |out| out.extend_from_slice(&body));
        let head = Head::parse(&frame).unwrap();
        if let Ok(call) = Call::read(&frame, &head) {
            let _ = call.effective_method();
            if let Ok(attachments) = call.attachments() {
                let _ = attachments.each(|_| {});
            }
        }
    }
}
