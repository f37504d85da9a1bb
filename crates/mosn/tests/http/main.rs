//! HTTP at its sockets: beside the real Envoy, and in motion.

mod envoy;
mod flow;
mod support;
