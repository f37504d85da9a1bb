//! Makes true what the hub wants in ZooKeeper: a copy is an ephemeral node of this session, so that it goes with the hub.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use wire::jute::{EPHEMERAL, PERM_ALL, PERM_READ, Reader, Writer, code, ephemeral_owner, op};

use super::Config;
use super::layout::node;
use super::session::{Client, Reply};
use crate::model::Instance;
use crate::source::{Link, Report};

/// A copy in this session.
#[derive(Clone)]
struct Written {
    path: String,
    data: Vec<u8>,
    /// The number of the writing.
    revision: u64,
}

/// Until those who watch a node have read it.
const SEEN: Duration = Duration::from_secs(1);
/// Until what the server refused is tried again, doubled with each failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Writes until the hub ends.
pub(super) async fn run(config: &Config, link: &Link, client: &Client) {
    let mut wanted = link.wanted();
    let mut written: HashMap<Arc<str>, Written> = HashMap::new();
    let (min, max) = AGAIN;
    let mut again = min;
    loop {
        let now = wanted.borrow_and_update().clone();
        if now.rests {
            // The session keeps what there is.
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let published = publish(config, link, client, &now.publish, &mut written).await;
        let mut done = published;
        for (id, instance) in &now.withdraw {
            let withdrawn = match node(config, id, instance) {
                Ok((path, _)) => delete(client, &path).await,
                // What has no place here was never here.
                Err(_) => true,
            };
            done &= withdrawn;
            if withdrawn {
                link.report(Report::Withdrawn { id: id.clone() }).await;
            }
        }
        again = if done { min } else { (again * 2).min(max) };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again), if !done => {}
        }
    }
}

/// Makes the wanted nodes and deletes those of this session that are wanted no longer. Whether all went well.
async fn publish(
    config: &Config,
    link: &Link,
    client: &Client,
    wanted: &BTreeMap<Arc<str>, Arc<Instance>>,
    written: &mut HashMap<Arc<str>, Written>,
) -> bool {
    let gone: Vec<Arc<str>> = written
        .keys()
        .filter(|id| !wanted.contains_key(*id))
        .cloned()
        .collect();
    let mut done = true;
    for id in gone {
        if let Some(before) = written.remove(&id)
            && !delete_own(client, &before).await
        {
            done = false;
            written.insert(id, before);
        }
    }
    let mut of_others = Vec::new();
    for (id, instance) in wanted {
        let result = match node(config, id, instance) {
            Err(why) => Err(why),
            Ok((path, data)) => {
                let before = written.get(id);
                let revision = instance.revision;
                let is_same = |before: &Written| {
                    before.path == path && before.data == data && before.revision == revision
                };
                if before.is_some_and(is_same) {
                    continue;
                }
                let now = Written {
                    path,
                    data,
                    revision,
                };
                // The new one first: at no time is there none.
                match create(config, client, &now).await {
                    Ok(Made::Ours) => {
                        keep(client, id, now, written).await;
                        Ok(())
                    }
                    Ok(Made::OfOthers) => {
                        of_others.push((id.clone(), now));
                        continue;
                    }
                    Err(why) => {
                        done = false;
                        Err(why)
                    }
                }
            }
        };
        let id = id.clone();
        link.report(Report::Written { id, result }).await;
    }
    if of_others.is_empty() {
        return done;
    }
    stand_in(config, client, &of_others, true).await;
    for (id, now) in &of_others {
        // Its session may have ended meanwhile.
        let is_ours = replace(config, client, now).await
            || matches!(
                make(config, client, &now.path, &now.data, EPHEMERAL).await,
                Some(Ok(_))
            );
        done &= is_ours;
        if is_ours {
            keep(client, id, now.clone(), written).await;
        }
        let result = if is_ours {
            Ok(())
        } else {
            Err("the node is deleted and made by others all the time".to_owned())
        };
        let id = id.clone();
        link.report(Report::Written { id, result }).await;
    }
    stand_in(config, client, &of_others, false).await;
    done
}

/// Remembers what is written now; what the copy was before goes.
async fn keep(
    client: &Client,
    id: &Arc<str>,
    now: Written,
    written: &mut HashMap<Arc<str>, Written>,
) {
    let path = now.path.clone();
    if let Some(before) = written.insert(id.clone(), now)
        && before.path != path
    {
        delete_own(client, &before).await;
    }
}

/// What became of a node that is to be made.
enum Made {
    Ours,
    /// It is of another session: of an earlier one of a hub (its name has a hub's mark).
    OfOthers,
}

