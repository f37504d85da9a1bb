//! Nodes of a session: made, written, taken over and deleted.

use wire::jute::{EPHEMERAL, PERM_ALL, PERM_READ, Reader, Stat, Writer, code, op};

use super::Config;
use super::session::{Client, Reply};

/// Makes a node. `None`: the connection has ended.
pub(super) async fn make(
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
pub(super) async fn replace(config: &Config, client: &Client, path: &str, data: &[u8]) -> bool {
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

/// Makes the nodes above a path.
pub(super) async fn make_folders(
    config: &Config,
    client: &Client,
    path: &str,
) -> Result<(), String> {
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

/// Makes a node that stays, with the nodes above it, unless it is there.
pub(super) async fn keep(
    config: &Config,
    client: &Client,
    path: &str,
    data: &[u8],
) -> Result<(), String> {
    for _ in 0..2 {
        match make(config, client, path, data, 0).await {
            Some(Ok(_) | Err(code::NODE_EXISTS)) => return Ok(()),
            Some(Err(code::NO_NODE)) => make_folders(config, client, path).await?,
            Some(Err(code)) => return Err(format!("the server refuses to create {path}: {code}")),
            None => break,
        }
    }
    Err(format!("{path} cannot be made"))
}

/// What is in a node, and whose it is.
pub(super) async fn held(client: &Client, path: &str) -> Option<(Vec<u8>, Stat)> {
    let reply = client.call(op::GET_DATA, |writer| {
        writer.buffer(path.as_bytes()).bool(false);
    });
    let Some(Ok(body)) = reply.await else {
        return None;
    };
    let mut reader = Reader::new(&body);
    let data = reader.buffer().ok()?.to_vec();
    Some((data, Stat::read(&mut reader).ok()?))
}

/// Writes a node. Whether it did.
pub(super) async fn set_data(client: &Client, path: &str, data: &[u8]) -> bool {
    let reply = client.call(op::SET_DATA, |writer| {
        writer.buffer(path.as_bytes()).buffer(data).int(-1);
    });
    matches!(reply.await, Some(Ok(_)))
}

/// Whether the node is gone.
pub(super) async fn delete(client: &Client, path: &str) -> bool {
    let reply = client.call(op::DELETE, |writer| {
        writer.buffer(path.as_bytes()).int(-1);
    });
    matches!(reply.await, Some(Ok(_) | Err(code::NO_NODE)))
}
