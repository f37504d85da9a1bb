//! Operators, against what Envoy 1.40 was seen to print and to refuse.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::response_flags::ResponseFlag;

fn info() -> RequestInfo<'static> {
    const HEADERS: [(&str, &str); 2] = [("user-agent", "curl/7.88.1"), ("x-q", "a\"b\\c\td")];
    let mut info = RequestInfo::new(UNIX_EPOCH + Duration::from_micros(1_795_388_733_540_215));
    info.request_headers = &HEADERS;
    info.method = Some("GET");
    info.path = Some("/abc?a=1&b=2");
    info.upstream_local = Some("127.0.0.1:1".parse().unwrap());
    info.authority = Some("host:80");
    info.protocol = Some("HTTP/1.1");
    info.response_code = Some(200);
    info.response_code_details = Some("via upstream");
    info.flags = ResponseFlag::UpstreamConnectionFailure.into();
    info.bytes_received = 3;
    info.bytes_sent = 5;
    info.upstream_host = Some("127.0.0.1:19901".parse().unwrap());
    info.upstream_cluster_raw = Some("up");
    info.downstream_remote = Some("10.1.10.23:1234".parse().unwrap());
    info.downstream_local = Some("[2001:db8:1234:5678:9abc::1]:80".parse().unwrap());
    info.timing.upstream_rx_first = Some(Duration::from_micros(1500));
    info.timing.downstream_tx_last = Some(Duration::from_micros(2600));
    info.timing.complete = Some(Duration::from_micros(2700));
    info
}

