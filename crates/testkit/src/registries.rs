//! The real registries, each on loopback addresses of this test's own.

mod zookeeper;

pub use zookeeper::ZooKeeper;
