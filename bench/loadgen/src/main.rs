//! Load generator and answering server of the benchmarks: Bolt and Dubbo on the project's own codecs, HTTP/1.1 only
//! as a server (wrk makes that load). One thread; results as one line of JSON.
#![allow(
    clippy::print_stdout,
    reason = "a command line program: its result goes to standard output"
)]

mod client;
mod frames;
mod hold;
mod server;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "loadgen", version, about = "Load for the mesh benchmarks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send calls with a fixed number in flight on each connection, and print rates and latencies as JSON
    Run {
        /// Protocol of the calls
        #[arg(long, value_enum)]
        protocol: Protocol,
        /// Where to send them
        #[arg(long)]
        addr: SocketAddr,
        /// Connections to open
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Calls in flight on each connection
        #[arg(long, default_value_t = 16)]
        in_flight: usize,
        /// How long new calls are sent, in seconds
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Stop after this many calls, if that comes first
        #[arg(long)]
        requests: Option<u64>,
    },
    /// Answer every call with a body of a fixed size; prints "READY address"
    Serve {
        /// Protocol to answer
        #[arg(long, value_enum)]
        protocol: Protocol,
        /// Address to listen on; port 0 takes a free one
        #[arg(long, default_value = "127.0.0.1:0")]
        addr: SocketAddr,
        /// Size of the answer's body in bytes
        #[arg(long, default_value_t = 1024)]
        body: usize,
    },
    /// Open connections, make one call on each, print "HELD n" and keep them open until standard input ends
    Hold {
        /// Protocol of the calls
        #[arg(long, value_enum)]
        protocol: Protocol,
        /// Where to connect
        #[arg(long)]
        addr: SocketAddr,
        /// Connections to open
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
}

/// What is spoken on the connections.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1 with keep-alive
    Http,
    /// SOFABolt v1
    Bolt,
    /// Dubbo2 with Hessian2 bodies
    Dubbo,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match cli.command {
        Command::Run {
            protocol,
            addr,
            connections,
            in_flight,
            seconds,
            requests,
        } => {
            anyhow::ensure!(
                protocol != Protocol::Http,
                "run speaks bolt and dubbo; use wrk for HTTP"
            );
            let plan = client::Plan {
                protocol,
                addr,
                connections,
                in_flight: in_flight.max(1),
                duration: Duration::try_from_secs_f64(seconds)?,
                requests: requests.unwrap_or(u64::MAX),
            };
            let report = runtime.block_on(client::run(plan))?;
            println!("{report}");
        }
        Command::Serve {
            protocol,
            addr,
            body,
        } => runtime.block_on(server::serve(protocol, addr, body))?,
        Command::Hold {
            protocol,
            addr,
            connections,
        } => runtime.block_on(hold::hold(protocol, addr, connections))?,
    }
    Ok(())
}
