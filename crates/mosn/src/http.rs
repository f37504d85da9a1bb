//! http

use std::rc::Rc;
use std::sync::Arc;

use base::FieldError;

use crate::config::CompileContext;
use crate::listener::Downstream;
use crate::worker::Worker;

/// Compiled configuration.
pub struct Config;

impl Config {
    /// c
    pub fn compile(
        _: &api::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
        _: &CompileContext,
    ) -> Result<Config, FieldError> {
        Ok(Config)
    }
    /// The name of the route configuration that comes by RDS.
    pub fn rds_name(&self) -> Option<&str> {
        None
    }
}

/// Serves one downstream connection.
pub async fn serve(_conn: Downstream, _config: Arc<Config>, _worker: Rc<Worker>) {}

/// Upstream connections.
pub mod upstream {
    /// Connections to one host.
    #[derive(Default)]
    pub struct HostPool;
    impl HostPool {
        /// Closes what is idle.
        pub fn close_idle(&self) {}
    }
}
