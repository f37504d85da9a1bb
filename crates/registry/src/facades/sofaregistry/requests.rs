//! What clients ask for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use wire::sofaregistry::{EventType, Register, RegisterResponse, Request, SyncConfigResponse};

use super::super::settle;
use super::form::Reply;
use super::names::DataInfo;
use super::sessions::{Closed, Publisher, Topic};
use super::{Server, State};
use crate::model::{Instance, InstanceRef};

/// How long a client waits for the registry; it gives up after a second and tries again.
const REGISTER: Duration = Duration::from_millis(800);
/// When clients ask for the configuration again, in ms; what they do without an answer too.
const CONFIG_INTERVAL_MS: i32 = 30_000;

/// Does what a request says.
pub(super) async fn answer(server: &Server, connection: u64, request: Request) -> Reply {
    match request {
        Request::SyncConfig => Reply::SyncConfig(SyncConfigResponse {
            retry_interval: CONFIG_INTERVAL_MS,
            available_segments: vec![server.config.data_center.clone()],
        }),
        Request::Publisher(register, data) => {
            answer_register("Publisher", register, async |register| {
                publisher(server, connection, register, &data).await
            })
            .await
        }
        Request::Subscriber(register, scope) => {
            answer_register("Subscriber", register, async |register| {
                subscriber(server, connection, register, |info, zone| {
                    Topic::List(info, scope, zone)
                })
            })
            .await
        }
        Request::Configurator(register) => {
            answer_register("ConfiguratorRegister", register, async |register| {
                subscriber(server, connection, register, |info, _| Topic::Config(info))
            })
            .await
        }
    }
}

/// Says what came of it as SOFARegistry does.
async fn answer_register(
    kind: &str,
    mut register: Register,
    act: impl AsyncFnOnce(&mut Register) -> Result<(), String>,
) -> Reply {
    let word = match register.event_type {
        EventType::Register => "REGISTER",
        EventType::Unregister => "UNREGISTER",
        EventType::Other => "OTHER",
    };
    let done = act(&mut register).await;
    let message = match &done {
        Ok(()) => format!("{kind} register success!"),
        Err(why) => format!("{kind} register failed!Type:{word} {why}"),
    };
    Reply::Registered(RegisterResponse {
        success: done.is_ok(),
        regist_id: register.regist_id,
        version: register.version,
        refused: false,
        message,
    })
}

/// What a registration is about.
fn info(register: &mut Register) -> Result<DataInfo, String> {
    DataInfo::of(register).map_err(|field| format!("{field} is required"))
}

impl Server {
    /// What was taken back leaves the registry; otherwise its lease runs out.
    async fn taken_back(&self, touched: BTreeSet<InstanceRef>) {
        if let Err(error) = self.changed(touched).await {
            tracing::warn!(error, "publications cannot be deregistered");
        }
    }

    fn check_room(&self, state: &State, connection: u64) -> Result<(), String> {
        let limit = self.config.registrations_per_connection;
        if state.sessions.registrations(connection) < limit {
            return Ok(());
        }
        Err(format!("a connection may hold {limit} registrations"))
    }

    fn check_data(&self, data: &[String]) -> Result<(), String> {
        let (boxes, bytes) = (self.config.boxes, self.config.box_bytes);
        if data.len() > boxes {
            return Err(format!("a publisher may have {boxes} data"));
        }
        if data.iter().any(|data| data.len() > bytes) {
            return Err(format!("data may have {bytes} bytes"));
        }
        Ok(())
    }
}

