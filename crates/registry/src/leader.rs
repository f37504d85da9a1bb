//! Which of several hubs of a mesh writes copies into registries.

mod candidate;
pub mod file;
pub mod kubernetes;

use std::path::PathBuf;

use tokio::sync::watch;

use crate::sync::Role;

pub use kubernetes::LeaseObject;

/// How the hubs of a mesh agree on one that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Election {
    /// There is only this one.
    Alone,
    /// Who holds the lock of a file in a folder that all of them see.
    File(PathBuf),
    /// Who holds a Lease of Kubernetes.
    Kubernetes(LeaseObject),
}

/// Takes part on the present runtime until nobody listens any longer.
pub fn take_part(election: Election) -> watch::Receiver<Role> {
    let (role, told) = watch::channel(Role::Unknown);
    match election {
        Election::Alone => {
            role.send_replace(Role::Leader);
        }
        Election::File(path) => {
            tokio::spawn(file::run(path, role));
        }
        Election::Kubernetes(object) => {
            tokio::spawn(kubernetes::run(object, role));
        }
    }
    told
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
