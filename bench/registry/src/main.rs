//! Load for the benchmarks of the registry, over its gRPC interface; results as one line of JSON.
#![allow(
    clippy::print_stdout,
    reason = "a command line program: its result goes to standard output"
)]

mod acks;
mod fill;
mod instances;
mod watch;

use std::time::Duration;

use api::mesh::registry::v1::registry_service_client::RegistryServiceClient;
use clap::{Parser, Subcommand};
use tonic::transport::{Channel, Endpoint};

/// A client of one connection.
pub(crate) type Client = RegistryServiceClient<Channel>;

#[derive(Parser)]
#[command(
    name = "registryload",
    version,
    about = "Load for the registry's benchmarks"
)]
struct Cli {
    /// `host:port` of the registry's gRPC interface
    #[arg(long)]
    addr: String,
    /// Services that the instances are spread over
    #[arg(long, default_value_t = 50_000)]
    services: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Register instances in batches, some calls at a time, and print how long it took
    Fill {
        /// How many, in all
        #[arg(long, default_value_t = 1_000_000)]
        instances: usize,
        /// Those before this number are there already
        #[arg(long, default_value_t = 0)]
        skip: usize,
        /// Instances of one call
        #[arg(long, default_value_t = 1000)]
        batch: usize,
        /// Calls at a time
        #[arg(long, default_value_t = 4)]
        calls: usize,
    },
    /// Change an instance and see when a proxy that is connected through a relay here acknowledges it
    Acks {
        /// Changes, one after the other
        #[arg(long, default_value_t = 500)]
        changes: u32,
    },
    /// Watch services, change their instances at a fixed rate, and print how long changes take to the watchers
    Watch {
        /// Open watches, each of one service
        #[arg(long, default_value_t = 10_000)]
        watchers: usize,
        /// Watches of the same service
        #[arg(long, default_value_t = 10)]
        fan_out: usize,
        /// Connections that they share
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Changes a second, each a call of its own
        #[arg(long, default_value_t = 2000)]
        rate: u32,
        /// For how long, in seconds
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = match cli.command {
        Command::Fill {
            instances,
            skip,
            batch,
            calls,
        } => runtime.block_on(fill::run(&fill::Plan {
            addr: cli.addr,
            services: cli.services,
            instances: skip..instances,
            batch: batch.max(1),
            calls: calls.max(1),
        }))?,
        Command::Acks { changes } => runtime.block_on(acks::run(cli.addr, changes))?,
        Command::Watch {
            watchers,
            fan_out,
            connections,
            rate,
            seconds,
        } => runtime.block_on(watch::run(watch::Plan {
            addr: cli.addr,
            services: cli.services,
            watchers,
            fan_out: fan_out.max(1),
            connections: connections.max(1),
            rate: rate.max(1),
            duration: Duration::try_from_secs_f64(seconds)?,
        }))?,
    };
    println!("{report}");
    Ok(())
}

/// Opens one connection.
pub(crate) async fn connect(addr: &str) -> anyhow::Result<Client> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?
        .tcp_nodelay(true)
        .initial_connection_window_size(16 << 20);
    Ok(RegistryServiceClient::new(endpoint.connect().await?))
}
