//! Keeps the registry in agreement with what the applications of this sidecar have published: connects, registers all,
//! renews the leases, and begins again when the connection or the registry was lost.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::mesh::registry::v1::registry_service_client::RegistryServiceClient;
use api::mesh::registry::v1::{
    DeregisterRequest, Instance, InstanceRef, ListRequest, RegisterRequest, RenewRequest, Selector,
    WatchRequest,
};
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tokio::time::timeout;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::bearer::Bearer;
use super::publications::{Owner, Publications};
use super::service_id::ServiceId;
use super::stopped;

/// A connection with the registry.
pub(super) type Client = RegistryServiceClient<InterceptedService<Channel, Bearer>>;

/// Instances in one call.
const PORTION: usize = 500;
/// Bytes of a list of instances.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// A call that takes longer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a subscriber waits for a list before it gets the last known one.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long leaving may take when the process stops.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Waits between attempts to connect: doubled from the first to the last, less up to a half by chance.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// An idle connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// No service has this name: its watch is open for as long as the registry is there, and brings nothing.
const NOBODY: &str = "mesh-registry.liveness";
/// Ends of subscriptions that a slow watcher of them may be behind.
const UNSUBSCRIBED: usize = 256;
/// Applications that publish at the server by themselves.
pub(super) const FACE: Owner = Owner(0);

/// Shared by the server and the task that talks with the registry.
pub(super) struct Agent {
    shared: Mutex<Shared>,
    changed: Notify,
    lease_ttl: Duration,
    owners: AtomicU64,
    /// While there is a session with the registry.
    client: watch::Sender<Option<Client>>,
    /// Services whose subscription has ended.
    unsubscribed: broadcast::Sender<ServiceId>,
    token_file: Option<PathBuf>,
}

struct Shared {
    publications: Publications,
    /// Why there is no session.
    failure: String,
    /// The last answer to a subscription, for the time when the registry is away.
    known: HashMap<ServiceId, Vec<Instance>>,
    /// Health of the application, by protocol, where it is watched and not good.
    unhealthy: Vec<String>,
}

/// How a session with the registry ended.
enum End {
    Stopped,
    Lost(String),
}

