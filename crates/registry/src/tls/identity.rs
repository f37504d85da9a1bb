//! Who a certificate says its holder is.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The names in a certificate whose chain was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// URIs, a SPIFFE id among them.
    pub uris: Vec<String>,
    /// Host names.
    pub dns_names: Vec<String>,
    /// The subject's common name.
    pub common_name: Option<String>,
}

impl Identity {
    /// The names in a certificate in DER.
    pub fn of(certificate: &[u8]) -> Result<Identity, String> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
        let mut identity = Identity::default();
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| e.to_string())?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => identity.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => identity.dns_names.push((*name).to_owned()),
                _ => {}
            }
        }
        let mut common_names = certificate.subject().iter_common_name();
        identity.common_name = common_names
            .next()
            .and_then(|name| name.as_str().ok())
            .map(ToOwned::to_owned);
        Ok(identity)
    }

    /// The name to authorise by: a SPIFFE id, another URI, a host name, or else the common name.
    pub fn name(&self) -> Option<&str> {
        let spiffe = self.uris.iter().find(|uri| uri.starts_with("spiffe://"));
        let name = spiffe.or(self.uris.first()).or(self.dns_names.first());
        name.or(self.common_name.as_ref()).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn the_most_specific_name_is_who_asks() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["agent.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "agent");
        let identity = |params: &CertificateParams| {
            Identity::of(params.self_signed(&key).unwrap().der()).unwrap()
        };
        let by_host = identity(&params);
        assert_eq!(by_host.name(), Some("agent.example"));
        for uri in ["https://agent.example/", "spiffe://mesh/ns/a/sa/b"] {
            let name = SanType::URI(Ia5String::try_from(uri).unwrap());
            params.subject_alt_names.push(name);
        }
        assert_eq!(identity(&params).name(), Some("spiffe://mesh/ns/a/sa/b"));
        params.subject_alt_names.clear();
        assert_eq!(identity(&params).name(), Some("agent"));
    }

    proptest! {
        #[test]
        fn no_certificate_is_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Identity::of(&bytes);
        }

        #[test]
        fn no_broken_certificate_is_the_end(at in 0usize..400, byte: u8) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["agent.example".to_owned()]).unwrap();
            let mut der = params.self_signed(&key).unwrap().der().to_vec();
            if let Some(place) = der.get_mut(at) {
                *place = byte;
            }
            let _ = Identity::of(&der);
        }
    }
}
