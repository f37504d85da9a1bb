//! `meshctl`: the mesh's command line. It asks running proxies and pilot what they know, works with the registry, and
//! starts a whole mesh with demo applications on this machine (`up`).
//!
//! It sees every other crate, and none sees it. It must not hold logic of the mesh itself: what it shows it reads
//! from the same admin and debug addresses that anyone else can read.
//!
//! ```
//! // What `meshctl version` does.
//! assert_eq!(meshctl::run(["meshctl", "version"]), std::process::ExitCode::SUCCESS);
//! ```
#![allow(
    clippy::print_stdout,
    reason = "a command line program: its results go to standard output"
)]

mod cli;
mod demo;
mod http_client;
mod output;
mod proxy_config;
mod proxy_status;
mod registry_command;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, HiddenCommand};

/// Runs the program with these arguments, the first of which is its name, and returns its exit code: 0 when all went
/// well, 1 when it did not, 2 when the arguments are wrong.
pub fn run<I>(arguments: I) -> ExitCode
where
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail: whoever read the help has read enough.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.command {
        Command::Up(options) => up::run(&options),
        Command::ProxyStatus(options) => block_on(proxy_status::run(&options)),
        Command::ProxyConfig(options) => block_on(proxy_config::run(&options)),
        Command::Registry(options) => block_on(registry_command::run(&options)),
        Command::Completion { shell } => completion(shell),
        Command::Version => output::write(&format!("meshctl {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Hidden(HiddenCommand::Mosn { arguments }) => return up::child::mosn(arguments),
        Command::Hidden(HiddenCommand::Pilot { arguments }) => return up::child::pilot(arguments),
        Command::Hidden(HiddenCommand::Demo(options)) => {
            up::child::end_with_parent();
            block_on(demo::run(options))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
    output::write(&String::from_utf8_lossy(&script))
}

/// Runs a command on a runtime of one thread.
fn block_on<F: Future<Output = anyhow::Result<()>>>(future: F) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}
