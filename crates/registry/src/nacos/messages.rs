//! The messages that clients and servers of Nacos exchange over gRPC: each has the name of a Java class and the JSON of its
//! fields. Fields that nobody here needs are left out; unknown ones are ignored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host::{Host, ServiceInfo};

/// `type` of an [`InstanceRequest`] that puts an instance in.
pub const REGISTER: &str = "registerInstance";
/// `type` of an [`InstanceRequest`] that takes an instance out.
pub const DEREGISTER: &str = "deregisterInstance";
/// `type` of a [`BatchInstanceRequest`].
pub const BATCH_REGISTER: &str = "batchRegisterInstance";
/// Ability of servers that tell which services come and go.
pub const FUZZY_WATCH: &str = "fuzzyWatch";
/// `resultCode` of what was done.
pub const SUCCESS: i32 = 200;
/// `resultCode` of what was not.
pub const FAIL: i32 = 500;
/// `errorCode` where the user may not do it.
pub const NO_RIGHT: i32 = 403;
/// `errorCode` for a connection that has not been set up.
pub const UN_REGISTER: i32 = 301;
/// `errorCode` for a message of an unknown name.
pub const NO_HANDLER: i32 = 302;
/// `errorCode` of a query for a configuration that is not there.
pub const CONFIG_NOT_FOUND: i32 = 300;

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($variant:ident($content:ty) = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each is what its content is")]
        pub enum $name { $($variant($content),)* }

        impl $name {
            /// The name of the Java class.
            pub fn kind(&self) -> &'static str {
                match self { $($name::$variant(_) => $word,)* }
            }

            /// `None`: the name is of no message of this kind.
            pub(super) fn read(kind: &str, body: Value) -> Result<Option<$name>, serde_json::Error> {
                Ok(Some(match kind {
                    $($word => $name::$variant(Deserialize::deserialize(body)?),)*
                    _ => return Ok(None),
                }))
            }

            pub(super) fn write(&self) -> Result<Value, serde_json::Error> {
                match self { $($name::$variant(content) => serde_json::to_value(content),)* }
            }
        }
    };
}

messages! {
    /// What clients ask of servers, and servers of clients.
    Request {
        BatchInstance(BatchInstanceRequest) = "BatchInstanceRequest",
        ClientDetection(Nothing) = "ClientDetectionRequest",
        ConfigBatchListen(ConfigBatchListenRequest) = "ConfigBatchListenRequest",
        ConfigChangeNotify(ConfigKey) = "ConfigChangeNotifyRequest",
        ConfigPublish(ConfigPublishRequest) = "ConfigPublishRequest",
        ConfigQuery(ConfigKey) = "ConfigQueryRequest",
        ConfigRemove(ConfigKey) = "ConfigRemoveRequest",
        ConnectReset(ConnectResetRequest) = "ConnectResetRequest",
        ConnectionSetup(ConnectionSetupRequest) = "ConnectionSetupRequest",
        FuzzyWatch(FuzzyWatchRequest) = "NamingFuzzyWatchRequest",
        FuzzyWatchChange(FuzzyWatchChangeRequest) = "NamingFuzzyWatchChangeNotifyRequest",
        FuzzyWatchSync(FuzzyWatchSyncRequest) = "NamingFuzzyWatchSyncRequest",
        HealthCheck(Nothing) = "HealthCheckRequest",
        Instance(Box<InstanceRequest>) = "InstanceRequest",
        NotifySubscriber(Box<NotifySubscriberRequest>) = "NotifySubscriberRequest",
        PersistentInstance(Box<InstanceRequest>) = "PersistentInstanceRequest",
        ServerCheck(Nothing) = "ServerCheckRequest",
        ServiceList(ServiceListRequest) = "ServiceListRequest",
        ServiceQuery(ServiceQueryRequest) = "ServiceQueryRequest",
        SetupAck(SetupAckRequest) = "SetupAckRequest",
        SubscribeService(SubscribeServiceRequest) = "SubscribeServiceRequest",
    }
}

