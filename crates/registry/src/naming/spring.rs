//! Spring Cloud's names: an application, whatever the case it is written in.

use crate::model::{Instance, ServiceKey};

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

/// The application that an instance belongs to, as Spring Cloud's clients look for it.
pub fn application(instance: &Instance) -> &str {
    &instance.service.name
}
