//! How commands are carried out: each is a call to etcd, and is answered when its outcome can be seen here.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Answer, Command, Done, Pending};
use super::Shared;
use super::keys::{Key, Keys};
use super::records::{self, Session};
use super::writes::{self, Put};
use crate::adapters::etcd::client::{Client, Failure};
use crate::adapters::etcd::messages::PutRequest;
use crate::error::Error;
use crate::interfaces::{Interface, InterfaceKey};
use crate::model::{Instance, InstanceRef};
use crate::sessions::{self, SessionClaim, SessionState};
use crate::state::{Registered, Renewed};

/// Why a call came to nothing.
pub(super) enum Undone {
    /// The store failed.
    Store(Failure),
    /// It cannot be done.
    Refused(Error),
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Undone {
        Undone::Store(failure)
    }
}

/// What is answered, and the store's revision from which on it is visible.
pub(super) type Outcome = (Pending, Result<i64, Undone>);
pub(super) type Call = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A result, or what stands in its place beside an error.
fn parted<T: Default>(done: Result<(T, i64), Undone>) -> (T, Result<i64, Undone>) {
    match done {
        Ok((result, revision)) => (result, Ok(revision)),
        Err(undone) => (T::default(), Err(undone)),
    }
}

/// The session of a claim, as it is known here or else as the store has it: another registry may have opened it a moment ago.
async fn find(
    client: &Client,
    keys: &Keys,
    known: Option<Session>,
    claim: &SessionClaim,
) -> Result<Session, Undone> {
    let session = match known {
        Some(session) => Some(session),
        None => records::find_session(client, keys, claim.id).await?,
    };
    let own = session.filter(|session| session.owner == claim.owner);
    own.ok_or_else(|| Undone::Refused(sessions::no_session()))
}

/// What is fit to be carried out, or an answer why not.
fn or_refuse<C, T>(checked: Result<C, Error>, answer: Answer<T>) -> Option<(C, Answer<T>)> {
    match checked {
        Ok(fit) => Some((fit, answer)),
        Err(error) => {
            // One who does not wait for the answer any more does not need it.
            drop(answer.send(Err(error)));
            None
        }
    }
}

impl Shared {
    /// How many instances a session holds.
    fn instances_in(&self, session: Option<&Session>) -> usize {
        let held = session.and_then(|session| self.held.get(&session.lease));
        held.map_or(0, |held| held.instances.len())
    }

    /// Begins to carry out a command.
    pub(super) fn begin(&mut self, command: Command, client: &Client) {
        let client = client.clone();
        let call = match command {
            Command::Register(instances, None, answer) => self.register(instances, answer, client),
            Command::Register(instances, Some(claim), answer) => {
                self.register_in(claim, instances, answer, client)
            }
            Command::Renew(references, answer) => Some(self.renew(references, answer, client)),
            Command::Deregister(references, answer) => {
                Some(self.deregister(references, answer, client))
            }
            Command::OpenSession(claim, ttl, answer) => {
                self.open_session(claim, ttl, answer, client)
            }
            Command::GetSession(claim, answer) => {
                Some(self.look_at_session(claim, false, answer, client))
            }
            Command::RenewSession(claim, answer) => {
                Some(self.look_at_session(claim, true, answer, client))
            }
            Command::CloseSession(claim, answer) => Some(self.close_session(claim, answer, client)),
            Command::PutInterface(interface, answer) => {
                self.put_interface(&interface, answer, client)
            }
            Command::RemoveInterface(key, answer) => self.remove_interface(key, answer, client),
            Command::SetDocument(name, value, answer) => {
                Some(self.set_document(&name, value, answer, client))
            }
            Command::Restore(instances, interfaces, answer) => {
                self.restore(&instances, &interfaces, answer, client)
            }
            Command::Close(_) => None,
        };
        self.calls.extend(call);
    }

    fn register(
        &mut self,
        instances: Vec<Instance>,
        answer: Answer<Vec<Registered>>,
        client: Client,
    ) -> Option<Call> {
        let batch = self.state.batch();
        let prepared = self.state.prepare(&batch, instances);
        let (instances, answer) = or_refuse(prepared, answer)?;
        let (mut puts, mut same) = (HashMap::new(), Vec::new());
        let mut registered = Vec::with_capacity(instances.len());
        for instance in &instances {
            let reference = instance.reference();
            let before = batch.get(&reference);
            registered.push(Registered {
                id: instance.id.clone(),
                created: before.is_none() && !puts.contains_key(&reference),
                ttl: instance.ttl,
            });
            // What a session holds gets a lease of its own.
            let is_same = before.is_some_and(|before| before.same_content(instance));
            if is_same && self.session_of(&reference).is_none() {
                same.push(reference);
            } else {
                puts.insert(reference, Put::new(&self.keys, instance));
            }
        }
        let renewal = self.renewal(&same);
        let contents: HashMap<InstanceRef, Put> = same
            .iter()
            .filter_map(|reference| {
                let instance = batch.get(reference)?;
                Some((reference.clone(), Put::new(&self.keys, instance)))
            })
            .collect();
        Some(Box::pin(async move {
            let write = async {
                // What has lapsed in this moment is put in anew.
                let over = renewal.carry_out(&client).await?;
                let again = over.iter().filter_map(|gone| contents.get(gone).cloned());
                let puts = puts.into_values().chain(again).collect();
                Ok(writes::put_all(&client, puts).await?)
            };
            let done = write.await;
            (Pending::Registered(answer, registered), done)
        }))
    }

