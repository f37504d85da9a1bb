//! xDS over gRPC: the client that mosn has and the server that pilot has, as state machines with thin shells.

pub mod client;
pub mod server;
