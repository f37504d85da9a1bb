//! The side that connects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::FieldError;
use http::Uri;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};

use super::pem::Pem;
use super::{TlsError, provider};
use crate::secret::{NO_SECRETS, Secret, SecretKey};

/// `tls` of an adapter: whom it trusts, and with what it proves who it is. Files are read at each connection; what a Secret
/// has is here and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientTls {
    /// Authorities that may have signed the server's certificate, in PEM; the system's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A Secret that has them: [`crate::RegistrySource::resolve`] puts them in the place of this, as with all that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretKey>,
    /// The client's certificate, and those between it and its authority, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// A Secret that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_secret: Option<SecretKey>,
    /// Its key, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// A Secret that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_secret: Option<SecretKey>,
    /// The name that the server's certificate must have; the host of the address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Takes any certificate: whoever is in between can read and change everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify: bool,
    /// What the Secret of `caSecret` has.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Secret>,
    /// What that of `certSecret` has.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub cert: Option<Secret>,
    /// What that of `keySecret` has.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
}

impl ClientTls {
    /// Checks what deserialisation cannot; reads no file.
    pub fn validate(&self) -> Result<(), FieldError> {
        let secrets = [
            ("caSecret", &self.ca_secret),
            ("certSecret", &self.cert_secret),
            ("keySecret", &self.key_secret),
        ];
        if let Some((field, _)) = secrets.iter().find(|(_, secret)| secret.is_some()) {
            return Err(FieldError::at(field, NO_SECRETS));
        }
        let has_certificate = self.cert_file.is_some() || self.cert.is_some();
        let has_key = self.key_file.is_some() || self.key.is_some();
        if has_certificate != has_key {
            let message = "a certificate and its key belong together: only one is given";
            return Err(FieldError::at("certFile", message));
        }
        if self.insecure_skip_verify && (self.ca_file.is_some() || self.ca.is_some()) {
            let message = "has no meaning with insecureSkipVerify";
            return Err(FieldError::at("caFile", message));
        }
        match &self.server_name {
            Some(name) if ServerName::try_from(name.as_str()).is_err() => {
                let message = format!("must be a host name or an IP address, is {name:?}");
                Err(FieldError::at("serverName", message))
            }
            _ => Ok(()),
        }
    }

    /// Puts what Secrets have in the place of their names.
    pub(crate) fn resolve(
        &mut self,
        word: &impl Fn(&SecretKey) -> Result<Secret, String>,
    ) -> Result<(), FieldError> {
        let all = [
            (
                "caFile",
                &self.ca_file,
                "caSecret",
                &mut self.ca_secret,
                &mut self.ca,
            ),
            (
                "certFile",
                &self.cert_file,
                "certSecret",
                &mut self.cert_secret,
                &mut self.cert,
            ),
            (
                "keyFile",
                &self.key_file,
                "keySecret",
                &mut self.key_secret,
                &mut self.key,
            ),
        ];
        for (file_field, file, field, secret, here) in all {
            let Some(key) = secret else { continue };
            if file.is_some() {
                let message = format!("only one of {file_field} and {field} can be given");
                return Err(FieldError::at(file_field, message));
            }
            *here = Some(word(key).map_err(|why| FieldError::at(field, why))?);
            *secret = None;
        }
        Ok(())
    }

