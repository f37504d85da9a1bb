//! Where an instance runs, as Kubernetes, the registries and the frameworks say it.

use crate::model::Instance;

/// Istio's label for all three at once, with `/` or `.` between them.
const ISTIO: &str = "istio-locality";
/// The first that is there counts: Kubernetes' labels, Dubbo's and Spring Cloud's words, the data centre of SOFARegistry.
const REGIONS: [&str; 3] = ["topology.kubernetes.io/region", "region", "dataCenter"];
/// The same; SOFARegistry's zone is the second, Eureka's (in Amazon's data centres) and Nacos' cluster come last.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "zone",
    "eureka.availabilityZone",
    "nacos.cluster",
];
const SUB_ZONE: &str = "topology.istio.io/subzone";

impl Instance {
    /// `region/zone/subzone`, as Istio writes it, as far as the metadata say it; empty when they say none.
    pub fn locality(&self) -> String {
        let of = |key: &str| self.metadata.get(key).filter(|value| !value.is_empty());
        if let Some(all) = of(ISTIO) {
            return match all.contains('/') {
                true => all.to_owned(),
                false => all.replace('.', "/"),
            };
        }
        let first = |keys: &[&str]| keys.iter().find_map(|key| of(key)).unwrap_or_default();
        // A part cannot have what divides the parts.
        let parts = [first(&REGIONS), first(&ZONES), first(&[SUB_ZONE])];
        let parts = parts.map(|part| part.replace('/', "-"));
        parts.join("/").trim_end_matches('/').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Instance, ServiceKey};

    #[test]
    fn what_is_most_precise_counts() {
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[], ""),
            (&[("zone", "a")], "/a"),
            (&[("region", "east"), ("nacos.cluster", "SH")], "east/SH"),
            (
                &[
                    ("dataCenter", "DC2"),
                    ("zone", "Z1"),
                    ("nacos.cluster", "SH"),
                ],
                "DC2/Z1",
            ),
            (
                &[
                    ("topology.kubernetes.io/region", "east"),
                    ("topology.kubernetes.io/zone", "east/1"),
                    ("topology.istio.io/subzone", "rack"),
                    ("region", "west"),
                ],
                "east/east-1/rack",
            ),
            (
                &[("istio-locality", "east.1.rack"), ("zone", "a")],
                "east/1/rack",
            ),
            (&[("istio-locality", "east/1.2")], "east/1.2"),
        ];
        for (metadata, expected) in cases {
            let mut instance = Instance::new(ServiceKey::new("http", "shop"), "10.0.0.1", 80);
            instance.metadata = metadata.iter().copied().collect();
            assert_eq!(instance.locality(), expected);
        }
    }
}