async fn publisher(
    server: &Server,
    connection: u64,
    register: &mut Register,
    data: &[String],
) -> Result<(), String> {
    let info = info(register)?;
    match register.event_type {
        EventType::Other => return Ok(()),
        EventType::Unregister => {
            let mut touched = BTreeSet::new();
            {
                let mut state = server.state();
                let before = state.sessions.replace_publisher(register, connection);
                if let Some(Some(before)) = before {
                    touched = state.unpublish(&register.regist_id.as_str().into(), &before);
                }
            }
            server.taken_back(touched).await;
            return Ok(());
        }
        EventType::Register => {}
    }
    server.check_data(data)?;
    let instances = instances(server, &info, &register.zone, data);
    let regist_id: Arc<str> = register.regist_id.as_str().into();
    let published = {
        let mut state = server.state();
        let Some(before) = state.sessions.replace_publisher(register, connection) else {
            // An older one came late: SOFARegistry says success too.
            return Ok(());
        };
        match server.check_room(&state, connection) {
            Err(full) => {
                let before = before.map(|before| state.unpublish(&regist_id, &before));
                Err((full, before.unwrap_or_default()))
            }
            Ok(()) => {
                let lists = &mut state.lists;
                let shared = data.iter().map(|data| data.as_str().into()).collect();
                lists.publish(&info, register, shared, &instances);
                if let Some(before) = before {
                    state.lists.unsay(&before.instances);
                    if before.info != info {
                        state.lists.unpublish(&before.info, &regist_id, &[]);
                    }
                }
                let touched = state.claims.put(&regist_id, &instances);
                let sessions = &mut state.sessions;
                sessions.put_publisher(register, connection, info, instances);
                Ok(touched)
            }
        }
    };
    let touched = match published {
        Ok(touched) => touched,
        Err((full, touched)) => {
            server.taken_back(touched).await;
            return Err(full);
        }
    };
    match tokio::time::timeout(REGISTER, server.changed(touched)).await {
        Ok(done) => done,
        Err(_) => Err("the registry is busy".to_owned()),
    }
}

/// What the data of a list of services say. What is not understood is for subscribers here all the same.
fn instances(server: &Server, info: &DataInfo, zone: &str, data: &[String]) -> Vec<Instance> {
    let limits = server.registry.limits();
    let mut instances: Vec<Instance> = Vec::new();
    for data in data {
        match info.instance(data, zone, limits) {
            None => {}
            Some(Ok(mut instance)) => {
                instance.ttl = Some(settle::ttl(limits));
                let reference = instance.reference();
                if instances.iter().all(|known| known.reference() != reference) {
                    instances.push(instance);
                }
            }
            Some(Err(error)) => {
                let data_id = &*info.data_id;
                tracing::warn!(data_id, %error, "published data say no provider that is understood");
            }
        }
    }
    instances
}

fn subscriber(
    server: &Server,
    connection: u64,
    register: &mut Register,
    topic: impl FnOnce(DataInfo, Arc<str>) -> Topic,
) -> Result<(), String> {
    let info = info(register)?;
    if register.event_type == EventType::Other {
        return Ok(());
    }
    let mut state = server.state();
    let Some(before) = state.sessions.replace_subscriber(register, connection) else {
        return Ok(());
    };
    if register.event_type == EventType::Register {
        if let Err(full) = server.check_room(&state, connection) {
            if let Some((connection, topic)) = before {
                state.unsubscribe(connection, &topic);
            }
            return Err(full);
        }
        let topic = topic(info, register.zone.as_str().into());
        if let Topic::List(info, ..) = &topic {
            state.lists.subscribe(info, connection);
        }
        state.sessions.put_subscriber(register, connection, topic);
    }
    // The new one first: a list that somebody looks at stays.
    if let Some((connection, topic)) = before {
        state.unsubscribe(connection, &topic);
    }
    Ok(())
}

impl State {
    fn unpublish(&mut self, regist_id: &Arc<str>, publisher: &Publisher) -> BTreeSet<InstanceRef> {
        self.lists
            .unpublish(&publisher.info, regist_id, &publisher.instances);
        self.claims.remove(regist_id)
    }

    fn unsubscribe(&mut self, connection: u64, topic: &Topic) {
        if let Topic::List(info, ..) = topic {
            self.lists.unsubscribe(info, connection);
        }
    }
}

/// A connection is gone: so is what it held.
pub(super) async fn close(server: &Server, connection: u64) {
    let mut touched = BTreeSet::new();
    {
        let mut state = server.state();
        let Closed { publishers, topics } = state.sessions.close(connection);
        for (regist_id, publisher) in publishers {
            touched.extend(state.unpublish(&regist_id, &publisher));
        }
        for topic in topics {
            state.unsubscribe(connection, &topic);
        }
    }
    server.taken_back(touched).await;
}
