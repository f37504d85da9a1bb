//! The service registry: which instances serve what, kept on disk, held by leases, told to whoever watches.
//!
//! It speaks HTTP/JSON ([`Registry::http_router`], described by `/v1/openapi.json`) and gRPC ([`Registry::grpc_service`]).
//! It knows nothing of meshes, proxies and xDS.
//!
//! ```
//! use registry::{Instance, Limits, Registry, ServiceKey};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let registry = Registry::in_memory(Limits::default())?;
//! let service = ServiceKey::new("bolt", "com.foo.Bar");
//! registry.register(vec![Instance::new(service.clone(), "10.0.0.1", 12200)]).await?;
//! let services = registry.snapshot();
//! assert_eq!(services.get(&service).map(|s| s.instances.len()), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod access;
pub mod adapters;
mod audit;
mod backoff;
pub mod client;
mod convert;
mod documents;
mod dubbo_metadata;
mod error;
mod eureka;
pub mod facades;
mod gate;
mod grpc;
mod http;
mod hub;
mod interfaces;
pub mod kubernetes;
pub mod leader;
mod leases;
mod limits;
mod locality;
mod md5;
mod metadata;
mod model;
pub mod nacos;
mod namespace;
pub mod naming;
mod osr;
mod page;
mod parts;
mod pattern;
mod quota;
mod registry_source;
mod secret;
mod services;
mod sessions;
mod snapshot;
mod sofaregistry;
mod source;
mod state;
mod store;
mod sync;
pub mod tls;
mod tls_server;
mod watch;
mod web;
mod words;

pub use access::{Access, Action, Caller, Peer};
pub use audit::{Audit, AuditOptions};
pub use backoff::Backoff;
pub use convert::{instance_from, instance_to};
pub use error::{Error, OpenError};
pub use gate::Api;
pub use grpc::GrpcService;
pub use hub::{
    Hub, HubOptions, HubState, Protection, Settings, SkippedEntry, SourceSpec, SourceStatus,
    SourceView, Status, View,
};
pub use interfaces::{Interface, InterfaceKey};
pub use limits::Limits;
pub use metadata::Metadata;
pub use model::{
    Change, ChangeKind, DEFAULT_TTL, DEFAULT_WEIGHT, Instance, InstanceRef, OWN_ORIGIN, Selector,
    ServiceKey,
};
pub use namespace::{DEFAULT_NAMESPACE, Namespace};
pub use osr::{Done, EtcdStore, Registry, Stats};
pub use pattern::Pattern;
pub use quota::{Quota, Quotas};
pub use registry_source::{ConfigDuration, ProtectionSpec, RegistrySource};
pub use secret::{Credentials, Secret, SecretKey};
pub use services::{Service, Services};
pub use sessions::{SessionClaim, SessionId, SessionState};
pub use snapshot::SnapshotError;
pub use source::{Link, LinkEnd, List, ORIGIN_MARK, Report, Skipped, Trouble, Wanted};
pub use state::{Registered, Renewed};
pub use sync::{
    CopyName, Direction, HealthPolicy, Held, HeldCopy, MatchSpec, MetadataSpec, NamingSpec,
    OwnedChange, OwnedCopy, RegistrySync, Role, RuleStatus, ServicesSpec, SourceNames, Step, Sync,
    SyncOptions, SyncRule, SyncState, SyncStatus, TargetStatus, WeightSpec,
};
pub use tls_server::serve_tls;
pub use watch::{Changes, Event, Since, Watch};
