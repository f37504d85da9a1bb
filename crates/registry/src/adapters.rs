//! The registries that the hub can read and write, one module each.

use base::FieldError;
use serde::Deserialize;

use crate::source::Link;

/// Which registry a source is, and how it is reached: exactly one of these in a `RegistrySource`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Config {}

impl Config {
    /// The word of the configuration for this kind of registry.
    pub fn kind(&self) -> &'static str {
        match *self {}
    }

    /// Checks what deserialisation cannot.
    pub fn validate(&self) -> Result<(), FieldError> {
        match *self {}
    }
}

/// Reads and writes the registry until it is dropped.
pub(crate) async fn run(config: Config, _link: Link) {
    match config {}
}
