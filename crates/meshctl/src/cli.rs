//! The commands, their options and their help.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::demo::DemoOptions;

#[derive(Parser)]
#[command(
    name = "meshctl",
    version,
    about = "Runs a mesh on this machine and shows what its proxies, its control plane and its registry know",
    propagate_version = false,
    max_term_width = 100,
    after_help = "Examples:
  meshctl up                                   # a whole mesh with demo applications
  meshctl proxy-status                         # which proxies have the newest configuration
  meshctl proxy-config routes cart-v1          # what a proxy of `meshctl up` routes
  meshctl proxy-config clusters 127.0.0.1:15000 -o json
  meshctl registry list --protocol bolt"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the whole mesh on this machine, with demo applications that call each other
    Up(UpOptions),
    /// Show which proxies are connected to pilot, and whether they have the newest configuration
    #[command(visible_alias = "ps")]
    ProxyStatus(ProxyStatusOptions),
    /// Show the configuration of a proxy (mosn or Envoy)
    #[command(visible_alias = "pc")]
    ProxyConfig(ProxyConfigOptions),
    /// Look into the registry and change it
    Registry(RegistryOptions),
    /// Print a script that completes meshctl's commands in your shell
    #[command(after_help = "Examples:
  meshctl completion bash > /etc/bash_completion.d/meshctl
  meshctl completion zsh > \"${fpath[1]}/_meshctl\"
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    /// The programs that `up` starts
    #[command(flatten)]
    Hidden(HiddenCommand),
}

