//! Words that must not be seen: in logs, errors and debug pages a secret is three stars.

use std::fmt;
use std::path::PathBuf;

use base::FieldError;
use serde::{Deserialize, Serialize, Serializer};

/// A password or token.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The word itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl From<String> for Secret {
    fn from(word: String) -> Secret {
        Secret(word)
    }
}

/// A word in a Secret of Kubernetes: one in the namespace of the object that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret's name.
    pub name: String,
    /// The word's key in it.
    pub key: String,
}

/// Why a Secret cannot be named.
pub(crate) const NO_SECRETS: &str = "only an object in Kubernetes can name a Secret";

/// Who logs in to a registry: a name, and a password here or in a file, which is read at each log-in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// A file that holds it, as Kubernetes mounts a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// A Secret that holds it: [`crate::RegistrySource::resolve`] puts its word in the place of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretKey>,
}

impl Credentials {
    /// Whether the password is given once.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.password_secret.is_some() {
            return Err(FieldError::at("passwordSecret", NO_SECRETS));
        }
        if self.password.is_some() == self.password_file.is_some() {
            let message = "one of password, passwordFile and passwordSecret is required";
            return Err(FieldError::at("password", message));
        }
        Ok(())
    }

    /// Puts the word of the Secret, if one is named, in the place of its name.
    pub(crate) fn resolve(
        &mut self,
        word: &impl Fn(&SecretKey) -> Result<Secret, String>,
    ) -> Result<(), FieldError> {
        let Some(key) = &self.password_secret else {
            return Ok(());
        };
        if self.password.is_some() || self.password_file.is_some() {
            let message = "one of password, passwordFile and passwordSecret is required";
            return Err(FieldError::at("password", message));
        }
        let found = word(key).map_err(|why| FieldError::at("passwordSecret", why))?;
        self.password = Some(found);
        self.password_secret = None;
        Ok(())
    }

    /// The password as it is now.
    pub fn password(&self) -> Result<Secret, String> {
        match (&self.password, &self.password_file) {
            (Some(password), _) => Ok(password.clone()),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map(|text| Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
                .map_err(|error| format!("passwordFile {}: {error}", file.display())),
            (None, None) => Err("there is no password".to_owned()),
        }
    }
}