messages! {
    /// The answers to them.
    Response {
        BatchInstance(TypeOnly) = "BatchInstanceResponse",
        ClientDetection(Nothing) = "ClientDetectionResponse",
        ConfigChangeBatchListen(ConfigChangeBatchListenResponse) = "ConfigChangeBatchListenResponse",
        ConfigChangeNotify(Nothing) = "ConfigChangeNotifyResponse",
        ConfigPublish(Nothing) = "ConfigPublishResponse",
        ConfigQuery(ConfigQueryResponse) = "ConfigQueryResponse",
        ConfigRemove(Nothing) = "ConfigRemoveResponse",
        ConnectReset(Nothing) = "ConnectResetResponse",
        Error(Nothing) = "ErrorResponse",
        FuzzyWatch(Nothing) = "NamingFuzzyWatchResponse",
        FuzzyWatchChange(Nothing) = "NamingFuzzyWatchChangeNotifyResponse",
        FuzzyWatchSync(Nothing) = "NamingFuzzyWatchSyncResponse",
        HealthCheck(Nothing) = "HealthCheckResponse",
        Instance(TypeOnly) = "InstanceResponse",
        NotifySubscriber(Nothing) = "NotifySubscriberResponse",
        QueryService(ServiceInfoResponse) = "QueryServiceResponse",
        ServerCheck(ServerCheckResponse) = "ServerCheckResponse",
        ServiceList(ServiceListResponse) = "ServiceListResponse",
        SetupAck(Nothing) = "SetupAckResponse",
        SubscribeService(ServiceInfoResponse) = "SubscribeServiceResponse",
    }
}

macro_rules! content {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        )*
    };
}

