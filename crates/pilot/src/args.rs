//! The command line, with istiod's names of flags.

mod login;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

pub use login::{Login, LoginFlags, NacosLogin, StoreLogin, ZookeeperLogin};

/// The control plane of the mesh.
#[derive(Debug, Parser)]
#[command(name = "pilot", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What pilot can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve proxies: read configuration and registrations, and push them over xDS.
    Discovery(Box<DiscoveryArgs>),
    /// Check configuration files and exit: 0 when all documents are valid.
    Validate(ValidateArgs),
}

/// Flags of `pilot discovery`.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("of_cluster").args(["config_kubernetes", "lease"]).multiple(true)))]
pub struct DiscoveryArgs {
    /// File of the mesh configuration; what it does not say has Istio's defaults.
    #[arg(long = "meshConfig", value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// Folder of configuration files, watched for changes.
    #[arg(long = "configDir", value_name = "FOLDER")]
    pub config_dir: Option<PathBuf>,
    /// Read configuration from Kubernetes too: the objects of Istio's networking kinds, RegistrySources and RegistrySyncs of all
    /// namespaces.
    #[arg(long = "configKubernetes")]
    pub config_kubernetes: bool,
    /// Address of xDS and of the registry's gRPC service.
    #[arg(long = "grpcAddr", value_name = "ADDRESS", default_value = "127.0.0.1:15010", value_parser = address)]
    pub grpc_addr: SocketAddr,
    /// Address of /ready, /debug and of the registry's HTTP service.
    #[arg(long = "httpAddr", value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = address)]
    pub http_addr: SocketAddr,
    /// Address of /metrics, /version and /debug.
    #[arg(long = "monitoringAddr", value_name = "ADDRESS", default_value = "127.0.0.1:15014", value_parser = address)]
    pub monitoring_addr: SocketAddr,
    /// Answer as a Eureka server on this address, below /eureka.
    #[arg(long = "eurekaAddr", value_name = "ADDRESS", value_parser = address)]
    pub eureka_addr: Option<SocketAddr>,
    /// Answer as a Nacos server on this address: HTTP here, gRPC on the port 1000 above, as Nacos' clients find it.
    #[arg(long = "nacosAddr", value_name = "ADDRESS", value_parser = address)]
    pub nacos_addr: Option<SocketAddr>,
    /// Who has to log in there.
    #[command(flatten)]
    pub nacos_login: Login<NacosLogin>,
    /// Answer as a session server of SOFARegistry on this address: the HTTP port that clients are configured with.
    #[arg(long = "sofaRegistryAddr", value_name = "ADDRESS", value_parser = address)]
    pub sofa_registry_addr: Option<SocketAddr>,
    /// Its Bolt port, which clients are told; the port after the other one if absent.
    #[arg(
        long = "sofaRegistryBoltAddr",
        value_name = "ADDRESS",
        value_parser = address,
        requires = "sofa_registry_addr"
    )]
    pub sofa_registry_bolt_addr: Option<SocketAddr>,
    /// Where clients are told that the Bolt port is, if they cannot reach it where they reach the other one.
    #[arg(
        long = "sofaRegistryAdvertisedAddr",
        value_name = "HOST:PORT",
        requires = "sofa_registry_addr"
    )]
    pub sofa_registry_advertised_addr: Option<String>,
    /// Answer as a ZooKeeper server on this address, in the layouts of Dubbo, SOFARPC and Spring Cloud.
    #[arg(long = "zookeeperAddr", value_name = "ADDRESS", value_parser = address)]
    pub zookeeper_addr: Option<SocketAddr>,
    /// Who has to log in there.
    #[command(flatten)]
    pub zookeeper_login: Login<ZookeeperLogin>,
    /// Service registries to read; `none` for none.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "osr"
    )]
    pub registries: Vec<RegistryName>,
    /// Folder where the embedded registry keeps what was registered; without it, it forgets when pilot ends.
    #[arg(long = "registryDir", value_name = "FOLDER")]
    pub registry_dir: Option<PathBuf>,
    /// File that the pilots of a mesh which see it lock: who has it leads the synchronisation of registries. Without it and
    /// --lease, the pilots that share a --registryStore agree on one there; without that too, this pilot leads.
    #[arg(long = "leaseFile", value_name = "FILE")]
    pub lease_file: Option<PathBuf>,
    /// Lease of Kubernetes, as namespace/name, that pilots which see no file of each other have for the same purpose.
    #[arg(long, value_name = "LEASE", conflicts_with = "lease_file", value_parser = lease)]
    pub lease: Option<(String, String)>,
    /// File, as kubectl has it, of the cluster of --configKubernetes and --lease; without it, the one that pilot runs in.
    #[arg(long, value_name = "FILE", requires = "of_cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// The Open Service Registry.
    #[command(flatten)]
    pub open_registry: OpenRegistryArgs,
    /// Its store, where pilots share one.
    #[command(flatten)]
    pub registry_store: RegistryStoreArgs,
    /// Domain of Kubernetes' service names.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// What is logged: trace, debug, info, warning, error or off.
    #[arg(
        long = "log_output_level",
        visible_alias = "log-level",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
}

