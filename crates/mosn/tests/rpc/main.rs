//! RPC calls through a running mosn, between callers and servers written on the wire crate.
#![allow(clippy::indexing_slicing, reason = "frames of our own making")]

mod bolt;
mod dubbo;
mod support;
