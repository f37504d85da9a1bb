//! Who may speak: clients log in with a name and a password, and show the token that they got.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::secret::Credentials;

/// After this long clients log in again. Old ones do it at no other time: so long they are locked out by a pilot that has
/// started anew.
pub(super) const TOKEN_SECS: u64 = 60;
/// As long as a token is taken.
const TAKEN: Duration = Duration::from_secs(600);
/// Tokens at a time.
const TOKENS: usize = 50_000;
const TOKEN_BYTES: usize = 24;

/// What a client shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown<'a> {
    pub(super) token: Option<&'a str>,
    pub(super) username: Option<&'a str>,
    pub(super) password: Option<&'a str>,
}

/// The credentials and who has shown them.
pub(super) struct Access {
    credentials: Option<Credentials>,
    tokens: Mutex<HashMap<String, Instant>>,
}

impl Access {
    /// Without credentials whoever reaches the address may read and register.
    pub(super) fn new(credentials: Option<Credentials>) -> Access {
        Access {
            credentials,
            tokens: Mutex::default(),
        }
    }

    /// Gives a token; an error says why not.
    pub(super) fn login(&self, username: &str, password: &str) -> Result<String, String> {
        if !self.is_known(username, password)? {
            tracing::warn!(
                username = crate::naming::shorten(username),
                "a client of the Nacos facade gave wrong credentials"
            );
            return Err("unknown user!".to_owned());
        }
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
        let mut token = String::with_capacity(2 * TOKEN_BYTES);
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(token, "{byte:02x}");
        }
        let now = Instant::now();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS {
            tokens.retain(|_, until| *until > now);
        }
        if tokens.len() >= TOKENS {
            return Err("too many clients have logged in".to_owned());
        }
        tokens.insert(token.clone(), now + TAKEN);
        Ok(token)
    }

    /// Whether a client may do what it asks.
    pub(super) fn permits(&self, shown: Shown<'_>) -> bool {
        if self.credentials.is_none() {
            return true;
        }
        if let Some(token) = shown.token {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens
                .get(token)
                .is_some_and(|until| *until > Instant::now())
            {
                return true;
            }
        }
        match (shown.username, shown.password) {
            (Some(username), Some(password)) => {
                self.is_known(username, password).is_ok_and(|known| known)
            }
            _ => false,
        }
    }

    fn is_known(&self, username: &str, password: &str) -> Result<bool, String> {
        let Some(credentials) = &self.credentials else {
            return Ok(true);
        };
        let expected = credentials.password().inspect_err(|error| {
            tracing::error!(error, "the Nacos facade cannot read its password");
        });
        let expected = expected.map_err(|_| "the server's password cannot be read".to_owned())?;
        let same_name = same(username.as_bytes(), credentials.username.as_bytes());
        let same_password = same(password.as_bytes(), expected.reveal().as_bytes());
        Ok(same_name & same_password & !expected.reveal().is_empty())
    }
}

/// In a time that says nothing about where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_gave_the_password_is_permitted() {
        let open = Access::new(None);
        assert!(open.permits(Shown::default()));
        assert!(open.login("any", "any").is_ok());
        let credentials = serde_json::from_str(r#"{"username":"u","password":"p"}"#);
        let closed = Access::new(Some(credentials.expect("credentials")));
        assert!(!closed.permits(Shown::default()));
        assert_eq!(closed.login("u", "x"), Err("unknown user!".to_owned()));
        let token = closed.login("u", "p").expect("a token");
        let with = |token| Shown {
            token: Some(token),
            ..Shown::default()
        };
        assert!(closed.permits(with(&token)));
        assert!(!closed.permits(with("x")));
        let (username, password) = (Some("u"), Some("p"));
        assert!(closed.permits(Shown {
            token: None,
            username,
            password
        }));
    }
}
