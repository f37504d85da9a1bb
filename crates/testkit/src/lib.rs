//! Starts the real things that end-to-end tests need: this workspace's programs, Envoy, the Java applications, each on
//! loopback addresses of this test's own, and ends them when the test ends.
//!
//! It knows nothing of the programs' insides: it writes their configuration files and talks to them over sockets.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use testkit::mesh::{Kind, Mesh};
//!
//! let mesh = Mesh::start()?;
//! mesh.write("services.yaml", "# ServiceEntry, VirtualService, Sidecar …")?;
//! let consumer = mesh.sidecar(Kind::Mosn, "consumer", 2, &[("app", "consumer")])?;
//! let answer = testkit::http::get(consumer.admin(), "/ready")?;
//! assert_eq!(answer.status, 200);
//! # Ok(())
//! # }
//! ```

pub mod apps;
mod bootstrap;
pub mod certificates;
pub mod http;
pub mod mesh;
pub mod net;
pub mod netns;
pub mod process;
pub mod programs;
pub mod recipe;
pub mod registries;
pub mod wait;
