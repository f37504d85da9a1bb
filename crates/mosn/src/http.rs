//! The HTTP connection manager and the router, for HTTP/1.
//!
//! A downstream connection is one task. It holds no buffers while it waits; for each request it parses the head in place,
//! finds the route, takes an upstream connection out of the host's pool and moves bytes between the two sockets itself.
//!
//! - `connection`: waiting, reading heads, drain and time limits of a connection
//! - `request`, `path`: what is checked and changed before routes see a request
//! - `call`: from the head to the route; answers that need no upstream
//! - `forward`, `retry`, `deadlines`, `pause`: the router
//! - `exchange`, `tunnel`: bytes between both sides
//! - `upstream`: the connections to a host
//! - `reply`, `headers`, `date`: what is written

mod call;
mod config;
mod connection;
mod date;
mod deadlines;
mod exchange;
mod forward;
mod headers;
mod io;
mod path;
mod pause;
mod record;
mod reply;
mod request;
mod retry;
mod scratch;
mod stats;
mod timer;
mod tunnel;
pub mod upstream;

pub use config::Config;
pub use connection::serve;
