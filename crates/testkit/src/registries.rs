//! The real registries, each on loopback addresses of this test's own.

mod eureka;
mod zookeeper;

pub use eureka::Eureka;
pub use zookeeper::ZooKeeper;
