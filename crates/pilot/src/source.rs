//! Where configuration comes from: a folder of files, read whole at the start, then file by file as they change, and the
//! objects of a Kubernetes cluster.

mod cluster;
mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use cluster::{ClusterStore, News};
pub use store::{FileStore, Problem};
pub use watch::watch;
