//! Who may do what in which namespace. Without rules nobody may do anything, but for a registry that only this machine reaches.

mod peer;
mod policy;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::osr::Registry;
use crate::quota::SharedQuotas;
use crate::sessions::{SessionClaim, SessionId};
pub use peer::Peer;
use policy::Policy;
use tokens::Tokens;

/// Between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(1);
/// What stays wrong is said again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// A larger file is refused.
const FILE_BYTES: u64 = 4 << 20;
/// Who gives no credentials.
const ANONYMOUS: &str = "anonymous";

/// What is done to a namespace; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// List, get and watch.
    Read,
    /// Register, renew, deregister.
    Write,
    /// Whatever is about the registry itself.
    Admin,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Write => "write",
            Action::Admin => "administer",
        }
    }
}

/// Who asks, as its credentials say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// `token:NAME`, `spiffe://…`, `dns:NAME`, `cn:NAME`; `anonymous` for none.
    names: Vec<Arc<str>>,
    /// Where it asks from, if that is known.
    pub peer: Option<std::net::SocketAddr>,
}

impl Caller {
    /// Its claim on a session.
    pub(crate) fn claim(&self, id: SessionId) -> SessionClaim {
        SessionClaim {
            id,
            owner: self.name().into(),
        }
    }

    /// All its names as one.
    pub fn name(&self) -> String {
        self.names.join(",")
    }
}

/// The rules in force; clones are the same rules.
#[derive(Clone, Debug)]
pub struct Access(Arc<Mode>);

#[derive(Debug)]
enum Mode {
    Open,
    Closed(String),
    Rules(Box<Rules>),
}

#[derive(Debug)]
struct Rules {
    file: PathBuf,
    read: ArcSwap<Read>,
    refused: Mutex<Refused>,
}

/// What the files say.
#[derive(Debug)]
struct Read {
    texts: (String, Option<String>),
    policy: Policy,
    tokens: Tokens,
}

/// Wrong credentials since they were last spoken of.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    said: Option<Instant>,
}

impl Access {
    /// Everybody may do everything.
    pub fn open() -> Access {
        Access(Arc::new(Mode::Open))
    }

    /// Nobody may do anything, for this reason.
    pub fn closed(why: &str) -> Access {
        Access(Arc::new(Mode::Closed(why.to_owned())))
    }

    /// The rules of a file. They are read again when it changes, for as long as somebody holds them; what is wrong then leaves
    /// the rules before in force. Its quotas go where they are used. Has to be called within a tokio runtime.
    pub fn read(file: &Path, registry: &Registry) -> Result<Access, String> {
        let read = Read::of(file)?;
        let quotas = registry.quotas().clone();
        quotas.store(Arc::new(read.policy.quotas.clone()));
        let access = Access(Arc::new(Mode::Rules(Box::new(Rules {
            file: file.to_owned(),
            read: ArcSwap::from_pointee(read),
            refused: Mutex::default(),
        }))));
        tokio::spawn(follow(Arc::downgrade(&access.0), quotas));
        Ok(access)
    }

    /// Who it is that shows this `Authorization` header on a connection of this peer.
    pub fn identify(&self, authorization: Option<&[u8]>, peer: &Peer) -> Result<Caller, Error> {
        let mut names: Vec<Arc<str>> = Vec::new();
        match (self.0.as_ref(), authorization) {
            (Mode::Closed(why), _) => return Err(Error::Forbidden(why.clone())),
            (Mode::Open, _) | (Mode::Rules(_), None) => {}
            (Mode::Rules(rules), Some(header)) => match rules.read.load().tokens.name(header) {
                Some(name) => names.push(name),
                None => {
                    rules.complain(peer);
                    let message = "the token is not known".to_owned();
                    return Err(Error::Unauthenticated(message));
                }
            },
        }
        names.extend(peer.names.iter().cloned());
        if names.is_empty() {
            names.push(ANONYMOUS.into());
        }
        Ok(Caller {
            names,
            peer: peer.address,
        })
    }

