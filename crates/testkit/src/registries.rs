//! The real registries, each on loopback addresses of this test's own.

mod consul;
mod etcd;
mod eureka;
mod zookeeper;

pub use consul::Consul;
pub use etcd::Etcd;
pub use eureka::Eureka;
pub use zookeeper::ZooKeeper;
