//! Certificates and keys in PEM: in files, or in words that are only here.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;
use crate::secret::Secret;

/// Bytes of a file with certificates: a bundle of all public authorities has 300 KB.
const FILE_BYTES: u64 = 8 << 20;

/// A text in PEM, and what it came from.
pub(super) struct Pem<'a> {
    field: &'static str,
    file: Option<&'a Path>,
    text: Cow<'a, [u8]>,
}

impl<'a> Pem<'a> {
    /// What a file has now that a field of the configuration names.
    pub(super) fn of_file(field: &'static str, file: &'a Path) -> Result<Pem<'a>, TlsError> {
        let mut pem = Pem {
            field,
            file: Some(file),
            text: Cow::default(),
        };
        let read =
            File::open(file).and_then(|file| file.take(FILE_BYTES).read_to_end(pem.text.to_mut()));
        match read {
            Ok(_) => Ok(pem),
            Err(error) => Err(pem.wrong(&error)),
        }
    }

    /// What came from where a field names it.
    pub(super) fn of_word(field: &'static str, word: &'a Secret) -> Pem<'a> {
        Pem {
            field,
            file: None,
            text: Cow::Borrowed(word.reveal().as_bytes()),
        }
    }

    /// Says what is wrong with it.
    pub(super) fn wrong(&self, message: &(impl ToString + ?Sized)) -> TlsError {
        let (field, message) = (self.field, message.to_string());
        match self.file {
            Some(path) => TlsError::File {
                field,
                path: path.to_owned(),
                message,
            },
            None => TlsError::Word { field, message },
        }
    }

    /// The certificates, at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.text).collect();
        // The library's words have lines of what was read in them, and that may be a key.
        let found = found.map_err(|_| self.wrong("is not PEM"))?;
        if found.is_empty() {
            return Err(self.wrong("has no certificate in PEM"));
        }
        Ok(found)
    }

    /// The authorities.
    pub(super) fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.wrong(&error))?;
        }
        Ok(roots)
    }

    /// The key.
    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let message = "has no private key in PEM (PKCS#8, PKCS#1 or SEC1)";
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|_| self.wrong(message))
    }
}
