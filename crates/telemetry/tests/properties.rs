//! What comes from configuration and from peers never breaks a log line or the statistics' text.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use telemetry::format::{Format, JsonFormat};
use telemetry::prometheus;
use telemetry::request_info::RequestInfo;
use telemetry::stats::Registry;
use telemetry::stats::tags::extract;

/// Text that is more often near an operator than chance would have it.
fn near_format() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("%".to_owned()),
        Just("REQ(a?b):3%".to_owned()),
        Just("START_TIME(%Y %3f %E4Y%)%".to_owned()),
        Just("COMMON_DURATION(DS_RX_BEG:".to_owned()),
        Just("PATH(NQ:ORIG)".to_owned()),
        Just("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(200)%".to_owned()),
        "[A-Z_]{0,20}",
        "\\PC{0,8}",
        "[%:()?0-9]{0,6}",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_format_compiles_or_is_refused(text in near_format(), path in "\\PC*", secs in 0u64..1 << 40) {
        let Ok(format) = Format::compile(&text) else { return Ok(()) };
        let mut info = RequestInfo::new(UNIX_EPOCH + Duration::from_secs(secs));
        info.path = Some(&path);
        info.downstream_local = Some(([127, 0, 0, 1], 80).into());
        let mut out = Vec::new();
        format.write(&info, &mut out);
        if let Some(literal) = format.literal() {
            prop_assert_eq!(out, literal.as_bytes());
        }
    }

    #[test]
    fn a_json_line_is_json_whatever_the_request_says(path in any::<String>(), agent in "\\PC*") {
        let format = serde_json::json!({"path": "%PATH%", "mixed": "a%REQ(user-agent)%b", "code": "%RESPONSE_CODE%"});
        let format = JsonFormat::compile(&api::json::struct_from_value(&format).unwrap(), false).unwrap();
        let headers = [("user-agent", agent.as_str())];
        let mut info = RequestInfo::new(UNIX_EPOCH);
        info.path = Some(&path);
        info.request_headers = &headers;
        let mut out = Vec::new();
        format.write(&info, &mut out);
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(line, serde_json::json!({"path": path, "mixed": format!("a{agent}b"), "code": 0}));
    }

    #[test]
    fn any_name_is_a_statistic(
        name in prop_oneof!["(cluster|http|listener|tcp|rpc|vhost)\\.[a-z0-9_.;|\\[\\]]{0,24}", "\\PC{0,24}"],
    ) {
        let tagged = extract(&name);
        prop_assert!(tagged.name.len() <= name.len());
        let registry = Registry::new();
        let counter = registry.counter(&name);
        counter.inc();
        let snapshot = registry.snapshot();
        prop_assert_eq!(snapshot.counter(&name), Some(1));
        let text = prometheus::write(&snapshot, prometheus::Options::default(), |_| true);
        prop_assert_eq!(text.lines().count(), 2, "{}", text);
        prop_assert_eq!(text.strip_suffix(" 1\n").map(|line| line.ends_with("}")), Some(true));
    }
}
