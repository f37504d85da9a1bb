//! The mesh as other registries: each answers the wire of one, for applications that change only the address of theirs.

pub mod eureka;
pub mod nacos;
pub mod sofaregistry;
pub mod zookeeper;
