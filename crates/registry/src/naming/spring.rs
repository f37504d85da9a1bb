//! Spring Cloud's names: an application, whatever the case it is written in.

use crate::model::{DEFAULT_WEIGHT, Instance, ServiceKey};

/// Metadata key that load balancers take for a weight.
pub(crate) const WEIGHT: &str = "weight";
/// A word of this name that is larger means something else.
const WEIGHT_MAX: u32 = 65_535;

/// The protocol of Spring Cloud's applications.
pub const PROTOCOL: &str = "springcloud";

/// An instance of an application.
pub fn instance<'a>(
    application: &str,
    address: &str,
    port: u16,
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Instance {
    let key = ServiceKey::new(PROTOCOL, &application.to_ascii_lowercase());
    Instance {
        metadata: metadata.into_iter().collect(),
        ttl: None,
        ..Instance::new(key, address, port)
    }
}

/// The weight that the metadata of an instance say.
pub(crate) fn weight(said: Option<&str>) -> u32 {
    said.and_then(|weight| weight.parse().ok())
        .filter(|weight| *weight <= WEIGHT_MAX)
        .unwrap_or(DEFAULT_WEIGHT)
}

/// The application that an instance belongs to, as Spring Cloud's clients look for it.
pub fn application(instance: &Instance) -> &str {
    &instance.service.name
}
