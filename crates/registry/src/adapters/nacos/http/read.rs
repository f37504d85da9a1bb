//! Reads by asking again and again: which services there are, and each of them. In between it is asked for what a push names.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::push::{Pushed, Pushes};
use super::write::Copies;
use super::{Server, write};
use crate::adapters::application_level::ServedThere;
use crate::adapters::applications::{Centre, permits};
use crate::adapters::nacos::listing::{Change, Id, Known};
use crate::adapters::nacos::login::Login;
use crate::adapters::nacos::services::Services;
use crate::adapters::nacos::{Config, Failure};
use crate::dubbo_metadata::Revisions;
use crate::nacos::ServiceInfo;
use crate::naming::dubbo_application::{MetadataInfo, Provider};
use crate::source::{Link, Report};

/// Questions under way at a time.
const QUESTIONS: usize = 32;
/// A change that so many lists confirm is certain: a server that begins anew is filled again by then.
const CONFIRMED: u8 = 3;

/// Connects to a server: its services are the first that it says.
pub(in crate::adapters::nacos) async fn open<'a>(
    config: &'a Config,
    server: &'a str,
    login: &'a Login,
) -> Result<(Server<'a>, Vec<Listed>), Failure> {
    let server = Server::open(config, server, login).await?;
    let listed = list(&server, &config.all_namespaces()).await?;
    Ok((server, listed))
}

/// Reads from a server, and writes to it, until that is no longer possible.
pub(in crate::adapters::nacos) async fn run(
    server: &Server<'_>,
    link: &Link,
    revisions: &Revisions,
    listed: Vec<Listed>,
    copies: &mut Copies,
    tell: &watch::Sender<ServedThere>,
) -> Failure {
    let report = Report::Connected {
        server: server.name.to_owned(),
    };
    link.report(report).await;
    let spaces = server.config.all_namespaces();
    tokio::select! {
        failure = read(server, link, &spaces, revisions, listed, tell) => failure,
        () = write::run(server, link, copies) => Failure::unreachable("the hub has ended"),
    }
}

/// The services of one namespace and one word for groups.
pub(in crate::adapters::nacos) type Listed =
    (usize, String, std::collections::BTreeSet<(String, String)>);

async fn list(server: &Server<'_>, spaces: &[&str]) -> Result<Vec<Listed>, Failure> {
    let mut listed = Vec::new();
    for (number, space) in spaces.iter().enumerate() {
        for group in &server.config.groups {
            let names = server.names(space, group).await?;
            listed.push((number, group.clone(), names));
        }
    }
    Ok(listed)
}

/// What was told of a service.
struct Told {
    hash: u64,
    /// Lists that say the same.
    lists: u8,
}

async fn read(
    server: &Server<'_>,
    link: &Link,
    spaces: &[&str],
    revisions: &Revisions,
    mut listed: Vec<Listed>,
    tell: &watch::Sender<ServedThere>,
) -> Failure {
    let permits = permits();
    let centre = ConfigCentre { server, spaces };
    let config = server.config;
    let tell = tell.clone();
    let mut services = Services::new(config, link, spaces, &centre, revisions, &permits, tell);
    let mut known = Known::default();
    let mut told: HashMap<Id, Told> = HashMap::new();
    let pushes = server.pushes().await;
    let pushed_to = pushes.as_ref().map(Pushes::address);
    let ask = async |id: &Id| {
        let space = spaces.get(id.space).copied().unwrap_or_default();
        server.service(space, &id.group, &id.name, pushed_to).await
    };
    loop {
        let next = Instant::now() + server.config.list_interval();
        for (space, group, names) in std::mem::take(&mut listed) {
            for change in known.listed(space, &group, &names) {
                match change {
                    Change::Came(id) => {
                        let fresh = Told { hash: 0, lists: 0 };
                        told.insert(id, fresh);
                    }
                    Change::Went(id, certain) => {
                        told.remove(&id);
                        services.went(&id, certain).await;
                    }
                }
            }
        }
        let asked: Vec<Id> = told.keys().cloned().collect();
        let asked = stream::iter(asked).map(async |id| {
            let info = ask(&id).await;
            (id, info)
        });
        let mut answers = std::pin::pin!(asked.buffer_unordered(QUESTIONS));
        while let Some((id, info)) = answers.next().await {
            match info {
                Ok(info) => take(&mut services, &mut told, &id, info).await,
                Err(failure) => return failure,
            }
        }
        // Applications are asked meanwhile.
        loop {
            services.synced().await;
            tokio::select! {
                Some(id) = services.next() => services.tell_more(&id).await,
                Some(pushed) = next_push(pushes.as_ref()) => {
                    let of = |id: &&Id| id.group == pushed.group && id.name == pushed.name;
                    // Of which namespace it is is not said.
                    let ids: Vec<Id> = told.keys().filter(of).cloned().collect();
                    for id in ids {
                        match ask(&id).await {
                            Ok(info) => take(&mut services, &mut told, &id, info).await,
                            Err(failure) => return failure,
                        }
                    }
                }
                () = sleep_until(next) => break,
            }
        }
        listed = match list(server, spaces).await {
            Ok(listed) => listed,
            Err(failure) => return failure,
        };
    }
}

async fn next_push(pushes: Option<&Pushes>) -> Option<Pushed> {
    Some(pushes?.next().await)
}

async fn take<C: Centre<Id> + Sync>(
    services: &mut Services<'_, C>,
    told: &mut HashMap<Id, Told>,
    id: &Id,
    info: ServiceInfo,
) {
    let Some(before) = told.get_mut(id) else {
        return;
    };
    let hash = hash(&info);
    let is_first = before.lists == 0;
    if is_first || before.hash != hash {
        // The first list of a session changes nothing that was seen in it.
        let lists = if is_first { CONFIRMED } else { 1 };
        *before = Told { hash, lists };
        services.take(id, info, false).await;
    } else if before.lists < CONFIRMED {
        before.lists += 1;
        if before.lists == CONFIRMED {
            services.take(id, info, true).await;
        }
    }
}

/// Tells lists apart; their times change with every answer.
fn hash(info: &ServiceInfo) -> u64 {
    let mut hasher = DefaultHasher::new();
    // What is not JSON is no host.
    let hosts = serde_json::to_string(&info.hosts).unwrap_or_default();
    hosts.hash(&mut hasher);
    hasher.finish()
}

/// Dubbo's metadata centre in Nacos: configurations.
struct ConfigCentre<'a> {
    server: &'a Server<'a>,
    spaces: &'a [&'a str],
}

impl Centre<Id> for ConfigCentre<'_> {
    async fn info(&self, id: &Id, provider: &Provider) -> Result<MetadataInfo, String> {
        let space = self.spaces.get(id.space).copied().unwrap_or_default();
        let content = self
            .server
            .config_content(space, &provider.revision, &provider.application)
            .await?;
        MetadataInfo::from_json(content.as_bytes()).map_err(|e| e.to_string())
    }
}