#[derive(Subcommand)]
pub(crate) enum HiddenCommand {
    /// Run mosn
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Mosn {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run pilot
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Pilot {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a demo application
    #[command(hide = true)]
    Demo(DemoOptions),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(Args)]
#[command(after_help = "Examples:
  meshctl up                        # start it, watch it, stop it with Ctrl-C
  meshctl up --once                 # a fixed script of calls; exit code 0 if all went as they should
  meshctl up --dir ./mesh           # keep the generated YAML here; edit ./mesh/config while it runs

While it runs, every file below DIR/config can be changed: pilot reads it anew and the sidecars follow.
In another terminal, with the same --dir or none:
  meshctl proxy-status
  meshctl proxy-config routes web-v1
  meshctl registry list")]
pub(crate) struct UpOptions {
    /// Make a fixed script of calls, report, and exit with 0 if all went as they should or else 1
    #[arg(long)]
    pub(crate) once: bool,
    /// Folder of the generated configuration, the registry's data and the logs
    /// [default: a folder of its own for --once, else $XDG_RUNTIME_DIR/meshctl or /tmp/meshctl-USER]
    #[arg(long, env = "MESHCTL_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The first three numbers of the loopback addresses to use; a free one is looked for if absent
    #[arg(long, value_name = "127.A.B")]
    pub(crate) network: Option<String>,
    /// Calls a second of each demo consumer
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rate: u32,
    /// Print plain lines even on a terminal
    #[arg(long)]
    pub(crate) plain: bool,
}

#[derive(Args)]
pub(crate) struct PilotAddress {
    /// Pilot's HTTP address [default: that of a running `meshctl up`, or else 127.0.0.1:8080]
    #[arg(long, env = "MESHCTL_PILOT", value_name = "HOST:PORT")]
    pub(crate) pilot: Option<String>,
    /// Folder of the `meshctl up` to ask, if it was started with --dir
    #[arg(long, env = "MESHCTL_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  meshctl proxy-status
  meshctl proxy-status web-v1.demo
  meshctl proxy-status --pilot 10.0.0.5:8080 -o json

SYNCED: the proxy has acknowledged the last push. STALE: it has not answered yet. ERROR: it has refused it.
NOT SENT: pilot had nothing to send. IGNORED: the proxy does not ask for this type.")]
pub(crate) struct ProxyStatusOptions {
    /// Only this proxy
    pub(crate) proxy: Option<String>,
    #[command(flatten)]
    pub(crate) pilot: PilotAddress,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Args)]
#[command(after_help = "Examples:
  meshctl proxy-config listeners web-v1            # a proxy of `meshctl up`
  meshctl proxy-config routes 127.0.0.1:15000      # any mosn or Envoy, by its admin address
  curl 127.0.0.1:15000/config_dump?include_eds > dump.json
  meshctl proxy-config endpoints --file dump.json  # what a proxy had as its configuration")]
pub(crate) struct ProxyConfigOptions {
    #[command(subcommand)]
    pub(crate) what: ProxyConfigCommand,
}

#[derive(Subcommand)]
pub(crate) enum ProxyConfigCommand {
    /// The addresses a proxy listens on
    #[command(visible_aliases = ["listener", "l"], after_help = "Examples:
  meshctl proxy-config listeners web-v1
  meshctl proxy-config listeners 127.0.0.1:15000 --port 12220 -o yaml")]
    Listeners {
        #[command(flatten)]
        source: ProxySource,
        /// Only listeners on this port
        #[arg(long)]
        port: Option<u16>,
        /// Only listeners on this address
        #[arg(long)]
        address: Option<String>,
        /// Only the listener of this name
        #[arg(long)]
        name: Option<String>,
    },
    /// Where a proxy sends which calls
    #[command(visible_aliases = ["route", "r"], after_help = "Examples:
  meshctl proxy-config routes cart-v1
  meshctl proxy-config routes cart-v1 --name 12220 -o json")]
    Routes {
        #[command(flatten)]
        source: ProxySource,
        /// Only the route configuration of this name
        #[arg(long)]
        name: Option<String>,
    },
    /// The services a proxy knows
    #[command(visible_aliases = ["cluster", "c"], after_help = "Examples:
  meshctl proxy-config clusters web-v1
  meshctl proxy-config clusters web-v1 --fqdn stock.demo --direction outbound")]
    Clusters {
        #[command(flatten)]
        source: ProxySource,
        /// Only clusters of this host
        #[arg(long)]
        fqdn: Option<String>,
        /// Only clusters of this service port
        #[arg(long)]
        port: Option<u16>,
        /// Only clusters of this subset
        #[arg(long)]
        subset: Option<String>,
        /// Only clusters of this direction: inbound or outbound
        #[arg(long)]
        direction: Option<String>,
    },
    /// The addresses behind the services, and how they do
    #[command(visible_aliases = ["endpoint", "ep"], after_help = "Examples:
  meshctl proxy-config endpoints web-v1
  meshctl proxy-config endpoints web-v1 --cluster 'outbound|8080||stock.demo' -o json")]
    Endpoints {
        #[command(flatten)]
        source: ProxySource,
        /// Only endpoints of this cluster
        #[arg(long)]
        cluster: Option<String>,
        /// Only endpoints on this address
        #[arg(long)]
        address: Option<String>,
        /// Only endpoints on this port
        #[arg(long)]
        port: Option<u16>,
        /// Only endpoints in this state, e.g. healthy or unhealthy
        #[arg(long)]
        status: Option<String>,
    },
}

#[derive(Args)]
pub(crate) struct ProxySource {
    /// The proxy: its name in a running `meshctl up`, or the address of its admin interface (HOST:PORT)
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) proxy: Option<String>,
    /// Read what a proxy answered to /config_dump?include_eds from this file; - is standard input
    #[arg(short, long)]
    pub(crate) file: Option<PathBuf>,
    /// Folder of the `meshctl up` to ask, if it was started with --dir
    #[arg(long, env = "MESHCTL_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Args)]
#[command(after_help = "Examples:
  meshctl registry list
  meshctl registry watch --service demo.PriceService")]
pub(crate) struct RegistryOptions {
    #[command(subcommand)]
    pub(crate) what: RegistryCommand,
}

#[derive(Subcommand)]
pub(crate) enum RegistryCommand {
    /// Show the registered instances
    #[command(after_help = "Examples:
  meshctl registry list
  meshctl registry list --protocol dubbo --service com.foo.Orders -o json")]
    List {
        #[command(flatten)]
        selector: SelectorOptions,
        #[command(flatten)]
        registry: RegistryAddress,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Register an instance, until its lease ends or it is deregistered
    #[command(after_help = "Examples:
  meshctl registry register --protocol dubbo --service com.foo.Orders --address 10.0.0.7 --port 20880
  meshctl registry register --protocol http --service stock --address 10.0.0.8 --port 8080 \\
      --version 2.0 --metadata zone=east --ttl 0")]
    Register {
        /// Protocol: bolt, dubbo, tri, grpc, http, ...
        #[arg(long)]
        protocol: String,
        /// Interface or name, without version and group
        #[arg(long)]
        service: String,
        /// IP address or host name of the instance
        #[arg(long)]
        address: String,
        /// Port of the instance
        #[arg(long)]
        port: u16,
        /// Version of the interface
        #[arg(long)]
        version: Option<String>,
        /// Group of the interface
        #[arg(long)]
        group: Option<String>,
        /// Share of the calls in relation to the other instances [default: 100]
        #[arg(long)]
        weight: Option<u32>,
        /// A word of the instance; may be given more than once
        #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
        metadata: Vec<(String, String)>,
        /// Seconds until the instance lapses unless it is renewed; 0: it stays until it is deregistered
        #[arg(long, default_value_t = 0)]
        ttl: u64,
        #[command(flatten)]
        registry: RegistryAddress,
    },
    /// Take an instance out
    #[command(after_help = "Examples:
  meshctl registry deregister --protocol dubbo --service com.foo.Orders --id 10.0.0.7:20880")]
    Deregister {
        /// Protocol of the service
        #[arg(long)]
        protocol: String,
        /// Interface or name
        #[arg(long)]
        service: String,
        /// The instance's id, as `registry list` shows it
        #[arg(long)]
        id: String,
        #[command(flatten)]
        registry: RegistryAddress,
    },
    /// Save all that is registered to a file, as it is at one moment
    #[command(after_help = "Examples:
  meshctl registry snapshot registry.snapshot")]
    Snapshot {
        /// The file; one that is there is replaced
        file: PathBuf,
        #[command(flatten)]
        pilot: PilotAddress,
        /// File with the token that the registry asks for
        #[arg(long, env = "MESHCTL_TOKEN_FILE", value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Put what a file holds that `snapshot` has made into an empty registry: all of it, or nothing if the file is damaged
    #[command(after_help = "Examples:
  meshctl registry restore registry.snapshot")]
    Restore {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        pilot: PilotAddress,
        /// File with the token that the registry asks for
        #[arg(long, env = "MESHCTL_TOKEN_FILE", value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Print what is registered, and then every change as it happens
    #[command(after_help = "Examples:
  meshctl registry watch --protocol bolt
  meshctl registry watch -o json | jq .")]
    Watch {
        #[command(flatten)]
        selector: SelectorOptions,
        #[command(flatten)]
        registry: RegistryAddress,
        /// How to print: a line for each change, or one JSON document a line
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

#[derive(Args)]
pub(crate) struct RegistryAddress {
    #[command(flatten)]
    pub(crate) pilot: PilotAddress,
    /// Namespace of the services; `*` lists and watches all
    #[arg(short, long, env = "MESHCTL_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    /// File with the token that the registry asks for
    #[arg(long, env = "MESHCTL_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct SelectorOptions {
    /// Only services of this protocol
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// Only the service of this name
    #[arg(long)]
    pub(crate) service: Option<String>,
    /// Only instances of this version
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// Only instances of this group
    #[arg(long)]
    pub(crate) group: Option<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

/// Parses `127.A.B`.
pub(crate) fn network(text: &str) -> anyhow::Result<[u8; 3]> {
    let address: Ipv4Addr = format!("{text}.0")
        .parse()
        .map_err(|_| anyhow::anyhow!("--network {text}: must be three numbers like 127.77.0"))?;
    let [a, b, c, _] = address.octets();
    anyhow::ensure!(a == 127, "--network {text}: must begin with 127");
    Ok([a, b, c])
}
