//! The data plane: a proxy that is configured as Envoy is and speaks HTTP, Dubbo and Bolt.
//!
//! One main thread owns configuration, xDS, DNS and admin; N workers share nothing on the path of a request.

pub mod admin;
pub mod bootstrap;
pub mod cluster;
pub mod config;
pub mod fault;
pub mod http;
pub mod listener;
pub mod manager;
pub mod mesh_registry;
pub mod route;
pub mod rpc;
pub mod server;
pub mod tcp_proxy;
pub mod worker;
pub mod xds;

pub use server::main;
