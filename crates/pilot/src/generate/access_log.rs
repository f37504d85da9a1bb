//! The mesh's access log as a setting of listeners.

use api::envoy::config::accesslog::v3::{AccessLog, access_log};
use api::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, data_source, substitution_format_string,
};
use api::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use prost_types::Struct;
use prost_types::value::Kind;
use serde_json::Value;

use super::message::string;
use crate::istio::mesh_config::{AccessLogEncoding, DEFAULT_ACCESS_LOG_FORMAT, MeshConfig};

/// Keys and operators of Istio's JSON access log.
const JSON_FORMAT: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// The access loggers of a filter: none or one.
pub(super) fn access_log(mesh: &MeshConfig) -> Vec<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return Vec::new();
    }
    let format = match mesh.access_log_encoding {
        AccessLogEncoding::Text => {
            let mut text = mesh.access_log_format.clone();
            if text.is_empty() {
                DEFAULT_ACCESS_LOG_FORMAT.clone_into(&mut text);
            } else if !text.ends_with('\n') {
                text.push('\n');
            }
            substitution_format_string::Format::TextFormatSource(DataSource {
                specifier: Some(data_source::Specifier::InlineString(text)),
                ..Default::default()
            })
        }
        AccessLogEncoding::Json => {
            substitution_format_string::Format::JsonFormat(json_format(mesh))
        }
    };
    let config = FileAccessLog {
        path: mesh.access_log_file.clone(),
        access_log_format: Some(file_access_log::AccessLogFormat::LogFormat(
            SubstitutionFormatString {
                format: Some(format),
                ..Default::default()
            },
        )),
    };
    vec![AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(api::any::pack(&config))),
        ..Default::default()
    }]
}

fn json_format(mesh: &MeshConfig) -> Struct {
    match serde_json::from_str(&mesh.access_log_format) {
        Ok(Value::Object(fields)) => from_json(&fields),
        _ => Struct {
            fields: JSON_FORMAT
                .iter()
                .map(|(key, format)| ((*key).to_owned(), string(*format)))
                .collect(),
        },
    }
}

fn from_json(fields: &serde_json::Map<String, Value>) -> Struct {
    let value = |value: &Value| match value {
        Value::Object(fields) => prost_types::Value {
            kind: Some(Kind::StructValue(from_json(fields))),
        },
        Value::String(text) => string(text.as_str()),
        other => string(other.to_string()),
    };
    Struct {
        fields: fields
            .iter()
            .map(|(key, item)| (key.clone(), value(item)))
            .collect(),
    }
}
