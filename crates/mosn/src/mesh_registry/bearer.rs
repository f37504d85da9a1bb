//! The token that the registry asks for (RFC 6750).

use std::path::Path;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Puts a token on each call, if there is one.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// The token that a file holds now.
    pub(super) fn read(file: Option<&Path>) -> Result<Bearer, String> {
        let Some(file) = file else {
            return Ok(Bearer(None));
        };
        let token = std::fs::read_to_string(file)
            .map_err(|error| format!("token_file {}: {error}", file.display()))?;
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| format!("token_file {}: holds no token", file.display()))?;
        // It is not shown in whatever prints a request.
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", value.clone());
        }
        Ok(request)
    }
}
