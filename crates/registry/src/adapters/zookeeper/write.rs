//! Makes true what the hub wants in ZooKeeper: a copy is an ephemeral node of this session, so that it goes with the hub.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use wire::jute::{EPHEMERAL, code};

use super::Config;
use super::application_level::{ApplicationNodes, application_nodes};
use super::layout::node;
use super::nodes::{delete, held, keep, make, make_folders, replace, set_data};
use super::session::Client;
use crate::adapters::application_level::{ServedThere, application_beside};
use crate::model::Instance;
use crate::source::{Link, Report};

/// A copy in this session.
#[derive(Clone, Debug)]
struct Written {
    path: String,
    data: Vec<u8>,
    /// The number of the writing.
    revision: u64,
    /// It was made or found in this connection.
    is_checked: bool,
}

/// Which of the nodes of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Level {
    /// What its framework has in any case.
    Own,
    /// Dubbo's application level.
    Application,
}

type Key = (Arc<str>, Level);

/// The nodes of a session, which outlive its connections.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<Key, Written>);

/// Until those who watch a node have read it.
const SEEN: Duration = Duration::from_secs(1);
/// Until what the server refused is tried again, doubled with each failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What writes in one connection.
struct Writer<'a> {
    config: &'a Config,
    link: &'a Link,
    client: &'a Client,
    served: ServedThere,
    written: &'a mut HashMap<Key, Written>,
}

/// Writes until the hub ends.
pub(super) async fn run(
    config: &Config,
    link: &Link,
    client: &Client,
    mut served: watch::Receiver<ServedThere>,
    Nodes(written): &mut Nodes,
) {
    if !client.is_resumed() {
        written.clear();
    }
    for node in written.values_mut() {
        node.is_checked = false;
    }
    let mut wanted = link.wanted();
    let mut writer = Writer {
        config,
        link,
        client,
        served: None,
        written,
    };
    let (min, max) = AGAIN;
    let mut again = min;
    loop {
        let now = wanted.borrow_and_update().clone();
        writer.served = served.borrow_and_update().clone();
        if now.rests {
            // The session keeps what there is.
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let mut done = writer.publish(&now.publish).await;
        for (id, instance) in &now.withdraw {
            let withdrawn = writer.withdraw(id, instance).await;
            done &= withdrawn;
            if withdrawn {
                link.report(Report::Withdrawn { id: id.clone() }).await;
            }
        }
        again = if done { min } else { (again * 2).min(max) };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            // Its sender goes with the connection.
            Ok(()) = served.changed() => {}
            () = tokio::time::sleep(again), if !done => {}
        }
    }
}

