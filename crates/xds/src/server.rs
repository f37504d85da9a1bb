//! The aggregated discovery service, server side, state of the world.
//!
//! [`Connection`] is the state machine of one stream and knows no sockets: requests and resources in, decisions and
//! responses out. [`grpc::AdsService`] is its gRPC shell. Resources come encoded, in a [`ResourceSet`] that all
//! connections share: a response costs a connection its header and nothing else.

mod connection;
pub mod grpc;
mod resource;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Nack, Names, Reaction, Sent, Subscription};
pub use resource::{Resource, ResourceSet, Response};

/// Type URL of clusters (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of endpoints (EDS).
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of listeners (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of routes (RDS).
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// The order in which a change is pushed, so that nothing refers to what the client has not got.
pub const PUSH_ORDER: [&str; 4] = [CLUSTER, ENDPOINTS, LISTENER, ROUTE];

/// Whether a response lists everything there is, so that what is missing is gone. Of the other types (EDS, RDS) a
/// response may hold a part.
pub fn is_full_state(type_url: &str) -> bool {
    type_url == CLUSTER || type_url == LISTENER
}

/// `CDS`, `EDS`, … or the type's full name.
pub fn short_name(type_url: &str) -> &str {
    match type_url {
        CLUSTER => "CDS",
        ENDPOINTS => "EDS",
        LISTENER => "LDS",
        ROUTE => "RDS",
        other => other.rsplit('/').next().unwrap_or(other),
    }
}
