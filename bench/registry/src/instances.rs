//! What is registered: instances as Dubbo's applications register theirs, with six pairs of metadata.

use api::mesh::registry::v1::Instance;

const ZONES: [&str; 3] = ["cn-hangzhou-g", "cn-hangzhou-h", "cn-shanghai-b"];

/// Name of the service of a number.
pub(crate) fn service(number: usize) -> String {
    let domain = ["order", "payment", "inventory", "member", "logistics"]
        .get(number % 5)
        .copied()
        .unwrap_or_default();
    format!("com.company.{domain}.api.Facade{number}Service")
}

/// The instance of a number; its address is its own.
pub(crate) fn instance(number: usize, services: usize) -> Instance {
    let [_, a, b, c] = u32::try_from(number).unwrap_or_default().to_be_bytes();
    let service_number = number % services;
    let pair = |key: &str, value: String| (key.to_owned(), value);
    Instance {
        protocol: "dubbo".to_owned(),
        service: service(service_number),
        version: "1.0.0".to_owned(),
        group: if service_number.is_multiple_of(4) {
            "HSF"
        } else {
            ""
        }
        .to_owned(),
        address: format!("10.{a}.{b}.{c}"),
        port: 20880,
        metadata: [
            pair(
                "application",
                format!("app-{}-provider", service_number % 997),
            ),
            pair(
                "zone",
                ZONES
                    .get(number % 3)
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            pair("serialization", "hessian2".to_owned()),
            pair("release", "3.2.14".to_owned()),
            pair("pid", (1000 + number % 30_000).to_string()),
            pair("timestamp", (1_764_000_000_000 + number as u64).to_string()),
        ]
        .into_iter()
        .collect(),
        // Nobody renews them while it is measured.
        ttl_ms: Some(6 * 60 * 60 * 1000),
        ..Instance::default()
    }
}
