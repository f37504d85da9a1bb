//! Access logs from configuration to file.

use std::time::{Duration, Instant, UNIX_EPOCH};

use api::envoy::config::accesslog::v3 as proto;
use serde_json::{Value, json};

use super::{AccessLog, Sinks};
use crate::request_info::RequestInfo;
use crate::response_flags::ResponseFlag;
use crate::stats::Registry;

const NEVER: Duration = Duration::from_secs(3600);

fn config(value: Value) -> Vec<proto::AccessLog> {
    let Value::Array(items) = value else {
        panic!("a list")
    };
    items
        .iter()
        .map(|item| api::json::from_value(item).unwrap())
        .collect()
}

fn file(path: &std::path::Path, format: &str) -> Value {
    json!([{"name": "a", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "log_format": {"text_format_source": {"inline_string": format}},
    }}])
}

fn info() -> RequestInfo<'static> {
    let mut info = RequestInfo::new(UNIX_EPOCH);
    info.response_code = Some(503);
    info.flags = ResponseFlag::NoHealthyUpstream.into();
    info.timing.complete = Some(Duration::from_millis(20));
    info
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} never happened");
        std::thread::yield_now();
    }
}

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn lines_reach_the_file_by_interval_by_size_at_flush_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, path) = (Registry::new(), folder.path().join("log"));
    let quick = Sinks::new(&registry, Duration::from_millis(5));
    let log = AccessLog::compile(&config(file(&path, "a %RESPONSE_CODE%\n")), &quick).unwrap();
    log.log(&info());
    wait_for("the flush by interval", || read(&path) == "a 503\n");

    let slow = Sinks::new(&registry, NEVER);
    let path = folder.path().join("slow");
    let log = AccessLog::compile(&config(file(&path, "%RESPONSE_CODE%\n")), &slow).unwrap();
    log.log(&info());
    slow.flush();
    assert_eq!(read(&path), "503\n");
    for _ in 0..64 * 1024 / 4 {
        log.log(&info());
    }
    wait_for("the flush by size", || read(&path).len() == 4 + 64 * 1024);
    log.log(&info());
    drop(log);
    wait_for("the flush at the end", || {
        read(&path).len() == 8 + 64 * 1024
    });
}

#[test]
fn reopening_follows_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
    let sinks = Sinks::new(&Registry::new(), NEVER);
    let log = AccessLog::compile(&config(file(&path, "%RESPONSE_FLAGS%\n")), &sinks).unwrap();
    log.log(&info());
    std::fs::rename(&path, &old).unwrap();
    sinks.reopen();
    wait_for("the new file", || path.exists());
    log.log(&info());
    sinks.flush();
    assert_eq!(
        (read(&old).as_str(), read(&path).as_str()),
        ("UH\n", "UH\n")
    );
}

#[test]
fn two_logs_of_one_path_share_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let sinks = Sinks::new(&Registry::new(), NEVER);
    let logs: Vec<_> = ["a\n", "b\n"]
        .map(|line| AccessLog::compile(&config(file(&path, line)), &sinks).unwrap())
        .into();
    logs.iter().for_each(|log| log.log(&info()));
    sinks.flush();
    assert_eq!(read(&path), "a\nb\n");
}

#[test]
fn filters_decide() {
    let value = |op: &str, value: u32| json!({"comparison": {"op": op, "value": {"default_value": value, "runtime_key": "k"}}});
    let (is_5xx, is_4xx) = (
        json!({"status_code_filter": value("GE", 500)}),
        json!({"status_code_filter": value("EQ", 404)}),
    );
    for (filter, logged) in [
        (is_5xx.clone(), true),
        (is_4xx.clone(), false),
        (json!({"duration_filter": value("LE", 20)}), true),
        (json!({"duration_filter": value("NE", 20)}), false),
        (json!({"not_health_check_filter": {}}), true),
        (
            json!({"response_flag_filter": {"flags": ["UH", "NR"]}}),
            true,
        ),
        (json!({"response_flag_filter": {"flags": ["NR"]}}), false),
        (json!({"response_flag_filter": {}}), true),
        (
            json!({"and_filter": {"filters": [is_5xx.clone(), is_4xx.clone()]}}),
            false,
        ),
        (json!({"or_filter": {"filters": [is_5xx, is_4xx]}}), true),
        (
            json!({"runtime_filter": {"runtime_key": "k", "percent_sampled": {"numerator": 100}}}),
            true,
        ),
        (
            json!({"runtime_filter": {"runtime_key": "k", "percent_sampled": {"numerator": 0}}}),
            false,
        ),
    ] {
        let filter: proto::AccessLogFilter = api::json::from_value(&filter).unwrap();
        let compiled = super::Filter::compile(&filter).unwrap();
        assert_eq!(compiled.passes(&info()), logged, "{filter:?}");
    }
}

#[test]
fn errors_name_the_field() {
    let sinks = Sinks::new(&Registry::new(), NEVER);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut filtered = file(&path, "x");
    filtered[0]["filter"] = json!({"or_filter": {"filters": [{"not_health_check_filter": {}}, {"traceable_filter": {}}]}});
    let mut nowhere = file(&folder.path().join("no/such/folder"), "x");
    nowhere[0]["name"] = json!("b");
    for (config_value, start) in [
        (
            file(&path, "%NOPE%"),
            "[0].typed_config.log_format.text_format_source: Not supported field in StreamInfo: NOPE",
        ),
        (
            filtered,
            "[0].filter.or_filter.filters[1].traceable_filter: is not supported",
        ),
        (nowhere, "[0].typed_config.path: unable to open file '"),
    ] {
        let error = AccessLog::compile(&config(config_value), &sinks)
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with(start), "{error}");
    }
}