content! {
    /// A message that says no more than its name.
    Nothing {}

    /// The answer says what was done.
    TypeOnly {
        /// [`REGISTER`], [`DEREGISTER`] or [`BATCH_REGISTER`].
        r#type: String,
    }

    /// Who a server is to a client.
    ServerCheckResponse {
        /// Its name for the connection.
        connection_id: String,
        /// It answers a [`ConnectionSetupRequest`] that has abilities with a [`SetupAckRequest`].
        support_ability_negotiation: bool,
    }

    /// The first message on the stream of a connection.
    ConnectionSetupRequest {
        /// `Nacos-Java-Client:v2.4.3`
        client_version: String,
        /// The namespace that is meant where a request names none.
        tenant: String,
        /// `source`, `module`, `AppName`, …
        labels: BTreeMap<String, String>,
        /// What the client can do; `None` of one before 2.3.
        #[serde(skip_serializing_if = "Option::is_none")]
        ability_table: Option<BTreeMap<String, bool>>,
    }

    /// The server's answer to a set-up with abilities, on the stream.
    SetupAckRequest {
        /// What the server can do.
        ability_table: BTreeMap<String, bool>,
    }

    /// The client is to go to another server, or to any other.
    ConnectResetRequest {
        /// Empty for any.
        server_ip: String,
        /// Empty for any.
        server_port: String,
        /// The connection that is meant.
        connection_id: String,
    }

    /// Puts an instance in or takes it out. Of a service a connection has only one at a time.
    InstanceRequest {
        /// Empty for the connection's.
        namespace: String,
        /// Name without group.
        service_name: String,
        /// Its group.
        group_name: String,
        /// [`REGISTER`] or [`DEREGISTER`].
        r#type: String,
        /// The instance.
        instance: Host,
    }

    /// Puts in all instances that a connection has of a service; those that are not named go.
    BatchInstanceRequest {
        /// Empty for the connection's.
        namespace: String,
        /// Name without group.
        service_name: String,
        /// Its group.
        group_name: String,
        /// [`BATCH_REGISTER`].
        r#type: String,
        /// The instances.
        instances: Vec<Host>,
    }

    /// Asks for the instances of a service and for every change of them, or for no more changes.
    SubscribeServiceRequest {
        /// Empty for the connection's.
        namespace: String,
        /// Name without group.
        service_name: String,
        /// Its group.
        group_name: String,
        /// False ends it.
        subscribe: bool,
        /// Between commas; empty for all.
        clusters: String,
    }

    /// Asks for the instances of a service.
    ServiceQueryRequest {
        /// Empty for the connection's.
        namespace: String,
        /// Name without group.
        service_name: String,
        /// Its group.
        group_name: String,
        /// Between commas; empty for all.
        cluster: String,
        /// Without the others.
        healthy_only: bool,
        /// 0 over gRPC.
        udp_port: u16,
    }

    /// The instances of a service.
    ServiceInfoResponse {
        /// The list.
        service_info: ServiceInfo,
    }

    /// Asks for the names of the services of a group.
    ServiceListRequest {
        /// Empty for the connection's.
        namespace: String,
        /// Empty.
        service_name: String,
        /// The group.
        group_name: String,
        /// From 1.
        page_no: u32,
        /// Names at a time.
        page_size: u32,
        /// Empty for all.
        selector: String,
    }

    /// One page of names.
    ServiceListResponse {
        /// Of all pages.
        count: u64,
        /// Names, some servers' with the group: `group@@name`.
        service_names: Vec<String>,
    }

    /// The instances of a service have changed.
    NotifySubscriberRequest {
        /// Empty for the connection's.
        namespace: String,
        /// Name without group.
        service_name: String,
        /// Its group.
        group_name: String,
        /// The whole list.
        service_info: ServiceInfo,
    }

    /// Asks for the names of services and for those that come and go (3.x).
    FuzzyWatchRequest {
        /// The names that the client knows are not yet all.
        initializing: bool,
        /// The namespace.
        namespace: String,
        /// `namespace>>group>>service`, with `*` for what does not matter.
        group_key_pattern: String,
        /// `namespace@@group@@service`: what the client knows.
        received_group_keys: BTreeSet<String>,
        /// `WATCH` or `CANCEL_WATCH`.
        watch_type: String,
    }

    /// Names that were there before, or that the client did not know of.
    FuzzyWatchSyncRequest {
        /// The pattern that they match.
        group_key_pattern: String,
        /// `FUZZY_WATCH_INIT_NOTIFY`, `FINISH_FUZZY_WATCH_INIT_NOTIFY` after the last, `FUZZY_WATCH_DIFF_SYNC_NOTIFY`.
        sync_type: String,
        /// The names.
        contexts: Vec<FuzzyWatchContext>,
        /// How many messages there are.
        total_batch: u32,
        /// This one's number.
        current_batch: u32,
    }

    /// One name.
    FuzzyWatchContext {
        /// `namespace@@group@@service`
        service_key: String,
        /// `ADD_SERVICE` or `DELETE_SERVICE`.
        changed_type: String,
    }

    /// A service came or went.
    FuzzyWatchChangeRequest {
        /// `namespace@@group@@service`
        service_key: String,
        /// `ADD_SERVICE` or `DELETE_SERVICE`.
        changed_type: String,
        /// `FUZZY_WATCH_RESOURCE_CHANGED`.
        sync_type: String,
    }

    /// Names a configuration: to ask for it, to remove it, to say that it changed.
    ConfigKey {
        /// Its name.
        data_id: String,
        /// Its group.
        group: String,
        /// Its namespace; empty for the public one.
        tenant: String,
    }

    /// A configuration.
    ConfigQueryResponse {
        /// What was published.
        content: String,
        /// `text`, `json`, …
        content_type: String,
        /// Of the content, in lower-case hexadecimal.
        md5: String,
        /// In milliseconds.
        last_modified: i64,
    }

    /// Puts a configuration in.
    ConfigPublishRequest {
        /// Its name.
        data_id: String,
        /// Its group.
        group: String,
        /// Its namespace; empty for the public one.
        tenant: String,
        /// What is published.
        content: String,
        /// Only in the place of content with this MD5; empty for whatever is there.
        cas_md5: String,
        /// `type`, `appName`, …
        addition_map: BTreeMap<String, String>,
    }

    /// Asks to be told of changes.
    ConfigBatchListenRequest {
        /// False ends it.
        listen: bool,
        /// The configurations, as the client has them.
        config_listen_contexts: Vec<ConfigListenContext>,
    }

    /// A configuration as a client has it.
    ConfigListenContext {
        /// Its name.
        data_id: String,
        /// Its group.
        group: String,
        /// Its namespace; empty for the public one.
        tenant: String,
        /// Of the content that the client has; empty for none.
        md5: String,
    }

    /// Those that are different from what the client has.
    ConfigChangeBatchListenResponse {
        /// Their names.
        changed_configs: Vec<ConfigKey>,
    }
}
