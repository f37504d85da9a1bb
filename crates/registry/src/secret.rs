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
}

impl Credentials {
    /// Whether the password is given once.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.password.is_some() == self.password_file.is_some() {
            let message = "one of password and passwordFile is required";
            return Err(FieldError::at("password", message));
        }
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
