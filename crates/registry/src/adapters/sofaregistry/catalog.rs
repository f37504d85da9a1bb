//! Which ids there are. SOFARegistry tells no changes of that, so it is asked again and again: the data servers, each of which
//! knows its share of all ids; where they cannot be reached, the session servers, each of which knows those of its clients.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde::de::DeserializeOwned;

use super::Config;
use super::servers::get;
use crate::naming::{authority, host_port};
use crate::sofaregistry::DataInfoId;
use crate::web::{Web, part};

/// Servers that are asked at a time.
const REQUESTS: usize = 16;
/// Where data servers answer over HTTP, unless it is configured.
const DATA_PORT: u16 = 9622;

/// All ids, as far as they could be found out.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub(super) ids: BTreeSet<DataInfoId>,
    /// What could not be asked, and why. Nothing is known to be gone then.
    pub(super) failures: BTreeMap<String, String>,
}

/// Asks for the catalogues.
#[derive(Debug)]
pub(super) struct Catalogs {
    web: Web,
    config: Config,
}

impl Catalogs {
    pub(super) fn new(config: &Config, web: Web) -> Catalogs {
        Catalogs {
            web,
            config: config.clone(),
        }
    }

    /// The ids of the configured groups.
    pub(super) async fn read(&self) -> Catalog {
        let mut catalog = Catalog::default();
        let config = &self.config;
        for data_id in &config.data_ids {
            catalog
                .ids
                .extend(config.groups.iter().map(|group| DataInfoId {
                    data_id: data_id.clone(),
                    instance_id: config.instance_id.clone(),
                    group: group.clone(),
                }));
        }
        if !config.data_endpoints.is_empty() {
            self.summaries(&config.data_endpoints, &mut catalog).await;
        } else if config.data_ids.is_empty() {
            self.discover(&mut catalog).await;
        }
        catalog
    }

    /// Asks the data servers that a session server names, else the session servers themselves.
    async fn discover(&self, catalog: &mut Catalog) {
        let mut data = Catalog::default();
        match self.nodes("DATA", DATA_PORT).await {
            Ok(servers) => self.summaries(&servers, &mut data).await,
            Err((server, why)) => {
                data.failures.insert(server, why);
            }
        }
        if data.failures.is_empty() {
            catalog.ids.append(&mut data.ids);
            return;
        }
        let port = self.config.endpoints.first();
        let port = port.and_then(|endpoint| Some(host_port(endpoint).ok()?.1));
        let digests = match self.nodes("SESSION", port.unwrap_or_default()).await {
            Ok(servers) => self.digests(&servers).await,
            Err((server, why)) => Catalog {
                ids: BTreeSet::new(),
                failures: [(server, why)].into_iter().collect(),
            },
        };
        catalog.ids.append(&mut data.ids);
        catalog.ids.extend(digests.ids);
        if !digests.failures.is_empty() {
            catalog.failures.append(&mut data.failures);
            catalog.failures.extend(digests.failures);
        }
    }

    /// The servers of a kind, as the first session server says that answers.
    async fn nodes(&self, kind: &str, port: u16) -> Result<Vec<String>, (String, String)> {
        let mut failure = (String::new(), "there is no endpoint".to_owned());
        for endpoint in &self.config.endpoints {
            let url = format!("http://{endpoint}/digest/{kind}/serverList/query");
            match self.json::<Vec<String>>(&url).await {
                Ok(hosts) if hosts.is_empty() => {
                    failure = (url, "names no server".to_owned());
                }
                Ok(hosts) => {
                    return Ok(hosts.iter().map(|host| authority(host, port)).collect());
                }
                Err(why) => failure = (url, why),
            }
        }
        Err(failure)
    }

    /// Asks data servers. Ids that nobody publishes any more are listed for minutes, with the number 0.
    async fn summaries(&self, servers: &[String], catalog: &mut Catalog) {
        let center = part(&self.config.data_center);
        let urls = servers
            .iter()
            .map(|server| format!("http://{server}/datum/api/summary/query?dataCenter={center}"));
        for (url, answer) in self.ask::<BTreeMap<String, i64>>(urls).await {
            match answer {
                Ok(counts) => {
                    let live = counts.into_iter().filter(|(_, count)| *count > 0);
                    self.take(live.map(|(id, _)| id), catalog);
                }
                Err(why) => {
                    catalog.failures.insert(url, why);
                }
            }
        }
    }

    /// Asks session servers, which know what is published or subscribed by their clients.
    async fn digests(&self, servers: &[String]) -> Catalog {
        let urls = servers
            .iter()
            .map(|server| format!("http://{server}/digest/getDataInfoIdList"));
        let mut catalog = Catalog::default();
        for (url, answer) in self.ask::<Vec<String>>(urls).await {
            match answer {
                Ok(ids) => self.take(ids.into_iter(), &mut catalog),
                Err(why) => {
                    catalog.failures.insert(url, why);
                }
            }
        }
        catalog
    }

    fn take(&self, ids: impl Iterator<Item = String>, catalog: &mut Catalog) {
        let ids = ids.filter_map(|id| DataInfoId::parse(&id).ok());
        let ids = ids.filter(|id| {
            id.instance_id == self.config.instance_id && self.config.groups.contains(&id.group)
        });
        catalog.ids.extend(ids);
    }

    /// Asks all of them, not all at once.
    async fn ask<T: DeserializeOwned>(
        &self,
        urls: impl Iterator<Item = String>,
    ) -> Vec<(String, Result<T, String>)> {
        let asked: Vec<_> = urls
            .map(|url| async move {
                let answer = self.json::<T>(&url).await;
                (url, answer)
            })
            .collect();
        let answers = stream::iter(asked).buffer_unordered(REQUESTS);
        answers.collect().await
    }

    async fn json<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let answer = get(&self.web, url).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.describe());
        }
        serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
    }
}
