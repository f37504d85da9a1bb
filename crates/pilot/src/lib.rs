//! The control plane: Istio's configuration and registered services in, xDS out.

pub mod istio;
pub mod protocol;
