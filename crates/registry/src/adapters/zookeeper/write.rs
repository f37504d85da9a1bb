//! Makes true what the hub wants in ZooKeeper: a copy is an ephemeral node of this session, so that it goes with the hub.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use wire::jute::{EPHEMERAL, PERM_ALL, PERM_READ, Reader, code, ephemeral_owner, op};

use super::Config;
use super::layout::node;
use super::session::{Client, Reply};
use crate::model::Instance;
use crate::source::{Link, Report};

/// A copy in this session.
struct Written {
    path: String,
    data: Vec<u8>,
}

/// Writes until the hub ends.
pub(super) async fn run(config: &Config, link: &Link, client: &Client) {
    let mut wanted = link.wanted();
    let mut written: HashMap<Arc<str>, Written> = HashMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        publish(config, link, client, &now.publish, &mut written).await;
        for (id, instance) in &now.withdraw {
            if let Ok((path, _)) = node(config, id, instance) {
                delete(client, &path).await;
            }
            link.report(Report::Withdrawn { id: id.clone() }).await;
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

async fn publish(
    config: &Config,
    link: &Link,
    client: &Client,
    wanted: &BTreeMap<Arc<str>, Arc<Instance>>,
    written: &mut HashMap<Arc<str>, Written>,
) {
    let gone: Vec<Arc<str>> = written
        .keys()
        .filter(|id| !wanted.contains_key(*id))
        .cloned()
        .collect();
    for id in gone {
        if let Some(before) = written.remove(&id) {
            delete(client, &before.path).await;
        }
    }
    for (id, instance) in wanted {
        let result = match node(config, id, instance) {
            Err(why) => Err(why),
            Ok((path, data)) => {
                let before = written.get(id);
                if before.is_some_and(|before| before.path == path && before.data == data) {
                    continue;
                }
                // The new one first: at no time is there none.
                let moved = before.filter(|before| before.path != path);
                let moved = moved.map(|before| before.path.clone());
                let result = create(config, client, &path, &data).await;
                if let Some(moved) = moved {
                    delete(client, &moved).await;
                }
                if result.is_ok() {
                    written.insert(id.clone(), Written { path, data });
                }
                result
            }
        };
        let id = id.clone();
        link.report(Report::Written { id, result }).await;
    }
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
                delete(client, path).await;
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
        })
        .await
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

async fn delete(client: &Client, path: &str) {
    // What is not there any more is as good as deleted; a lost connection takes the session's nodes along.
    let _ = client
        .call(op::DELETE, |writer| {
            writer.buffer(path.as_bytes()).int(-1);
        })
        .await;
}
