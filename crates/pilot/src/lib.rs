//! The control plane: Istio's configuration and registered services in, xDS out.
//!
//! ```text
//! files ──── source ─┐
//! registry ──────────┴─ controller ─ world ─ scope ─ generate ─ push ─ xds
//! ```
//! A [`world::World`] is what pilot knows at one moment and never changes. Proxies that get the same answer are one
//! [`proxy::Class`]; its resources are generated once ([`generate::Generated`]) and shared, encoded, by all connections.
//! The crate knows nothing of mosn beyond the names of its extensions.

pub mod args;
mod coalesce;
pub mod controller;
mod debug;
mod facades;
pub mod generate;
pub mod hosts;
pub mod istio;
mod metrics;
mod open_registry;
pub mod protocol;
pub mod proxy;
pub mod push;
pub mod scope;
mod server;
pub mod snapshot;
pub mod source;
pub mod world;

pub use server::{Pilot, main};
