//! Which of several hubs of a mesh writes copies into registries.

mod candidate;
mod etcd;
pub mod file;
pub mod kubernetes;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::osr::EtcdStore;
use crate::sync::Role;

pub use kubernetes::LeaseObject;

/// How the hubs of a mesh agree on one that leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Election {
    /// There is only this one.
    Alone,
    /// Who holds the lock of a file in a folder that all of them see.
    File(PathBuf),
    /// Who holds a Lease of Kubernetes.
    Kubernetes(LeaseObject),
    /// Who holds a key of the etcd that they keep what is registered in.
    Etcd(Box<EtcdStore>),
}

/// Takes part on the present runtime until nobody listens any longer. The task then gives the leadership back, so that the
/// others need not wait for the lease to end, and ends.
pub fn take_part(election: Election) -> (watch::Receiver<Role>, JoinHandle<()>) {
    let (role, told) = watch::channel(Role::Unknown);
    let task = match election {
        Election::Alone => tokio::spawn(async move {
            role.send_replace(Role::Leader);
            role.closed().await;
        }),
        Election::File(path) => tokio::spawn(file::run(path, role)),
        Election::Kubernetes(object) => tokio::spawn(kubernetes::run(object, role)),
        Election::Etcd(store) => tokio::spawn(etcd::run(*store, role)),
    };
    (told, task)
}

/// Another one for each process: the machine, and something drawn.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), fastrand::u64(..))
}

/// A pause, which ends when nobody listens any longer.
async fn rest(pause: Duration, role: &watch::Sender<Role>) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = role.closed() => {}
    }
}

/// Waits for something, and says it when leadership ends meanwhile.
async fn fenced<T>(
    work: impl Future<Output = T>,
    until: Option<Instant>,
    role: &watch::Sender<Role>,
) -> T {
    let mut work = std::pin::pin!(work);
    if let Some(until) = until {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(until.into()) => {
                tell(role, Role::Unknown, "the lease could not be renewed in time");
            }
            done = &mut work => return done,
        }
    }
    work.await
}

/// Tells a new role, if it is one.
fn tell(role: &watch::Sender<Role>, new: Role, why: &str) {
    role.send_if_modified(|known| {
        if *known == new {
            return false;
        }
        match new {
            Role::Leader => tracing::info!("leads the synchronisation of registries: {why}"),
            Role::Follower => {
                tracing::info!("does not lead the synchronisation of registries: {why}")
            }
            Role::Unknown => {
                tracing::warn!("nobody knows who leads the synchronisation of registries: {why}")
            }
        }
        *known = new;
        true
    });
}
