//! A demo provider: listens, registers, answers, and deregisters when it is told to end.

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::register::Registration;
use super::{ProviderOptions, bolt, dubbo, http};
use crate::output;
use crate::up::plan::Protocol;

/// Answers until the process is told to end (TERM).
pub(super) async fn run(options: &ProviderOptions) -> anyhow::Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let registration = Registration::of(options);
    let serve = async {
        match options.protocol {
            Protocol::Http => http::serve(listener, &options.name).await,
            Protocol::Bolt => bolt::serve(listener, &options.name).await,
            Protocol::Dubbo => dubbo::serve(listener, &options.name).await,
        }
    };
    let register = async {
        if let Some(registration) = &registration {
            registration.keep().await;
        }
        std::future::pending().await
    };
    output::write(&format!("READY {}\n", options.name))?;
    tokio::select! {
        result = serve => result?,
        () = register => {}
        _ = end.recv() => {}
    }
    if let Some(registration) = &registration {
        registration.withdraw().await;
    }
    Ok(())
}
