//! r
pub struct Handle;
impl Handle {
    pub async fn stop(self) {}
}
pub async fn start(
    _: &api::envoy::config::bootstrap::v3::Bootstrap,
    _: &crate::bootstrap::Flags,
) -> anyhow::Result<Option<Handle>> {
    Ok(None)
}
pub fn cluster_name(
    _: &api::envoy::config::bootstrap::v3::Bootstrap,
) -> Result<Option<String>, base::FieldError> {
    Ok(None)
}
