//! The side that connects.

use std::path::PathBuf;
use std::sync::Arc;

use base::FieldError;
use http::Uri;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};

use super::{TlsError, authorities, certificates, private_key, provider};

/// `tls` of an adapter: whom it trusts, and with what it proves who it is. Files are read at each connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientTls {
    /// Authorities that may have signed the server's certificate, in PEM; the system's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate, and those between it and its authority, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have; the host of the address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Takes any certificate: whoever is in between can read and change everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify: bool,
}

impl ClientTls {
    /// Checks what deserialisation cannot; reads no file.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            let message = "certFile and keyFile belong together: only one is given";
            return Err(FieldError::at("certFile", message));
        }
        if self.insecure_skip_verify && self.ca_file.is_some() {
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
            builder.with_root_certificates(match &self.ca_file {
                Some(file) => authorities("caFile", file)?,
                None => system_authorities()?,
            })
        };
        match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => {
                let chain = certificates("certFile", certificate)?;
                let key = private_key("keyFile", key)?;
                Ok(builder.with_client_auth_cert(chain, key)?)
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
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
