//! The folder of configuration files: read whole at the start, then file by file as they change.

mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use store::{FileStore, Problem};
pub use watch::watch;
