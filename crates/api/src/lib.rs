//! The API of the mesh as Rust types: Envoy's v3 protos and our own, with the protobuf JSON mapping.
//!
//! Modules mirror the protobuf packages: `envoy.config.route.v3.Route` is [`envoy::config::route::v3::Route`],
//! well-known types are in [`google::protobuf`]. The crate knows nothing of sockets, files or what a message means.
//!
//! ```
//! use api::envoy::config::core::v3::SocketAddress;
//!
//! let value = api::yaml::to_value("{ address: 127.0.0.1, portValue: 80 }").unwrap();
//! let address: SocketAddress = api::json::from_value(&value).unwrap();
//! assert_eq!(api::json::to_value(&address).unwrap()["port_value"], 80);
//! let wrong = api::yaml::to_value("{ adress: 127.0.0.1 }").unwrap();
//! let error = api::json::from_value::<SocketAddress>(&wrong).unwrap_err();
//! assert!(error.to_string().starts_with("adress: unknown field"));
//! ```

pub mod any;
pub mod json;
mod rules;
#[allow(
    clippy::needless_update,
    reason = "the generated rules name what differs from the rest, which may be all"
)]
mod table;
pub mod time;
pub mod validate;
mod wire;
pub mod yaml;

/// Generated code: one module per package.
#[allow(
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all,
    rustdoc::all,
    clippy::needless_pass_by_value
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/include.rs"));
}

pub use generated::*;

/// The Open Service Registry's gRPC service as it is written, for those who generate clients of it.
pub const REGISTRY_PROTO: &str = include_str!("../proto/mesh/registry/v1/registry.proto");
