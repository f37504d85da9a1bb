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
struct Written {
    path: String,
    data: Vec<u8>,
    /// The number of the writing.
    revision: u64,
}

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
                // The new one first: at no time is there none.
                let result = create(config, client, &path, &data).await;
                done &= result.is_ok();
                if result.is_ok() {
                    let now = Written {
                        path,
                        data,
                        revision,
                    };
                    let moved = written.insert(id.clone(), now);
                    if let Some(moved) = moved
                        && written.get(id).is_some_and(|now| now.path != moved.path)
                    {
                        delete_own(client, &moved).await;
                    }
                }
                result
            }
        };
        let id = id.clone();
        link.report(Report::Written { id, result }).await;
    }
    done
}

/// Makes the node this session's. One that is there is of an earlier session of a hub (its name has a hub's mark), or has
/// other data: it is made anew.
async fn create(config: &Config, client: &Client, path: &str, data: &[u8]) -> Result<(), String> {
    for _ in 0..3 {
        match make(config, client, path, data, EPHEMERAL).await {
            Some(Ok(_)) => return Ok(()),
            Some(Err(code::NO_NODE)) => make_folders(config, client, path).await?,
            Some(Err(code::NODE_EXISTS)) => {
                if is_own(client, path, data).await {
                    return Ok(());
                }
                if replace(config, client, path, data).await {
                    return Ok(());
                }
            }
            Some(Err(code)) => {
                return Err(format!("the server refuses to create the node: {code}"));
            }
            None => return Err("the connection has ended".to_owned()),
        }
    }
    Err("the node is deleted and made by others all the time".to_owned())
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

/// Makes a node of another session this one's, in one step: nobody sees it gone.
async fn replace(config: &Config, client: &Client, path: &str, data: &[u8]) -> bool {
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

async fn is_own(client: &Client, path: &str, data: &[u8]) -> bool {
    let reply = client.call(op::GET_DATA, |writer| {
        writer.buffer(path.as_bytes()).bool(false);
    });
    let Some(Ok(body)) = reply.await else {
        return false;
    };
    let mut reader = Reader::new(&body);
    let same = reader.buffer().is_ok_and(|known| known == data);
    same && ephemeral_owner(&mut reader) == Ok(client.session())
}

/// Deletes a node if it still is this session's: another hub may have taken it over.
async fn delete_own(client: &Client, node: &Written) -> bool {
    !is_own(client, &node.path, &node.data).await || delete(client, &node.path).await
}

/// Whether the node is gone.
async fn delete(client: &Client, path: &str) -> bool {
    let reply = client.call(op::DELETE, |writer| {
        writer.buffer(path.as_bytes()).int(-1);
    });
    matches!(reply.await, Some(Ok(_) | Err(code::NO_NODE)))
}