    fn register_in(
        &mut self,
        claim: SessionClaim,
        mut instances: Vec<Instance>,
        answer: Answer<Vec<Registered>>,
        client: Client,
    ) -> Option<Call> {
        let known = self.sessions.get(&claim.id).cloned();
        for instance in &mut instances {
            instance.ttl = known.as_ref().map(|session| session.ttl);
        }
        let batch = self.state.batch();
        let prepared = self.state.prepare(&batch, instances);
        let (instances, answer) = or_refuse(prepared, answer)?;
        let mut registered = Vec::with_capacity(instances.len());
        let mut writes: HashMap<InstanceRef, Arc<Instance>> = HashMap::new();
        for instance in instances {
            let reference = instance.reference();
            let before = batch.get(&reference);
            registered.push(Registered {
                id: instance.id.clone(),
                created: before.is_none() && !writes.contains_key(&reference),
                ttl: None,
            });
            let is_same = before.is_some_and(|before| before.same_content(&instance));
            if is_same && self.session_of(&reference) == Some(claim.id) {
                writes.remove(&reference);
            } else {
                writes.insert(reference, instance);
            }
        }
        let keys = self.keys.clone();
        Some(Box::pin(async move {
            let write = async {
                let session = find(&client, &keys, known, &claim).await?;
                let puts = writes.into_values().map(|mut instance| {
                    Arc::make_mut(&mut instance).ttl = Some(session.ttl);
                    Put::new(&keys, &instance)
                });
                let at = (keys.name(&Key::Session(claim.id)), session.revision);
                let done = writes::put_in(&client, puts.collect(), session.lease, at).await?;
                let revision = done.ok_or_else(|| Undone::Refused(sessions::no_session()))?;
                for registered in &mut registered {
                    registered.ttl = Some(session.ttl);
                }
                Ok((registered, revision))
            };
            let (registered, done) = parted(write.await);
            (Pending::Registered(answer, registered), done)
        }))
    }

    fn renew(
        &mut self,
        references: Vec<InstanceRef>,
        answer: Answer<Renewed>,
        client: Client,
    ) -> Call {
        let batch = self.state.batch();
        let (known, mut unknown): (Vec<_>, Vec<_>) = references
            .into_iter()
            .partition(|reference| batch.get(reference).is_some());
        let renewal = self.renewal(&known);
        Box::pin(async move {
            let (over, done) = parted(match renewal.carry_out(&client).await {
                Ok(over) => Ok((over, 0)),
                Err(failure) => Err(failure.into()),
            });
            let renewed = known.len().saturating_sub(over.len());
            unknown.extend(over);
            let renewed = Renewed { renewed, unknown };
            (Pending::Renewed(answer, renewed), done)
        })
    }

    fn deregister(
        &mut self,
        references: Vec<InstanceRef>,
        answer: Answer<usize>,
        client: Client,
    ) -> Call {
        let batch = self.state.batch();
        let known: HashSet<InstanceRef> = references
            .into_iter()
            .filter(|reference| batch.get(reference).is_some())
            .collect();
        let known: Vec<InstanceRef> = known.into_iter().collect();
        let keys = self.keys.clone();
        Box::pin(async move {
            let done = writes::delete_all(&client, &keys, &known).await;
            let pending = Pending::Deregistered(answer, known.len());
            (pending, done.map_err(Undone::Store))
        })
    }

    fn open_session(
        &mut self,
        claim: SessionClaim,
        ttl: Duration,
        answer: Answer<SessionState>,
        client: Client,
    ) -> Option<Call> {
        let checked = sessions::check_new(&self.limits, self.sessions.len(), ttl);
        let ((), answer) = or_refuse(checked, answer)?;
        let key = self.keys.name(&Key::Session(claim.id));
        Some(Box::pin(async move {
            let open = async {
                let put = PutRequest {
                    key,
                    value: records::session_value(&claim.owner, ttl),
                    lease: writes::grant(&client, ttl).await?,
                };
                let done = client.put_at(put, 0).await?;
                // Its id was drawn: nobody else has it.
                done.ok_or_else(|| Undone::Refused(sessions::no_session()))
            };
            let done = open.await;
            let state = SessionState { ttl, instances: 0 };
            (Pending::Session(answer, state), done)
        }))
    }

