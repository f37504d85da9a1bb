//! Real applications in a mesh: Dubbo, SOFARPC and Spring Boot call through mosn and Envoy as pilot configures them.
//!
//! A [`stage::Stage`] is one framework's consumer and two providers, each behind a sidecar of its own; [`scenario`] has
//! what every framework must show on it.

mod bad_config;
mod dubbo;
mod envoy;
mod scenario;
mod sofarpc;
mod spring;
mod stage;
mod sync;
mod yaml;
