//! The migration recipes of the documentation's pages on registries, with the real servers and applications in which nothing
//! is changed but what the recipe says.

mod dubbo2;
mod etcd;
mod eureka;
mod files;
mod sofaregistry;
mod zookeeper;