    fn look_at_session(
        &mut self,
        claim: SessionClaim,
        renews: bool,
        answer: Answer<SessionState>,
        client: Client,
    ) -> Call {
        let known = self.sessions.get(&claim.id).cloned();
        let instances = self.instances_in(known.as_ref());
        let keys = self.keys.clone();
        Box::pin(async move {
            let look = async {
                let session = find(&client, &keys, known, &claim).await?;
                if renews && !client.keep_alive(session.lease).await? {
                    return Err(Undone::Refused(sessions::no_session()));
                }
                let ttl = session.ttl;
                Ok((SessionState { ttl, instances }, 0))
            };
            let (state, done) = parted(look.await);
            (Pending::Session(answer, state), done)
        })
    }

    /// The session's key goes first, so that nobody joins it any more; with the lease all that it holds goes, and nothing that
    /// has got another lease meanwhile.
    fn close_session(
        &mut self,
        claim: SessionClaim,
        answer: Answer<usize>,
        client: Client,
    ) -> Call {
        let known = self.sessions.get(&claim.id).cloned();
        let count = self.instances_in(known.as_ref());
        let keys = self.keys.clone();
        Box::pin(async move {
            let close = async {
                let session = find(&client, &keys, known, &claim).await?;
                let key = keys.name(&Key::Session(claim.id));
                let deleted = writes::delete(&client, key, Some(session.revision)).await?;
                if deleted.is_none() {
                    return Err(Undone::Refused(sessions::no_session()));
                }
                Ok(client.revoke(session.lease).await?)
            };
            let done = close.await;
            (Pending::Deregistered(answer, count), done)
        })
    }

    fn put_interface(
        &mut self,
        interface: &Interface,
        answer: Answer<bool>,
        client: Client,
    ) -> Option<Call> {
        let checked = self
            .interfaces
            .check_room(&[&interface.key], self.limits.interfaces);
        let ((), answer) = or_refuse(checked, answer)?;
        let created = self.interfaces.get(&interface.key).is_none();
        let put = Put::interface(&self.keys, interface);
        Some(Box::pin(async move {
            let done = writes::put_all(&client, vec![put]).await;
            let pending = Pending::Interface(answer, created);
            (pending, done.map_err(Undone::Store))
        }))
    }

    fn remove_interface(
        &mut self,
        key: InterfaceKey,
        answer: Answer<bool>,
        client: Client,
    ) -> Option<Call> {
        if self.interfaces.get(&key).is_none() {
            let revision = self.published.services.load().revision;
            let result = false;
            drop(answer.send(Ok(Done { revision, result })));
            return None;
        }
        let key = self.keys.name(&Key::Interface(key));
        Some(Box::pin(async move {
            let done = writes::delete(&client, key, None).await;
            let revision = done.map(Option::unwrap_or_default);
            let pending = Pending::Interface(answer, true);
            (pending, revision.map_err(Undone::Store))
        }))
    }

    fn set_document(
        &self,
        name: &Arc<str>,
        value: Option<Bytes>,
        answer: Answer<()>,
        client: Client,
    ) -> Call {
        let key = self.keys.name(&Key::Document(name.clone()));
        let put = value.map(|value| Put::document(&self.keys, name, &value));
        Box::pin(async move {
            let done = match put {
                Some(put) => writes::put_all(&client, vec![put]).await,
                None => writes::delete(&client, key, None)
                    .await
                    .map(Option::unwrap_or_default),
            };
            (Pending::Document(answer), done.map_err(Undone::Store))
        })
    }

    fn restore(
        &mut self,
        instances: &[Instance],
        interfaces: &[Interface],
        answer: Answer<usize>,
        client: Client,
    ) -> Option<Call> {
        let there = self.state.services().instances();
        let keys: Vec<&InterfaceKey> = interfaces.iter().map(|i| &i.key).collect();
        let checked = match there {
            0 => self.interfaces.check_room(&keys, self.limits.interfaces),
            _ => Err(Error::NotEmpty(there)),
        };
        let ((), answer) = or_refuse(checked, answer)?;
        let described = interfaces.iter().map(|i| Put::interface(&self.keys, i));
        let registered = instances.iter().map(|i| Put::new(&self.keys, i));
        let puts = described.chain(registered).collect();
        let count = instances.len();
        Some(Box::pin(async move {
            let done = writes::put_all(&client, puts).await;
            let pending = Pending::Restored(answer, count);
            (pending, done.map_err(Undone::Store))
        }))
    }
}
