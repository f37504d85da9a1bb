//! r
pub struct Table;
impl Table {
    pub fn compile(
        _: &api::envoy::config::route::v3::RouteConfiguration,
        _: &crate::config::CompileContext,
        _: &dyn Fn(&str) -> bool,
    ) -> Result<Table, base::FieldError> {
        Ok(Table)
    }
}