    /// Reads the files as they are now.
    pub fn config(&self) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = if self.insecure_skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            let ca = pem(
                ["caFile", "caSecret"],
                self.ca_file.as_deref(),
                self.ca.as_ref(),
            )?;
            builder.with_root_certificates(match ca {
                Some(ca) => ca.authorities()?,
                None => system_authorities()?,
            })
        };
        let (file, word) = (self.cert_file.as_deref(), self.cert.as_ref());
        let certificate = pem(["certFile", "certSecret"], file, word)?;
        let (file, word) = (self.key_file.as_deref(), self.key.as_ref());
        match (certificate, pem(["keyFile", "keySecret"], file, word)?) {
            (Some(certificate), Some(key)) => {
                let (chain, key) = (certificate.certificates()?, key.private_key()?);
                Ok(builder.with_client_auth_cert(chain, key)?)
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

/// What one of two fields names.
fn pem<'a>(
    [of_file, of_word]: [&'static str; 2],
    file: Option<&'a Path>,
    word: Option<&'a Secret>,
) -> Result<Option<Pem<'a>>, TlsError> {
    let word = word.map(|word| Ok(Pem::of_word(of_word, word)));
    let file = || file.map(|file| Pem::of_file(of_file, file));
    word.or_else(file).transpose()
}

/// Checks the URL of a server: `https` where TLS is configured, `http` or `https` else.
pub(crate) fn check_url(text: &str, tls: Option<&ClientTls>) -> Result<Uri, String> {
    // The text itself is not in the message: it may have a password in it.
    let uri: Uri = text.parse().map_err(|e| format!("must be a URL: {e}"))?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if tls.is_none() => {}
        Some("http") => return Err("must begin with https://, because tls is given".to_owned()),
        _ => return Err("must begin with http:// or https://".to_owned()),
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err("must have no user and password in it".to_owned());
    }
    if uri.query().is_some() {
        return Err("must have no query".to_owned());
    }
    Ok(uri)
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have certificates among them that nothing can read.
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let reason = if errors.is_empty() {
            "there are none".to_owned()
        } else {
            errors.join(", ")
        };
        return Err(TlsError::NoRoots(reason));
    }
    Ok(roots)
}

/// Takes every certificate whose key the server has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use serde_json::json;

    use super::*;

    fn read(more: &serde_json::Value) -> ClientTls {
        let mut tls = json!({
            "caSecret": {"name": "tls", "key": "ca.crt"},
            "certSecret": {"name": "tls", "key": "tls.crt"},
            "keySecret": {"name": "tls", "key": "tls.key"},
        });
        tls.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(tls).unwrap()
    }

    #[test]
    fn what_secrets_have_is_used_and_never_shown() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let words = |key_word: String| {
            let certificate = certificate.clone();
            move |wanted: &SecretKey| match (&*wanted.name, &*wanted.key) {
                ("tls", "ca.crt" | "tls.crt") => Ok(Secret::from(certificate.clone())),
                ("tls", "tls.key") => Ok(Secret::from(key_word.clone())),
                _ => Err("is not there".to_owned()),
            }
        };
        let mut tls = read(&json!({}));
        assert_eq!(
            tls.validate().unwrap_err().to_string(),
            format!("caSecret: {NO_SECRETS}")
        );
        tls.resolve(&words(key.serialize_pem().trim_end().to_owned()))
            .unwrap();
        tls.validate().unwrap();
        assert!(tls.config().unwrap().client_auth_cert_resolver.has_certs());
        let shown = format!("{tls:?} {}", json!(tls));
        assert!(shown.contains("***") && !shown.contains("BEGIN"), "{shown}");

        let mut other = read(&json!({}));
        other.resolve(&words("MIGHAgEA no key".to_owned())).unwrap();
        assert_ne!(tls, other, "a changed Secret changes the configuration");
        let error = other.config().unwrap_err().to_string();
        assert!(
            error.starts_with("keySecret: has no private key in PEM"),
            "{error}"
        );
        let mut wrong = read(&json!({"caSecret": {"name": "tls", "key": "tls.key"}}));
        let broken = "-----BEGIN CERTIFICATE\nMIGHAgEA\n";
        wrong.resolve(&words(broken.to_owned())).unwrap();
        let error = wrong.config().unwrap_err().to_string();
        assert!(
            error.starts_with("caSecret: ") && !error.contains("MIGH"),
            "{error}"
        );

        let mut absent = read(&json!({"certSecret": {"name": "none", "key": "tls.crt"}}));
        let error = absent.resolve(&words(String::new())).unwrap_err();
        assert_eq!(error.to_string(), "certSecret: is not there");
        let mut twice = read(&json!({"keyFile": "/etc/key"}));
        let error = twice.resolve(&words(String::new())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "keyFile: only one of keyFile and keySecret can be given"
        );
        // In configuration words have no place.
        serde_json::from_value::<ClientTls>(json!({"key": "word"})).unwrap_err();
    }
}