fn text(format: &str) -> String {
    let mut out = Vec::new();
    Format::compile(format).unwrap().write(&info(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn prints_what_envoy_prints() {
    for (format, expected) in [
        ("%START_TIME%", "2026-11-22T23:05:33.540Z"),
        ("%START_TIME(%s.%3f)%", "1795388733.540"),
        (
            "%START_TIME(%Y-%m-%dT%H:%M:%S.%6f%z %f %1f %j)%",
            "2026-11-22T23:05:33.540215+0000 540215000 5 326",
        ),
        (
            "%REQ(:METHOD)% %REQ(X-NONE?:PATH):4% %REQ(X-NONE)%",
            "GET /abc -",
        ),
        ("%REQ(X-NONE?USER-AGENT)%", "curl/7.88.1"),
        (
            "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
            "HTTP/1.1 200 UF UpstreamConnectionFailure",
        ),
        ("%RESPONSE_CODE_DETAILS%", "via_upstream"),
        ("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "via upstream"),
        (
            "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %REQUEST_DURATION%",
            "3 5 2 -",
        ),
        ("%RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "1 1"),
        (
            "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)% %COMMON_DURATION(DS_RX_BEG:FOO:us)%",
            "1500 -",
        ),
        ("%COMMON_DURATION(DS_TX_END:US_RX_BEG:us)%", "-1100"),
        (
            "%PATH% %PATH(NQ)% %PATH(WQ:ORIG)% %QUERY_PARAM(a)% %QUERY_PARAMS%",
            "/abc?a=1&b=2 /abc - 1 a=1&b=2",
        ),
        (
            "%UPSTREAM_HOST% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%",
            "127.0.0.1:19901 127.0.0.1:19901 127.0.0.1",
        ),
        (
            "%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_REMOTE_PORT%",
            "up up 19901",
        ),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%",
            "10.1.0.0/16",
        ),
        (
            "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(64)%",
            "2001:db8:1234:5678::/64",
        ),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(33)%", "10.1.10.23"),
        (
            "%DYNAMIC_METADATA(a:b)% %FILTER_STATE(x)% %DOWNSTREAM_PEER_SUBJECT%",
            "- - -",
        ),
        ("100%% %ACCESS_LOG_TYPE%", "100% DownstreamEnd"),
        (
            "%ENVIRONMENT(NO_SUCH_VARIABLE)% %UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "- 0",
        ),
    ] {
        assert_eq!(text(format), expected, "{format}");
    }
}

#[test]
fn the_default_format_is_envoys() {
    assert_eq!(
        text(DEFAULT),
        "[2026-11-22T23:05:33.540Z] \"GET /abc?a=1&b=2 HTTP/1.1\" 200 UF 3 5 2 - \"-\" \"curl/7.88.1\" \"-\" \"host:80\" \
         \"127.0.0.1:19901\"\n"
    );
}

#[test]
fn refuses_in_envoys_words() {
    for (format, complaint) in [
        ("%UNKNOWN%", "Not supported field in StreamInfo: UNKNOWN"),
        (
            "%PROTOCOL(x)%",
            "PROTOCOL does not take any parameters or length",
        ),
        (
            "%PROTOCOL:3%",
            "PROTOCOL does not take any parameters or length",
        ),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ()%", "REQ requires parameters"),
        (
            "%REQ(a?b?c)%",
            "More than 1 alternative header specified in token: a?b?c",
        ),
        (
            "%REQ(a",
            "Incorrect configuration: %REQ(a. Couldn't find valid command at position 0",
        ),
        (
            "x%",
            "Incorrect configuration: x%. Couldn't find valid command at position 1",
        ),
        (
            "%REQ(a):x%",
            "Incorrect configuration: %REQ(a):x%. Couldn't find valid command at position 0",
        ),
        (
            "%REQ(a)b%",
            "Incorrect configuration: %REQ(a)b%. Couldn't find valid command at position 0",
        ),
        (
            "%START_TIME(%n)%",
            "Invalid header configuration. Format string contains newline.",
        ),
        (
            "%START_TIME:3%",
            "START_TIME does not allow length to be specified.",
        ),
        (
            "%COMMON_DURATION(a)%",
            "Invalid common duration configuration: a.",
        ),
        (
            "%COMMON_DURATION(a:b:s)%",
            "Invalid common duration precision: s.",
        ),
        (
            "%PATH(X)%",
            "Invalid PATH option: 'X', only 'WQ'/'NQ' are allowed",
        ),
        (
            "%PATH(NQ:Y)%",
            "Invalid PATH option: 'Y', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed",
        ),
        ("%ENVIRONMENT()%", "ENVIRONMENT requires parameters"),
        (
            "%lower%",
            "Incorrect configuration: %lower%. Couldn't find valid command at position 0",
        ),
        (
            "%%%",
            "Incorrect configuration: %%%. Couldn't find valid command at position 2",
        ),
        (
            "%GRPC_STATUS(X)%",
            "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: X",
        ),
        (
            "a %PROTOCOL",
            "Incorrect configuration: a %PROTOCOL. Couldn't find valid command at position 2",
        ),
    ] {
        assert_eq!(
            Format::compile(format).unwrap_err().to_string(),
            complaint,
            "{format}"
        );
    }
}

fn json(format: &serde_json::Value, omit_empty: bool) -> String {
    let format = api::json::struct_from_value(format).unwrap();
    let mut out = Vec::new();
    JsonFormat::compile(&format, omit_empty)
        .unwrap()
        .write(&info(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn json_keeps_types_and_order() {
    let format = serde_json::json!({
        "z": "%DURATION%", "a": "%PROTOCOL%", "mix": "a%DURATION%b", "none": "%REQ(X-NONE)%", "mixnone": "x%REQ(X-NONE)%",
        "nest": {"b": "%BYTES_SENT%", "a": "%PATH%"}, "list": ["%DURATION%", "x", 3, "%REQ(X-NONE)%"], "t": true,
        "h": "%REQ(x-q)%", "lit": "", "flags": "%RESPONSE_FLAGS%", "st": "%START_TIME(%s)%",
    });
    assert_eq!(
        json(&format, false),
        r#"{"a":"HTTP/1.1","flags":"UF","h":"a\"b\\c\td","list":[2,"x",3,null],"lit":"","mix":"a2b","mixnone":"x-","nest":{"a":"/abc?a=1&b=2","b":5},"none":null,"st":"1795388733","t":true,"z":2}"#
            .to_owned()
            + "\n"
    );
}

#[test]
fn json_omits_empty_values() {
    let format = serde_json::json!({
        "z": "%DURATION%", "none": "%REQ(X-NONE)%", "mixnone": "x%REQ(X-NONE)%y", "nest": {"e": "%REQ(X-NONE)%"},
        "list": ["x", "%REQ(X-NONE)%"],
    });
    assert_eq!(
        json(&format, true),
        "{\"list\":[\"x\"],\"mixnone\":\"xy\",\"z\":2}\n"
    );
}

#[test]
fn json_names_the_wrong_key() {
    let format = serde_json::json!({"outer": {"list": ["%PROTOCOL%", "%NOPE%"]}});
    let format = api::json::struct_from_value(&format).unwrap();
    let error = JsonFormat::compile(&format, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "outer.list[1]: Not supported field in StreamInfo: NOPE"
    );
}
