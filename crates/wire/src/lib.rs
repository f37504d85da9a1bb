//! Codecs without I/O: bytes in, frames out. Nothing here knows sockets, clocks or an async runtime,
//! so the proxy, the load generator, the demo applications and the tests use the same code.
//!
//! Bytes from outside never panic, never recurse without a bound, and never allocate more than they
//! pay for.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::unwrap_used))]

pub mod bolt;
pub mod dubbo;
pub mod frame;
pub mod hessian2;
pub mod http1;
pub mod jute;
pub mod sofaregistry;
