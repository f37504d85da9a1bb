//! The registries that pilot answers as, each on an address of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use anyhow::{Context, Result, anyhow, bail};
use registry::{Credentials, Hub, Registry, facades};
use tokio::net::TcpListener;

use crate::args::DiscoveryArgs;

/// A facade that is being served; ends only with an error.
type Serving = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Facades with their listeners bound.
#[derive(Default)]
pub(crate) struct Facades(Vec<Serving>);

impl Facades {
    /// Binds what the arguments ask for.
    pub(crate) async fn bind(
        args: &DiscoveryArgs,
        hub: &Hub,
        registry: Option<&Registry>,
    ) -> Result<Facades> {
        let mut facades = Facades::default();
        if let Some(address) = args.eureka_addr {
            let flag = "--eurekaAddr";
            let registry = writable(flag, registry)?;
            let listener = listen(flag, address).await?;
            let config = facades::eureka::Config {
                address: listener.local_addr()?,
            };
            let serving = facades::eureka::serve(listener, hub.clone(), registry, config);
            facades.add(flag, serving);
        }
        if let Some(address) = args.nacos_addr {
            let flag = "--nacosAddr";
            let registry = writable(flag, registry)?;
            let http = listen(flag, address).await?;
            let mut address = http.local_addr()?;
            let port = address.port().checked_add(facades::nacos::GRPC_OFFSET);
            let port = port.with_context(|| format!("{flag} {address}: gRPC has no port"))?;
            let config = facades::nacos::Config {
                address,
                credentials: readable(flag, args.nacos_login.credentials())?,
            };
            address.set_port(port);
            let grpc = listen(flag, address).await?;
            let serving = facades::nacos::serve(http, grpc, hub.clone(), registry, config);
            facades.add(flag, serving);
        }
        if let Some(address) = args.sofa_registry_addr {
            let flag = "--sofaRegistryAddr";
            let registry = writable(flag, registry)?;
            let http = listen(flag, address).await?;
            let bolt = match args.sofa_registry_bolt_addr {
                Some(address) => address,
                None => next_port(http.local_addr()?)?,
            };
            let bolt = listen("--sofaRegistryBoltAddr", bolt).await?;
            let mut config = facades::sofaregistry::Config::new(bolt.local_addr()?);
            config
                .advertised
                .clone_from(&args.sofa_registry_advertised_addr);
            let serving = facades::sofaregistry::serve(http, bolt, hub.clone(), registry, config);
            facades.add(flag, serving);
        }
        if let Some(address) = args.zookeeper_addr {
            let flag = "--zookeeperAddr";
            let registry = writable(flag, registry)?;
            let listener = listen(flag, address).await?;
            let digest = readable(flag, args.zookeeper_login.credentials())?;
            let config = facades::zookeeper::Config {
                address: listener.local_addr()?,
                digest,
            };
            let serving = facades::zookeeper::serve(listener, hub.clone(), registry, config);
            facades.add(flag, serving);
        }
        Ok(facades)
    }

    fn add(
        &mut self,
        flag: &'static str,
        serving: impl Future<Output = std::io::Result<()>> + Send + 'static,
    ) {
        self.0
            .push(Box::pin(async move { serving.await.context(flag) }));
    }

    /// Serves all of them until one fails; without any it waits for ever.
    pub(crate) async fn run(self) -> Result<()> {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(self.0).await.0
    }
}

/// What applications register is kept in the embedded registry.
fn writable(flag: &str, registry: Option<&Registry>) -> Result<Registry> {
    match registry {
        Some(registry) => Ok(registry.clone()),
        None => bail!("{flag} needs the registry osr in --registries"),
    }
}

/// Who has to log in, with a password that can be read; it is read again at each log-in.
fn readable(flag: &str, credentials: Option<Credentials>) -> Result<Option<Credentials>> {
    if let Some(credentials) = &credentials {
        let password = credentials.password();
        password.map_err(|error| anyhow!("{flag}: {error}"))?;
    }
    Ok(credentials)
}

fn next_port(address: SocketAddr) -> Result<SocketAddr> {
    let port = address.port().checked_add(1);
    let port = port.context("--sofaRegistryBoltAddr is needed: there is no next port")?;
    Ok(SocketAddr::new(address.ip(), port))
}

async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}: cannot listen"))
}
