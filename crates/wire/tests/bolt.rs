//! Bolt against captured frames and hostile bytes.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]

mod common;

use proptest::prelude::*;
use wire::bolt::sofarpc::{Answer, Call, METHOD, RESPONSE_ERROR, SERVICE, UniqueName};
use wire::bolt::{self, Head, Headers, Kind, Parts, Version, command, rewrite_headers, status};
use wire::frame::{Edit, FrameError, Limits, Next};
use wire::hessian2::Value;

fn limits() -> Limits {
    Limits::default()
}

fn pairs(frame: &[u8], head: &Head) -> Vec<(String, String)> {
    Headers::of(frame, head)
        .map(|pair| {
            let (key, value) = pair.unwrap();
            (
                String::from_utf8(key.to_vec()).unwrap(),
                String::from_utf8(value.to_vec()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn every_captured_frame_is_one_frame_and_each_prefix_needs_more() {
    for name in common::names("bolt") {
        let frame = common::frame(&name);
        assert_eq!(
            bolt::next_frame(&frame, &limits()),
            Ok(Next::Frame(frame.len())),
            "{name}"
        );
        for end in 0..frame.len() {
            match bolt::next_frame(&frame[..end], &limits()) {
                Ok(Next::NeedMore(more)) => {
                    assert!(more > end && more <= frame.len(), "{name} {end}")
                }
                other => panic!("{name} at {end}: {other:?}"),
            }
            if let Some(found) = bolt::detect(&frame[..end]) {
                assert!(found, "{name} at {end}");
            }
        }
        let head = Head::parse(&frame).unwrap();
        assert_eq!(head.frame_len(), frame.len(), "{name}");
        assert_eq!(bolt::verify(&frame, &head), Ok(()), "{name}");
        // A frame behind it changes nothing.
        let mut twice = frame.clone();
        twice.extend_from_slice(&frame);
        assert_eq!(
            bolt::next_frame(&twice, &limits()),
            Ok(Next::Frame(frame.len()))
        );
        // Each captured frame is built again from its parts.
        let headers = pairs(&frame, &head);
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let parts = Parts {
            version: head.version,
            switch: head.switch,
            id: head.id,
            codec: head.codec,
            class: std::str::from_utf8(&frame[head.class()]).unwrap(),
            headers: &headers,
            content: &frame[head.content()],
        };
        let mut built = Vec::new();
        match (head.command, head.kind) {
            (command::HEARTBEAT, Kind::Response) => {
                let mut request = head;
                request.kind = Kind::Request;
                bolt::write_heartbeat_ack(&mut built, &request);
            }
            (command::HEARTBEAT, _) => bolt::write_heartbeat(&mut built, head.version, head.id),
            (_, Kind::Response) => bolt::write_response(&mut built, head.status, &parts),
            (_, kind) => bolt::write_request(&mut built, kind, head.timeout_ms, &parts),
        }
        assert!(built == frame, "{name}");
    }
}

#[test]
fn reads_the_words_of_a_captured_call() {
    let frame = common::frame("bolt1-attachments-req");
    let head = Head::parse(&frame).unwrap();
    assert_eq!(
        (head.kind, head.command, head.timeout_ms),
        (Kind::Request, command::REQUEST, 4000)
    );
    let headers = Headers::of(&frame, &head);
    assert_eq!(
        headers.clone().find(METHOD.as_bytes()),
        Some(b"attachments".as_slice())
    );
    let service = UniqueName::parse(headers.clone().find(SERVICE.as_bytes()).unwrap());
    assert_eq!(service.interface, b"com.example.mesh.api.DemoService");
    assert_eq!(
        (service.version, service.group),
        (b"1.0".as_slice(), b"".as_slice())
    );
    assert_eq!(headers.find(b"rpc_req_baggage.k"), Some(b"v1".as_slice()));
    let call = Call::decode(&frame[head.content()]).unwrap();
    assert_eq!(call.method, "attachments");

    let oneway = common::frame("bolt1-oneway-req");
    assert_eq!(Head::parse(&oneway).unwrap().kind, Kind::OneWay);

    let failed = common::frame("bolt1-exception-runtime-resp");
    let head = Head::parse(&failed).unwrap();
    assert_eq!(
        Headers::of(&failed, &head).find(RESPONSE_ERROR.as_bytes()),
        Some(b"true".as_slice())
    );
    let answer = Answer::decode(&failed[head.content()]).unwrap();
    assert_eq!(
        answer.response.get("detailMessage"),
        Some(&Value::from("bang"))
    );
}

#[test]
fn a_changed_id_keeps_the_checksum_right() {
    let mut frame = common::frame("bolt2-crc-hello-req");
    let mut head = Head::parse(&frame).unwrap();
    assert!(head.has_checksum());
    bolt::set_id(&mut frame, &mut head, 0x1122_3344);
    assert!(bolt::verify(&frame, &head).is_err());
    bolt::seal(&mut frame, &head);
    let head = Head::parse(&frame).unwrap();
    assert_eq!(head.id, 0x1122_3344);
    assert_eq!(bolt::verify(&frame, &head), Ok(()));
    let last = frame.len() - 10;
    frame[last] ^= 1;
    assert!(matches!(
        bolt::verify(&frame, &head),
        Err(FrameError::Checksum { .. })
    ));
    // ver1 1 has no checksum although the switch asks for one.
    let plain = common::frame("bolt2-nocrc-hello-req");
    assert!(!Head::parse(&plain).unwrap().has_checksum());
}

#[test]
fn worked_examples_of_the_document() {
    let request = |id| {
        let mut head = Head::parse(&common::frame("bolt1-hello-req")).unwrap();
        head.id = id;
        head
    };
    let mut out = Vec::new();
    bolt::write_status(&mut out, &request(7), status::NO_PROCESSOR);
    assert_eq!(
        out,
        common::unhex("0100000201000000070100060000000000000000")
    );
    out.clear();
    bolt::write_heartbeat(&mut out, Version::V2(2), 9);
    assert_eq!(
        out,
        common::unhex(
            "02010100000100000009 0100ffffffff0000000000000000"
                .replacen("0201", "0202", 1)
                .as_str()
        )
    );
    out.clear();
    bolt::write_goaway(&mut out, Version::V1, 1);
    assert_eq!(
        out,
        common::unhex(
            "01010064010000000101000000000000000000000000"[..44]
                .to_owned()
                .as_str()
        )
    );
    out.clear();
    bolt::write_exception(&mut out, &request(7), "refused");
    let head = Head::parse(&out).unwrap();
    assert_eq!((head.status, head.id), (2, 7));
    out.clear();
    bolt::write_error(&mut out, &request(7), "refused");
    let head = Head::parse(&out).unwrap();
    assert_eq!(
        Answer::decode(&out[head.content()])
            .unwrap()
            .error
            .as_deref(),
        Some("refused")
    );
}

#[test]
fn header_edits_reach_the_frame() {
    for name in [
        "bolt1-attachments-req",
        "bolt2-crc-hello-req",
        "bolt1-attachments-resp",
    ] {
        let frame = common::frame(name);
        let head = Head::parse(&frame).unwrap();
        let before = pairs(&frame, &head);
        let gone = before[0].0.clone();
        let edits = [
            Edit::Set(b"x-new", b"1"),
            Edit::Remove(gone.as_bytes()),
            Edit::Set(b"x-new", b"2"),
            Edit::Remove(b"absent"),
        ];
        let mut out = b"before".to_vec();
        rewrite_headers(&frame, &head, &edits, &mut out).unwrap();
        let out = &out[6..];
        assert_eq!(
            bolt::next_frame(out, &limits()),
            Ok(Next::Frame(out.len())),
            "{name}"
        );
        let changed = Head::parse(out).unwrap();
        assert_eq!(bolt::verify(out, &changed), Ok(()));
        let mut expected: Vec<_> = before.into_iter().filter(|(key, _)| *key != gone).collect();
        expected.push(("x-new".into(), "2".into()));
        assert_eq!(pairs(out, &changed), expected);
        assert_eq!(out[changed.content()], frame[head.content()]);
        let huge = vec![b'x'; 40_000];
        let mut untouched = Vec::new();
        assert!(rewrite_headers(&frame, &head, &[Edit::Set(b"k", &huge)], &mut untouched).is_err());
        assert!(untouched.is_empty());
    }
}

#[test]
fn null_strings_hide_their_pair_and_malformed_sections_are_refused() {
    let section = common::unhex("00000001 61 ffffffff 00000001 62 00000001 63");
    let all: Vec<_> = Headers::new(&section).collect();
    assert_eq!(all, [Ok((b"b".as_slice(), b"c".as_slice()))]);
    for bad in [
        "00000001",
        "00000001 61",
        "00000005 61",
        "fffffffe",
        "7fffffff 61",
        "00000001 61 000001",
    ] {
        let section = common::unhex(bad);
        assert!(Headers::new(&section).any(|pair| pair.is_err()), "{bad}");
    }
}

#[test]
fn refuses_what_no_peer_sends() {
    let good = common::frame("bolt1-hello-req");
    let change = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        bolt::next_frame(&frame, &limits())
    };
    assert!(change(0, &[3]).is_err(), "protocol");
    assert!(change(1, &[3]).is_err(), "type");
    assert!(change(2, &[0, 9]).is_err(), "command");
    assert!(change(14, &[0x80, 0]).is_err(), "class");
    assert!(
        matches!(change(16, &[0x7f, 0xff]), Ok(Next::NeedMore(_))),
        "largest header"
    );
    assert!(
        matches!(change(16, &[0x80, 0]), Err(FrameError::TooLarge { .. })),
        "header"
    );
    assert!(
        matches!(change(18, &[4, 0, 0, 0]), Err(FrameError::TooLarge { .. })),
        "content"
    );
    assert!(change(18, &[0xff; 4]).is_err(), "negative content");
    let small = Limits {
        frame_bytes: 100,
        header_bytes: 10,
    };
    assert!(bolt::next_frame(&good[..22], &small).is_err());
    assert_eq!(bolt::detect(b"GET / HTTP/1.1"), Some(false));
    assert_eq!(bolt::detect(&[1, 1]), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), first in 1u8..3) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() { *byte = first; }
        if let Ok(Next::Frame(len)) = bolt::next_frame(&bytes, &limits()) {
            let frame = &bytes[..len];
            let head = Head::parse(frame).unwrap();
            prop_assert_eq!(head.frame_len(), len);
            let _ = Headers::of(frame, &head).count();
            let mut out = Vec::new();
            let _ = rewrite_headers(frame, &head, &[Edit::Set(b"k", b"v")], &mut out);
        }
    }

    #[test]
    fn flipped_bytes_of_real_frames_never_panic(pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let names = common::names("bolt");
        let mut frame = common::frame(&names[pick.index(names.len())]);
        let at = at.index(frame.len());
        frame[at] = byte;
        if let Ok(Next::Frame(len)) = bolt::next_frame(&frame, &limits()) {
            let frame = &frame[..len];
            let head = Head::parse(frame).unwrap();
            let _ = bolt::verify(frame, &head);
            let _ = Headers::of(frame, &head).count();
            let content = &frame[head.content()];
            let _ = Call::decode(content);
            let _ = Answer::decode(content);
        }
    }
}