    /// Refuses what a caller may not do; `None` means all namespaces.
    pub fn allow(
        &self,
        caller: &Caller,
        action: Action,
        namespace: Option<&Namespace>,
    ) -> Result<(), Error> {
        let rules = match self.0.as_ref() {
            Mode::Open => return Ok(()),
            Mode::Closed(why) => return Err(Error::Forbidden(why.clone())),
            Mode::Rules(rules) => rules,
        };
        let read = rules.read.load();
        if (caller.names.iter()).any(|name| read.policy.allows(name, action, namespace)) {
            return Ok(());
        }
        if caller.names.iter().all(|name| **name == *ANONYMOUS) {
            let message = "a token or a client certificate is required".to_owned();
            return Err(Error::Unauthenticated(message));
        }
        let place = match namespace {
            Some(namespace) => format!("namespace {namespace}"),
            None => "all namespaces".to_owned(),
        };
        let (name, action) = (caller.name(), action.as_str());
        Err(Error::Forbidden(format!("{name} may not {action} {place}")))
    }

    /// Refuses a caller that may not do this in any namespace.
    pub fn allow_somewhere(&self, caller: &Caller, action: Action) -> Result<(), Error> {
        if let Mode::Rules(rules) = self.0.as_ref() {
            let read = rules.read.load();
            let mut names = caller.names.iter();
            if names.any(|name| read.policy.allows_somewhere(name, action)) {
                return Ok(());
            }
        }
        self.allow(caller, action, None)
    }
}

impl Rules {
    /// One line for many: whoever tries tokens must not fill the log.
    fn complain(&self, peer: &Peer) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.count += 1;
        let now = Instant::now();
        if refused.said.is_some_and(|said| now - said < AGAIN / 6) {
            return;
        }
        let (count, from) = (std::mem::take(&mut refused.count), peer.address);
        refused.said = Some(now);
        tracing::warn!(count, last = ?from, "requests with unknown tokens were refused");
    }
}

impl Read {
    fn of(file: &Path) -> Result<Read, String> {
        Read::parse(file, text(file)?)
    }

    fn parse(file: &Path, text_of_file: String) -> Result<Read, String> {
        let policy =
            Policy::parse(&text_of_file).map_err(|e| format!("{}: {e}", file.display()))?;
        let (tokens, text_of_tokens) = match &policy.tokens_file {
            None => (Tokens::default(), None),
            Some(tokens) => {
                let folder = file.parent().unwrap_or(Path::new(""));
                let tokens = folder.join(tokens);
                let text = text(&tokens)?;
                let parsed = Tokens::parse(&text);
                (
                    parsed.map_err(|e| format!("{}: {e}", tokens.display()))?,
                    Some(text),
                )
            }
        };
        Ok(Read {
            texts: (text_of_file, text_of_tokens),
            policy,
            tokens,
        })
    }
}

fn text(file: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let bytes = std::fs::metadata(file).map_err(failed)?.len();
    if bytes > FILE_BYTES {
        return Err(format!(
            "{}: is larger than {FILE_BYTES} bytes",
            file.display()
        ));
    }
    std::fs::read_to_string(file).map_err(failed)
}

/// Reads the files again and again. They are small, and what a mounted Secret's time says is not to be relied on.
async fn follow(mode: Weak<Mode>, quotas: SharedQuotas) {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut wrong: Option<(String, Instant)> = None;
    loop {
        interval.tick().await;
        let Some(mode) = mode.upgrade() else {
            return;
        };
        let Mode::Rules(rules) = mode.as_ref() else {
            return;
        };
        match Read::of(&rules.file) {
            Ok(read) => {
                wrong = None;
                if rules.read.load().texts != read.texts {
                    tracing::info!(file = %rules.file.display(), "rules of the registry were read again");
                    quotas.store(Arc::new(read.policy.quotas.clone()));
                    rules.read.store(Arc::new(read));
                }
            }
            Err(error) => {
                let now = Instant::now();
                let known = |(said, at): &(String, Instant)| *said == error && now - *at < AGAIN;
                if !wrong.as_ref().is_some_and(known) {
                    tracing::error!(%error, "rules of the registry cannot be read; those before stay in force");
                    wrong = Some((error, now));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
