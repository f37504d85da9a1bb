//! What can go wrong, in the words that both faces answer with.

use base::FieldError;

/// Why the registry refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Something in the request is not well formed.
    #[error("{0}")]
    Invalid(#[from] FieldError),
    /// Over one of the registry's limits.
    #[error("{0}")]
    TooMany(String),
    /// Nobody is known by these credentials, or there are none.
    #[error("{0}")]
    Unauthenticated(String),
    /// Who asks may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// What is named is not there (any more).
    #[error("{0}")]
    NotFound(String),
    /// More commands wait than the registry takes; try again.
    #[error("the registry is overloaded: {0} commands are waiting")]
    Overloaded(usize),
    /// The disk failed: nothing of the command was done.
    #[error("the registry's store failed: {0}")]
    Store(String),
    /// The store that the registry shares with others does not answer: whether the command was done is not known.
    #[error("the registry's store cannot be reached: {0}")]
    Unreachable(String),
    /// A snapshot can only be restored where nothing is registered.
    #[error("the registry holds {0} instances; a snapshot is restored into an empty one only")]
    NotEmpty(usize),
    /// The registry is being shut down.
    #[error("the registry is stopping")]
    Stopped,
}

/// Why a registry's file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database says so.
    #[error("registry store {path}: {source}")]
    Database {
        /// The file.
        path: String,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A record in it cannot be read.
    #[error("registry store {path}: record {key}: {message}")]
    Record {
        /// The file.
        path: String,
        /// The record.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// It was written by a newer version.
    #[error("registry store {path} has format {found}, this version knows up to {known}")]
    Format {
        /// The file.
        path: String,
        /// Its format.
        found: u64,
        /// The newest format known.
        known: u64,
    },
    /// The store that the registry shares with others does not answer, or refuses.
    #[error("registry store etcd://{servers}: {reason}")]
    Store {
        /// Its servers.
        servers: String,
        /// What is wrong.
        reason: String,
    },
    /// The writer's thread could not be started.
    #[error("the registry's thread: {0}")]
    Thread(#[from] std::io::Error),
}
