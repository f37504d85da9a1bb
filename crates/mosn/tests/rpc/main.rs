//! RPC calls through a running mosn, between callers and servers written on the wire crate.
#![allow(clippy::indexing_slicing, reason = "frames of our own making")]

mod bolt;
mod dubbo;
mod support;

fn size_of_future<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn the_future_of_an_idle_connection_is_small() {
    let size = size_of_future(mosn::rpc::serve);
    assert!(size <= 640, "{size} bytes");
}