async fn create(config: &Config, client: &Client, node: &Written) -> Result<Made, String> {
    for _ in 0..3 {
        match make(config, client, &node.path, &node.data, EPHEMERAL).await {
            Some(Ok(_)) => return Ok(Made::Ours),
            Some(Err(code::NO_NODE)) => make_folders(config, client, &node.path).await?,
            Some(Err(code::NODE_EXISTS)) => match held(client, &node.path).await {
                Some((data, owner)) if owner == client.session() => {
                    // Another connection of this session may have left it.
                    if let Some(path) = node.stand_in(client) {
                        delete(client, &path).await;
                    }
                    if data == node.data || set_data(client, &node.path, &node.data).await {
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

impl Written {
    /// Clients of applications watch nodes one by one and see even what is gone for no time: another node stands in for one
    /// that is made anew. Clients of other layouts read folders, and take names for URLs.
    fn stand_in(&self, client: &Client) -> Option<String> {
        let is_application = self.data.first() == Some(&b'{');
        is_application.then(|| format!("{}~{:x}", self.path, client.session()))
    }
}

/// Makes the nodes that stand in for others, or deletes them, before or after everybody has seen the others.
async fn stand_in(config: &Config, client: &Client, nodes: &[(Arc<str>, Written)], is_there: bool) {
    let paths = nodes
        .iter()
        .filter_map(|(_, node)| Some((node.stand_in(client)?, node)));
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
            let _ = make(config, client, path, &node.data, EPHEMERAL).await;
        } else {
            delete(client, path).await;
        }
    }
    if is_there {
        tokio::time::sleep(SEEN).await;
    }
}

async fn make(
    config: &Config,
    client: &Client,
    path: &str,
    data: &[u8],
    flags: i32,
) -> Option<Reply> {
    client
        .call(op::CREATE, |writer| {
            create_request(writer, config, path, data, flags)
        })
        .await
}

/// Makes a node of another session this one's, in one step: who reads folders never sees it gone.
async fn replace(config: &Config, client: &Client, node: &Written) -> bool {
    let Written { path, data, .. } = node;
    let reply = client.call(op::MULTI, |writer| {
        writer.int(op::DELETE).bool(false).int(-1);
        writer.buffer(path.as_bytes()).int(-1);
        writer.int(op::CREATE).bool(false).int(-1);
        create_request(writer, config, path, data, EPHEMERAL);
        writer.int(-1).bool(true).int(-1);
    });
    let Some(Ok(body)) = reply.await else {
        return false;
    };
    // `MultiHeader` of the first result: it is an error when any of them failed.
    Reader::new(&body).int() == Ok(op::DELETE)
}

fn create_request(writer: &mut Writer, config: &Config, path: &str, data: &[u8], flags: i32) {
    writer.buffer(path.as_bytes()).buffer(data);
    if config.digest.is_some() {
        // Who logged in may do anything, everybody may read: consumers need not log in.
        writer.int(2);
        writer.int(PERM_ALL).buffer(b"auth").buffer(b"");
        writer.int(PERM_READ).buffer(b"world").buffer(b"anyone");
    } else {
        writer.int(1);
        writer.int(PERM_ALL).buffer(b"world").buffer(b"anyone");
    }
    writer.int(flags);
}

async fn make_folders(config: &Config, client: &Client, path: &str) -> Result<(), String> {
    let ends = path.char_indices().filter(|(at, c)| *c == '/' && *at > 0);
    for (end, _) in ends {
        let Some(folder) = path.get(..end) else {
            continue;
        };
        match make(config, client, folder, &[], 0).await {
            Some(Ok(_) | Err(code::NODE_EXISTS)) => {}
            // One may not be allowed to make what is there.
            Some(Err(code::NO_AUTH)) => {}
            Some(Err(code)) => {
                return Err(format!("the server refuses to create {folder}: {code}"));
            }
            None => return Err("the connection has ended".to_owned()),
        }
    }
    Ok(())
}

/// What is in a node, and whose it is.
async fn held(client: &Client, path: &str) -> Option<(Vec<u8>, i64)> {
    let reply = client.call(op::GET_DATA, |writer| {
        writer.buffer(path.as_bytes()).bool(false);
    });
    let Some(Ok(body)) = reply.await else {
        return None;
    };
    let mut reader = Reader::new(&body);
    let data = reader.buffer().ok()?.to_vec();
    let owner = ephemeral_owner(&mut reader).ok()?;
    Some((data, owner))
}

async fn set_data(client: &Client, path: &str, data: &[u8]) -> bool {
    let reply = client.call(op::SET_DATA, |writer| {
        writer.buffer(path.as_bytes()).buffer(data).int(-1);
    });
    matches!(reply.await, Some(Ok(_)))
}

/// Deletes a node if it still is this session's: another hub may have taken it over.
async fn delete_own(client: &Client, node: &Written) -> bool {
    let own = (node.data.clone(), client.session());
    held(client, &node.path).await != Some(own) || delete(client, &node.path).await
}

/// Whether the node is gone.
async fn delete(client: &Client, path: &str) -> bool {
    let reply = client.call(op::DELETE, |writer| {
        writer.buffer(path.as_bytes()).int(-1);
    });
    matches!(reply.await, Some(Ok(_) | Err(code::NO_NODE)))
}