/// Flags of the Open Service Registry's interfaces.
#[derive(Debug, Clone, Default, Args)]
pub struct OpenRegistryArgs {
    /// File of who may do what in the registry; without it everybody may on the loopback, and nobody elsewhere.
    #[arg(long = "registryAuth", value_name = "FILE")]
    pub auth: Option<PathBuf>,
    /// File for a line of JSON for each change to the registry, watch of it and refusal.
    #[arg(long = "registryAudit", value_name = "FILE")]
    pub audit: Option<PathBuf>,
    /// Bytes of that file before the next one is begun; five older ones are kept.
    #[arg(
        long = "registryAuditMaxBytes",
        value_name = "BYTES",
        default_value_t = 100 << 20,
        value_parser = clap::value_parser!(u64).range(1024..)
    )]
    pub audit_max_bytes: u64,
    /// Serve the registry, HTTP and gRPC, with TLS on this address.
    #[arg(
        long = "registryTlsAddr",
        value_name = "ADDRESS",
        value_parser = address,
        requires_all = ["tls_cert", "tls_key"]
    )]
    pub tls_addr: Option<SocketAddr>,
    /// Certificate of that address, in PEM.
    #[arg(id = "tls_cert", long = "registryTlsCert", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, in PEM.
    #[arg(id = "tls_key", long = "registryTlsKey", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authorities of clients' certificates, in PEM; a client that shows one is who it says.
    #[arg(long = "registryTlsClientCa", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
}

/// Flags of a store that several pilots share.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryStoreArgs {
    /// Keep what is registered in etcd, where other pilots find it: etcd://<host>:<port>[,...][/prefix], or etcds:// for TLS.
    #[arg(long = "registryStore", value_name = "URL")]
    pub url: Option<String>,
    /// Who logs in to it.
    #[command(flatten)]
    pub login: Login<StoreLogin>,
    /// Authorities that may have signed that etcd's certificate, in PEM; the system's when absent.
    #[arg(long = "registryStoreCaFile", value_name = "FILE", requires = "url")]
    pub ca_file: Option<PathBuf>,
    /// Pilot's certificate to that etcd, in PEM.
    #[arg(
        long = "registryStoreCertFile",
        value_name = "FILE",
        requires_all = ["url", "key_file"]
    )]
    pub cert_file: Option<PathBuf>,
    /// Its key, in PEM.
    #[arg(
        long = "registryStoreKeyFile",
        value_name = "FILE",
        requires = "cert_file"
    )]
    pub key_file: Option<PathBuf>,
}

/// Flags of `pilot validate`.
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    /// Folder of configuration files.
    #[arg(long = "configDir", value_name = "FOLDER")]
    pub config_dir: PathBuf,
}

/// A registry that pilot can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RegistryName {
    /// The embedded Open Service Registry.
    #[value(name = "osr", aliases = ["OSR", "mesh"])]
    Osr,
    /// None.
    #[value(name = "none", alias = "None")]
    None,
}

fn lease(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("`{text}` is not <namespace>/<name>")),
    }
}

/// An address; istiod's `:15010` binds the loopback here, not all interfaces.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    full.parse().map_err(|_| {
        format!("`{text}` is not <ip>:<port> (to listen on all interfaces: 0.0.0.0:<port>)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery(args: &[&str]) -> DiscoveryArgs {
        let args = ["pilot", "discovery"].iter().chain(args);
        match Cli::try_parse_from(args).expect("valid arguments").command {
            Command::Discovery(args) => *args,
            Command::Validate(_) => panic!("another command"),
        }
    }

    #[test]
    fn listens_on_the_loopback_unless_told_otherwise() {
        let args = discovery(&[]);
        assert_eq!(args.grpc_addr.to_string(), "127.0.0.1:15010");
        assert_eq!(args.http_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(args.monitoring_addr.to_string(), "127.0.0.1:15014");
        assert_eq!(args.registries, [RegistryName::Osr]);
        let args = discovery(&[
            "--grpcAddr",
            ":15099",
            "--httpAddr",
            "0.0.0.0:80",
            "--registries",
            "none",
        ]);
        assert_eq!(args.grpc_addr.to_string(), "127.0.0.1:15099");
        assert_eq!(args.http_addr.to_string(), "0.0.0.0:80");
        assert_eq!(args.registries, [RegistryName::None]);
        assert!(Cli::try_parse_from(["pilot", "discovery", "--grpcAddr", "here"]).is_err());
    }

    #[test]
    fn a_user_needs_a_password_and_its_store() {
        let args = discovery(&["--nacosUser", "mesh", "--nacosPasswordFile", "/p"]);
        let named = args
            .nacos_login
            .credentials()
            .map(|c| (c.username, c.password_file));
        assert_eq!(named, Some(("mesh".to_owned(), Some("/p".into()))));
        assert_eq!(args.zookeeper_login.credentials(), None);
        for wrong in [
            &["--nacosUser", "mesh"][..],
            &["--zookeeperPasswordFile", "/p"],
            &[
                "--registryStoreUser",
                "mesh",
                "--registryStorePasswordFile",
                "/p",
            ],
        ] {
            let args = ["pilot", "discovery"].iter().chain(wrong);
            assert!(Cli::try_parse_from(args).is_err(), "{wrong:?}");
        }
    }
}
