//! The real registries, each on addresses of this test's own.

mod consul;
mod etcd;
mod eureka;
mod kubernetes;
mod nacos;
mod place;
mod sofaregistry;
mod zookeeper;

pub use consul::Consul;
pub use etcd::Etcd;
pub use eureka::Eureka;
pub use kubernetes::Kubernetes;
pub use nacos::Nacos;
pub use sofaregistry::SofaRegistry;
pub use zookeeper::ZooKeeper;
