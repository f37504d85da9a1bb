//! A Lease of Kubernetes (`coordination.k8s.io/v1`), as its own controllers agree on leaders.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;

use super::candidate::{Candidate, Stored, Timing};
use super::{fenced, identity, rest, tell};
use crate::kubernetes::{Cluster, FIELD_MANAGER, Failure, answered};
use crate::sync::Role;

const TIMING: Timing = Timing {
    lease: Duration::from_secs(15),
    renewed_within: Duration::from_secs(10),
    retry: Duration::from_secs(2),
};
/// What another holder may ask for at most: a wrong value would hold up everybody.
const LONGEST_LEASE: Duration = Duration::from_secs(3600);
/// The server's words for "somebody was quicker".
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;

/// The object, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseObject {
    /// The cluster.
    pub cluster: Cluster,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Looks at the Lease again and again, and renews it as long as it is this process's; gives it back in the end.
pub(super) async fn run(object: LeaseObject, role: watch::Sender<Role>) {
    let mut candidate = Candidate::new(identity(), TIMING);
    let mut leases: Option<Api<Lease>> = None;
    while !role.is_closed() {
        let until = candidate.leads_until();
        let round = round(&object, &mut leases, &mut candidate);
        let failure = fenced(round, until, &role).await.err();
        if let Some(failure) = &failure {
            // The next round has a new client: certificates and tokens may be new.
            leases = None;
            tracing::debug!(
                reason = failure.reason,
                "the lease cannot be read or renewed"
            );
        }
        let (new, why) = match (candidate.role(Instant::now()), failure) {
            (Role::Unknown, Some(failure)) => (Role::Unknown, failure.reason),
            (Role::Unknown, None) => (Role::Unknown, "nobody holds the lease".to_owned()),
            (Role::Leader, _) => (Role::Leader, "holds the lease".to_owned()),
            (Role::Follower, _) => (Role::Follower, format!("{} does", candidate.holder())),
        };
        tell(&role, new, &why);
        // Candidates that start together do not stay together.
        let pause = TIMING.retry.mul_f64(0.8 + fastrand::f64() * 0.4);
        fenced(rest(pause, &role), candidate.leads_until(), &role).await;
    }
    if let (Some(leases), Role::Leader) = (leases, candidate.role(Instant::now())) {
        // Without it others wait for the lease to end.
        let _ = release(&leases, &object.name, &candidate).await;
    }
}

async fn round(
    object: &LeaseObject,
    client: &mut Option<Api<Lease>>,
    candidate: &mut Candidate,
) -> Result<(), Failure> {
    let leases = match client {
        Some(leases) => leases,
        None => {
            let (connected, _): (Client, String) = object.cluster.client().await?;
            client.insert(Api::namespaced(connected, &object.namespace))
        }
    };
    let found = answered(leases.get_opt(&object.name)).await?;
    if !candidate.look(found.as_ref().map(stored), Instant::now()) {
        return Ok(());
    }
    let lease = taken(object, found, candidate);
    let began = Instant::now();
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let written = if lease.metadata.resource_version.is_some() {
        answered(leases.replace(&object.name, &parameters, &lease)).await
    } else {
        answered(leases.create(&parameters, &lease)).await
    };
    match written {
        Ok(written) => {
            candidate.look(Some(stored(&written)), Instant::now());
            candidate.wrote(began);
            Ok(())
        }
        // Somebody was quicker; the next look tells who.
        Err(failure) if matches!(failure.code, CONFLICT | NOT_FOUND) => Ok(()),
        Err(failure) => Err(failure),
    }
}

fn stored(lease: &Lease) -> Stored {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or(0);
    let wanted = Duration::from_secs(seconds).clamp(Duration::from_secs(1), LONGEST_LEASE);
    Stored {
        holder: spec.holder_identity.unwrap_or_default(),
        lease: wanted,
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// The Lease with this candidate as its holder, in the place of the one that was found.
fn taken(object: &LeaseObject, found: Option<Lease>, candidate: &Candidate) -> Lease {
    let now = MicroTime(Timestamp::now());
    let found = found.unwrap_or_default();
    let before = found.spec.unwrap_or_default();
    let is_mine = before.holder_identity.as_deref() == Some(candidate.identity());
    let transitions = before.lease_transitions.unwrap_or_default();
    Lease {
        metadata: ObjectMeta {
            name: Some(object.name.clone()),
            namespace: Some(object.namespace.clone()),
            resource_version: found.metadata.resource_version,
            labels: found.metadata.labels,
            annotations: found.metadata.annotations,
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            acquire_time: match (is_mine, before.acquire_time) {
                (true, Some(time)) => Some(time),
                _ => Some(now.clone()),
            },
            holder_identity: Some(candidate.identity().to_owned()),
            lease_duration_seconds: i32::try_from(TIMING.lease.as_secs()).ok(),
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_mine))),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}

async fn release(leases: &Api<Lease>, name: &str, candidate: &Candidate) -> Result<(), Failure> {
    let Some(mut lease) = answered(leases.get_opt(name)).await? else {
        return Ok(());
    };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() == Some(candidate.identity()) {
        spec.holder_identity = Some(String::new());
        answered(leases.replace(name, &PostParams::default(), &lease)).await?;
    }
    Ok(())
}