impl Agent {
    pub(super) fn new(lease_ttl: Duration, token_file: Option<PathBuf>) -> Agent {
        Agent {
            shared: Mutex::new(Shared {
                publications: Publications::default(),
                failure: "not connected yet".to_owned(),
                known: HashMap::new(),
                unhealthy: Vec::new(),
            }),
            changed: Notify::new(),
            lease_ttl,
            owners: AtomicU64::new(FACE.0),
            client: watch::Sender::new(None),
            unsubscribed: broadcast::Sender::new(UNSUBSCRIBED),
            token_file,
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics under the lock, and what it guards is whole at every step.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else who publishes.
    pub(super) fn new_owner(&self) -> Owner {
        Owner(self.owners.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Registers an instance as soon as the registry is there; an error says why that has not happened within `limit`.
    pub(super) async fn publish(
        &self,
        owner: Owner,
        mut instance: Instance,
        limit: Duration,
    ) -> Result<(), String> {
        let (waiter, answered) = oneshot::channel();
        {
            let mut shared = self.shared();
            instance.ttl_ms = Some(u64::try_from(self.lease_ttl.as_millis()).unwrap_or(u64::MAX));
            instance.healthy = Some(!shared.unhealthy.contains(&instance.protocol));
            shared.publications.publish(owner, instance, waiter);
        }
        self.wait(
            answered,
            limit,
            "the registration is kept and passed on when it is back",
        )
        .await
    }

    /// Takes an instance out, unless another wants it too.
    pub(super) async fn unpublish(
        &self,
        owner: Owner,
        reference: &InstanceRef,
        limit: Duration,
    ) -> Result<(), String> {
        let (waiter, answered) = oneshot::channel();
        self.shared()
            .publications
            .unpublish(owner, reference, waiter);
        self.wait(
            answered,
            limit,
            "the removal is kept and passed on when it is back",
        )
        .await
    }

    async fn wait(
        &self,
        answered: oneshot::Receiver<Result<(), String>>,
        limit: Duration,
        kept: &str,
    ) -> Result<(), String> {
        self.changed.notify_one();
        match timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the sidecar is stopping".to_owned()),
            Err(_) => {
                let failure = self.shared().failure.clone();
                let failure = if failure.is_empty() {
                    "it does not answer".to_owned()
                } else {
                    failure
                };
                Err(format!(
                    "the registry cannot be reached within {limit:?} ({failure}); {kept}"
                ))
            }
        }
    }

    /// The instances that can take calls; those last known when the registry is away.
    pub(super) async fn providers(&self, id: &ServiceId) -> Vec<Instance> {
        let client = self.client.borrow().clone();
        let Some(mut client) = client else {
            return self.shared().known.get(id).cloned().unwrap_or_default();
        };
        let selector = id.selector();
        let request = ListRequest {
            selector: Some(selector),
            ..ListRequest::default()
        };
        let listed = timeout(LIST_TIMEOUT, client.list(request)).await;
        let mut shared = self.shared();
        match listed {
            Ok(Ok(response)) => {
                let instances = response.into_inner().instances;
                shared.known.insert(id.clone(), instances.clone());
                instances
            }
            Ok(Err(_)) | Err(_) => shared.known.get(id).cloned().unwrap_or_default(),
        }
    }

    /// The connection with the registry, once there is one; `None`: there will be none.
    pub(super) async fn registry(&self) -> Option<Client> {
        let mut client = self.client.subscribe();
        let client = client.wait_for(Option::is_some).await.ok()?;
        client.clone()
    }

    /// Forgets what a subscription brought, and ends its pushes.
    pub(super) fn unsubscribe(&self, id: &ServiceId) {
        self.shared().known.remove(id);
        // An error says that nobody is told anything.
        let _ = self.unsubscribed.send(id.clone());
    }

    /// Tells whose subscription ends from now on.
    pub(super) fn unsubscribed(&self) -> broadcast::Receiver<ServiceId> {
        self.unsubscribed.subscribe()
    }

    /// Says whether the application behind a protocol can take calls.
    pub(super) fn set_healthy(&self, protocol: &str, healthy: bool) {
        let mut shared = self.shared();
        shared.unhealthy.retain(|p| p != protocol);
        if !healthy {
            shared.unhealthy.push(protocol.to_owned());
        }
        if shared.publications.set_healthy(protocol, healthy) {
            self.changed.notify_one();
        }
    }

    /// Whether something is published whose health matters.
    pub(super) fn publishes(&self, protocol: &str) -> bool {
        self.shared().publications.has(protocol)
    }

    /// Runs until `stop` becomes true, and takes everything out then.
    pub(super) async fn run(
        self: Arc<Agent>,
        endpoints: Vec<String>,
        connect_timeout: Duration,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut failures: u32 = 0;
        for endpoint in endpoints.iter().cycle() {
            let session = async {
                let channel = connect(endpoint, connect_timeout).await?;
                let bearer = Bearer::read(self.token_file.as_deref())?;
                let client = RegistryServiceClient::with_interceptor(channel, bearer);
                Ok::<Client, String>(client.max_decoding_message_size(MESSAGE_BYTES))
            };
            let connected = tokio::select! {
                connected = session => connected,
                () = stopped(&mut stop) => return,
            };
            let failure = match connected {
                Err(failure) => failure,
                Ok(client) => match self.session(client, endpoint, &mut stop).await {
                    (End::Stopped, _) => return,
                    (End::Lost(failure), served) => {
                        if served {
                            failures = 0;
                        }
                        failure
                    }
                },
            };
            failures = failures.saturating_add(1);
            self.lost(endpoint, failure, failures);
            tokio::select! {
                () = tokio::time::sleep(backoff(failures)) => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    fn lost(&self, endpoint: &str, failure: String, failures: u32) {
        // The first failure is news, the others are the same.
        if failures == 1 {
            tracing::warn!(endpoint, failure, "the registry is away");
        }
        self.client.send_replace(None);
        let mut shared = self.shared();
        shared.failure = failure;
        // A registry that comes back may have lost everything: to register what is there costs little.
        shared.publications.lost_all();
    }

    /// One connection's life. The second value tells whether the registry has answered at all.
    async fn session(
        &self,
        mut client: Client,
        endpoint: &str,
        stop: &mut watch::Receiver<bool>,
    ) -> (End, bool) {
        let request = WatchRequest {
            selector: Some(Selector {
                service: NOBODY.to_owned(),
                protocol: NOBODY.to_owned(),
                ..Selector::default()
            }),
            ..WatchRequest::default()
        };
        let mut liveness = match call(client.watch(request)).await {
            Ok(stream) => stream,
            Err(status) => return (End::Lost(describe(&status)), false),
        };
        {
            self.client.send_replace(Some(client.clone()));
            let mut shared = self.shared();
            shared.failure.clear();
            tracing::info!(
                endpoint,
                publications = shared.publications.len(),
                "connected to the registry"
            );
        }
        let mut renewals = tokio::time::interval(self.lease_ttl / 3);
        renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Err(status) = self.synchronise(&mut client).await {
                return (End::Lost(describe(&status)), true);
            }
            tokio::select! {
                () = self.changed.notified() => {}
                _ = renewals.tick() => {
                    if let Err(status) = self.renew(&mut client).await {
                        return (End::Lost(describe(&status)), true);
                    }
                }
                message = liveness.message() => match message {
                    Ok(Some(_)) => {}
                    Ok(None) => return (End::Lost("the registry closed the connection".to_owned()), true),
                    Err(status) => return (End::Lost(describe(&status)), true),
                },
                () = stopped(stop) => {
                    self.leave(&mut client).await;
                    return (End::Stopped, true);
                }
            }
        }
    }

    /// Tells the registry what it does not know yet.
    async fn synchronise(&self, client: &mut Client) -> Result<(), Status> {
        let removals = self.shared().publications.to_remove();
        for portion in removals.chunks(PORTION) {
            let instances = portion.to_vec();
            call(client.deregister(DeregisterRequest { instances })).await?;
            self.shared().publications.removed(portion);
        }
        let missing = self.shared().publications.to_register();
        for portion in missing.chunks(PORTION) {
            let instances = portion.to_vec();
            match call(client.register(RegisterRequest {
                instances,
                ..RegisterRequest::default()
            }))
            .await
            {
                Ok(_) => self.shared().publications.acknowledge(portion),
                Err(status) if is_refusal(&status) => self.register_singly(client, portion).await?,
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    /// One bad instance refuses a whole call: finds it.
    async fn register_singly(
        &self,
        client: &mut Client,
        instances: &[Instance],
    ) -> Result<(), Status> {
        for instance in instances {
            let request = RegisterRequest {
                instances: vec![instance.clone()],
                ..RegisterRequest::default()
            };
            match call(client.register(request)).await {
                Ok(_) => self
                    .shared()
                    .publications
                    .acknowledge(std::slice::from_ref(instance)),
                Err(status) if is_refusal(&status) => {
                    let why = status.message().trim_start_matches("instances[0].");
                    tracing::warn!(
                        service = instance.service,
                        why,
                        "the registry refuses a publication"
                    );
                    self.shared()
                        .publications
                        .refuse(instance, &format!("the registry refuses it: {why}"));
                }
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    async fn renew(&self, client: &mut Client) -> Result<(), Status> {
        let registered = self.shared().publications.registered();
        for portion in registered.chunks(PORTION) {
            let instances = portion.to_vec();
            let renewed = call(client.renew(RenewRequest { instances })).await?;
            if !renewed.unknown.is_empty() {
                self.shared().publications.lost(&renewed.unknown);
                self.changed.notify_one();
            }
        }
        Ok(())
    }

    /// Takes out everything, because the process ends.
    async fn leave(&self, client: &mut Client) {
        let registered = self.shared().publications.registered();
        let leaving = async {
            for portion in registered.chunks(PORTION) {
                let instances = portion.to_vec();
                call(client.deregister(DeregisterRequest { instances })).await?;
            }
            Ok::<(), Status>(())
        };
        match timeout(LEAVE_TIMEOUT, leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => {
                tracing::warn!(failure = describe(&status), "leaving the registry failed")
            }
            Err(_) => tracing::warn!("leaving the registry took too long"),
        }
    }
}

async fn connect(endpoint: &str, connect_timeout: Duration) -> Result<Channel, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{endpoint}")).map_err(|e| e.to_string())?;
    let endpoint = endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|error| {
        // "transport error" alone says nothing.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        cause.unwrap_or_else(|| error.to_string())
    })
}

async fn call<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(CALL_TIMEOUT, answer).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {CALL_TIMEOUT:?}"
        ))),
    }
}

fn describe(status: &Status) -> String {
    if status.message().is_empty() {
        status.code().to_string()
    } else {
        status.message().to_owned()
    }
}

/// Whether another attempt would be refused as well.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::PermissionDenied
    )
}

fn backoff(failures: u32) -> Duration {
    let (first, last) = BACKOFF;
    let doubled = first
        .saturating_mul(1_u32 << failures.saturating_sub(1).min(16))
        .min(last);
    doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
}