impl Writer<'_> {
    /// Makes the wanted nodes and deletes those of this session that are wanted no longer. Whether all went well.
    async fn publish(&mut self, wanted: &BTreeMap<Arc<str>, Arc<Instance>>) -> bool {
        let mut done = self.delete_unwanted(wanted).await;
        let mut of_others = Vec::new();
        let mut failed: HashSet<&Arc<str>> = HashSet::new();
        for (id, instance) in wanted {
            let mut result = None;
            match self.nodes(id, instance) {
                Err(why) => result = Some(Err(why)),
                Ok(nodes) => {
                    for (level, now, at_level) in nodes {
                        let key = (id.clone(), level);
                        if self.written.get(&key).is_some_and(|known| known.is(&now)) {
                            continue;
                        }
                        // The new one first: at no time is there none.
                        match self.create(&now, at_level).await {
                            Ok(Made::Ours) => {
                                self.remember(key, now).await;
                                result.get_or_insert(Ok(()));
                            }
                            Ok(Made::OfOthers) => of_others.push((key, now)),
                            Err(why) => {
                                done = false;
                                failed.insert(id);
                                result = Some(Err(why));
                            }
                        }
                    }
                }
            }
            if let Some(result) = result {
                let id = id.clone();
                self.link.report(Report::Written { id, result }).await;
            }
        }
        if of_others.is_empty() {
            return done;
        }
        self.stand_in(&of_others, true).await;
        for ((id, level), now) in &of_others {
            let (path, data) = (now.path.as_str(), now.data.as_slice());
            // Its session may have ended meanwhile.
            let is_ours = replace(self.config, self.client, path, data).await
                || matches!(
                    make(self.config, self.client, path, data, EPHEMERAL).await,
                    Some(Ok(_))
                );
            done &= is_ours;
            if is_ours {
                self.remember((id.clone(), *level), now.clone()).await;
            }
            let result = if is_ours {
                Ok(())
            } else {
                Err("the node is deleted and made by others all the time".to_owned())
            };
            if !failed.contains(id) {
                let id = id.clone();
                self.link.report(Report::Written { id, result }).await;
            }
        }
        self.stand_in(&of_others, false).await;
        done
    }

    /// The nodes of a copy, and of one of the application level all that belongs to it; an error says why there is none.
    fn nodes(
        &self,
        id: &str,
        instance: &Instance,
    ) -> Result<Vec<(Level, Written, Option<ApplicationNodes>)>, String> {
        let written = |(path, data): &(String, Vec<u8>)| Written {
            path: path.clone(),
            data: data.clone(),
            revision: instance.revision,
            is_checked: true,
        };
        let own = node(self.config, id, instance)?;
        let mut nodes = vec![(Level::Own, written(&own), None)];
        if let Some(application) = application_beside(&self.served, instance)
            && let Some(at_level) = application_nodes(self.config, application, instance)
        {
            nodes.push((Level::Application, written(&at_level.node), Some(at_level)));
        }
        Ok(nodes)
    }

    async fn delete_unwanted(&mut self, wanted: &BTreeMap<Arc<str>, Arc<Instance>>) -> bool {
        let is_wanted = |(id, level): &Key| match (wanted.get(id), level) {
            (of, Level::Own) => of.is_some(),
            // Until it is known what is served there, what is there stays.
            (_, Level::Application) if self.served.is_none() => true,
            (None, Level::Application) => false,
            (Some(instance), Level::Application) => {
                instance.healthy && application_beside(&self.served, instance).is_some()
            }
        };
        let unwanted = self.written.keys().filter(|key| !is_wanted(key)).cloned();
        let mut done = true;
        for key in unwanted.collect::<Vec<_>>() {
            if let Some(before) = self.written.remove(&key)
                && !delete_own(self.client, &before).await
            {
                done = false;
                self.written.insert(key, before);
            }
        }
        done
    }

    /// Remembers what is written now; what the copy was before goes.
    async fn remember(&mut self, key: Key, now: Written) {
        let path = now.path.clone();
        if let Some(before) = self.written.insert(key, now)
            && before.path != path
        {
            delete_own(self.client, &before).await;
        }
    }

    /// Deletes a copy, whoever wrote it. Whether it is gone.
    async fn withdraw(&mut self, id: &Arc<str>, instance: &Instance) -> bool {
        // What has no place here was never here.
        let own = node(self.config, id, instance).ok().map(|(path, _)| path);
        let part = application_beside(&self.served, instance)
            .and_then(|application| application_nodes(self.config, application, instance))
            .map(|nodes| nodes.node.0);
        let key = (id.clone(), Level::Application);
        let known = self.written.get(&key).map(|known| known.path.clone());
        let mut is_gone = true;
        for path in own.into_iter().chain(part).chain(known) {
            is_gone &= delete(self.client, &path).await;
        }
        if is_gone {
            self.written.remove(&key);
        }
        is_gone
    }

    async fn create(
        &self,
        now: &Written,
        at_level: Option<ApplicationNodes>,
    ) -> Result<Made, String> {
        let (config, client) = (self.config, self.client);
        if let Some(at_level) = at_level {
            let (path, data) = &at_level.info;
            keep(config, client, path, data).await?;
        }
        for _ in 0..3 {
            match make(config, client, &now.path, &now.data, EPHEMERAL).await {
                Some(Ok(_)) => return Ok(Made::Ours),
                Some(Err(code::NO_NODE)) => make_folders(config, client, &now.path).await?,
                Some(Err(code::NODE_EXISTS)) => match held(client, &now.path).await {
                    Some((data, stat)) if stat.ephemeral_owner == client.session() => {
                        // Another connection of this session may have left it.
                        if let Some(path) = now.stand_in(client) {
                            delete(client, &path).await;
                        }
                        if data == now.data || set_data(client, &now.path, &now.data).await {
                            return Ok(Made::Ours);
                        }
                    }
                    Some(_) => return Ok(Made::OfOthers),
                    None => {}
                },
                Some(Err(code)) => {
                    return Err(format!("the server refuses to create the node: {code}"));
                }
                None => return Err("the connection has ended".to_owned()),
            }
        }
        Err("the node is deleted and made by others all the time".to_owned())
    }

    /// Makes the nodes that stand in for others, or deletes them, before or after everybody has seen the others.
    async fn stand_in(&self, nodes: &[(Key, Written)], is_there: bool) {
        let paths = nodes
            .iter()
            .filter_map(|(_, node)| Some((node.stand_in(self.client)?, node)));
        let paths: Vec<(String, &Written)> = paths.collect();
        if paths.is_empty() {
            return;
        }
        if !is_there {
            tokio::time::sleep(SEEN).await;
        }
        for (path, node) in &paths {
            // One that cannot be made stands in for nothing; one that stays goes with the session.
            if is_there {
                let _ = make(self.config, self.client, path, &node.data, EPHEMERAL).await;
            } else {
                delete(self.client, path).await;
            }
        }
        if is_there {
            tokio::time::sleep(SEEN).await;
        }
    }
}

/// What became of a node that is to be made.
enum Made {
    Ours,
    /// It is of another session: of an earlier one of a hub (its name has a hub's mark).
    OfOthers,
}

impl Written {
    /// Whether it is known to be what it has to be.
    fn is(&self, other: &Written) -> bool {
        let is_same = self.path == other.path && self.data == other.data;
        is_same && self.revision == other.revision && self.is_checked
    }

    /// Clients of applications watch nodes one by one and see even what is gone for no time: another node stands in for one
    /// that is made anew. Clients of other layouts read folders, and take names for URLs.
    fn stand_in(&self, client: &Client) -> Option<String> {
        let is_application = self.data.first() == Some(&b'{');
        is_application.then(|| format!("{}~{:x}", self.path, client.session()))
    }
}

/// Deletes a node if it still is this session's: another hub may have taken it over.
async fn delete_own(client: &Client, node: &Written) -> bool {
    let held = held(client, &node.path).await;
    let is_own = held
        .is_some_and(|(data, stat)| data == node.data && stat.ephemeral_owner == client.session());
    !is_own || delete(client, &node.path).await
}
