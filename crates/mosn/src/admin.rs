//! r
pub async fn start(
    _: &crate::server::State,
    _: tokio::sync::mpsc::UnboundedSender<crate::server::Event>,
    _: telemetry::stats::Registry,
) -> anyhow::Result<()> {
    Ok(())
}
