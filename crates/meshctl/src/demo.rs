//! The demo applications of `meshctl up`: providers that answer in HTTP, Bolt or Dubbo, and consumers that call them
//! through their sidecar. They know nothing of the mesh but the address of their own sidecar (and, for Dubbo, of the
//! registry).

pub(crate) mod bolt;
pub(crate) mod client;
pub(crate) mod consumer;
pub(crate) mod dubbo;
mod http;
mod provider;
mod register;

use std::net::SocketAddrV4;

use clap::{Args, Subcommand};

use crate::up::plan::Protocol;

#[derive(Args)]
pub(crate) struct DemoOptions {
    #[command(subcommand)]
    role: DemoRole,
}

#[derive(Subcommand)]
enum DemoRole {
    /// Answer calls
    Provider(ProviderOptions),
    /// Call a provider again and again, and print what came of it as a JSON document each second
    Consumer(ConsumerOptions),
}

#[derive(Args)]
struct ProviderOptions {
    /// Its name, with which every answer begins
    #[arg(long)]
    name: String,
    /// The name of its application
    #[arg(long)]
    app: String,
    #[arg(long, value_enum)]
    protocol: Protocol,
    #[arg(long)]
    listen: SocketAddrV4,
    /// Where to register: a sidecar's MeshRegistry for Bolt, the Open Service Registry for Dubbo
    #[arg(long)]
    registry: Option<String>,
    /// The address to register with the Open Service Registry: that of the sidecar
    #[arg(long)]
    advertise: Option<SocketAddrV4>,
}

#[derive(Args)]
struct ConsumerOptions {
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// The sidecar
    #[arg(long)]
    target: SocketAddrV4,
    /// Calls a second
    #[arg(long)]
    rate: u32,
}

/// Runs a demo application until it is told to end.
pub(crate) async fn run(options: DemoOptions) -> anyhow::Result<()> {
    match options.role {
        DemoRole::Provider(options) => provider::run(&options).await,
        DemoRole::Consumer(options) => consumer::run(&options).await,
    }
}

/// The text of an answer: who answers, the header `demo-user` of the call, and the call's argument.
fn answer(name: &str, user: &str, argument: &str) -> String {
    format!("{name}|{user}|{argument}")
}

#[cfg(test)]
mod tests;
