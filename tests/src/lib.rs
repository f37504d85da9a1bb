//! End-to-end tests: real applications call each other through sidecars that pilot configured.
//!
//! A [`stage::Stage`] is one framework's consumer and two providers, each behind a sidecar of its own; [`scenario`] has
//! what every framework must show on it. The tests themselves are in `tests/`.

pub mod scenario;
pub mod stage;
pub mod yaml;
