//! What one client has asked for, was sent, and said to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::envoy::service::discovery::v3::DiscoveryRequest;

use super::is_full_state;
use super::resource::{Resource, ResourceSet, Response, combined_hash};

/// The resources a client wants of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Everything.
    All,
    /// These.
    Listed(BTreeSet<Arc<str>>),
}

impl Names {
    fn of(request: &DiscoveryRequest) -> Names {
        let names = &request.resource_names;
        let everything = names.is_empty() && is_full_state(&request.type_url);
        if everything || names.iter().any(|name| name == "*") {
            return Names::All;
        }
        Names::Listed(names.iter().map(|name| name.as_str().into()).collect())
    }

    /// Whether `other` names something that this does not.
    fn misses(&self, other: &Names) -> bool {
        match (self, other) {
            (Names::All, _) => false,
            (Names::Listed(_), Names::All) => true,
            (Names::Listed(old), Names::Listed(new)) => !new.is_subset(old),
        }
    }
}

/// A response that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Names the response.
    pub nonce: String,
    /// Names its content: equal versions have equal content.
    pub version: String,
}

/// What a client said against a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The version it refused.
    pub version: String,
    /// Its words.
    pub message: String,
}

/// One type that a client watches.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// What it wants.
    pub names: Names,
    /// The last response.
    pub sent: Option<Sent>,
    /// The last response that it took.
    pub acked: Option<Sent>,
    /// Its refusal, until it takes another response.
    pub nack: Option<Nack>,
    /// Content that was sent of each name, for the types that are sent in parts.
    contents: HashMap<Arc<str>, u64>,
}

/// What a request was, and so what is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// It asks: send the resources, changed or not.
    Respond,
    /// It took the last response, and asks for nothing new.
    Acked,
    /// It refused the last response; nothing is sent before there is something else to send.
    Rejected,
    /// It answers a response that is not the last one: nothing to do.
    Stale,
    /// It wants nothing of the type any longer.
    Unsubscribed,
}

/// The state machine of one stream.
#[derive(Debug, Default)]
pub struct Connection {
    subscriptions: BTreeMap<String, Subscription>,
    /// Prefix of nonces and identifier of this server.
    control_plane: Arc<str>,
    responses: u64,
}

impl Connection {
    /// A fresh stream to a server that calls itself `control_plane`.
    pub fn new(control_plane: impl Into<Arc<str>>) -> Connection {
        Connection {
            subscriptions: BTreeMap::new(),
            control_plane: control_plane.into(),
            responses: 0,
        }
    }

    /// Takes a request of the client.
    pub fn on_request(&mut self, request: &DiscoveryRequest) -> Reaction {
        let names = Names::of(request);
        let Some(subscription) = self.subscriptions.get_mut(&request.type_url) else {
            // A nonce here is of an earlier stream: to this server it is the first request.
            return self.subscribe(request, names);
        };
        if request.response_nonce.is_empty() {
            return self.subscribe(request, names);
        }
        let Some(sent) = subscription
            .sent
            .clone()
            .filter(|sent| sent.nonce == request.response_nonce)
        else {
            return Reaction::Stale;
        };
        if let Some(error) = &request.error_detail {
            subscription.nack = Some(Nack {
                version: sent.version,
                message: error.message.clone(),
            });
            // A client that refuses may change its names with it; it gets them with the next response.
            subscription.names = names;
            return Reaction::Rejected;
        }
        subscription.nack = None;
        subscription.acked = Some(sent);
        if names == Names::Listed(BTreeSet::new()) {
            self.subscriptions.remove(&request.type_url);
            return Reaction::Unsubscribed;
        }
        let asks = subscription.names.misses(&names);
        subscription.names = names;
        if asks {
            Reaction::Respond
        } else {
            Reaction::Acked
        }
    }

    fn subscribe(&mut self, request: &DiscoveryRequest, names: Names) -> Reaction {
        if names == Names::Listed(BTreeSet::new()) {
            self.subscriptions.remove(&request.type_url);
            return Reaction::Unsubscribed;
        }
        let acked = self
            .subscriptions
            .remove(&request.type_url)
            .and_then(|subscription| subscription.acked);
        self.subscriptions.insert(
            request.type_url.clone(),
            Subscription {
                names,
                sent: None,
                acked,
                nack: None,
                contents: HashMap::new(),
            },
        );
        Reaction::Respond
    }

    /// The client's subscription to a type.
    pub fn subscription(&self, type_url: &str) -> Option<&Subscription> {
        self.subscriptions.get(type_url)
    }

    /// All subscriptions, by type URL.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&str, &Subscription)> {
        self.subscriptions
            .iter()
            .map(|(type_url, subscription)| (type_url.as_str(), subscription))
    }

    /// The answer to a request: all that the client named, changed or not.
    pub fn respond(&mut self, type_url: &str, set: &ResourceSet) -> Option<Response> {
        self.send(type_url, set, true)
    }

    /// A push: what the client wants and has not got. `None` when nothing changed for it.
    pub fn push(&mut self, type_url: &str, set: &ResourceSet) -> Option<Response> {
        self.send(type_url, set, false)
    }

    fn send(&mut self, type_url: &str, set: &ResourceSet, always: bool) -> Option<Response> {
        let subscription = self.subscriptions.get_mut(type_url)?;
        let wanted: Vec<&Resource> = match &subscription.names {
            Names::All => set.iter().collect(),
            Names::Listed(names) => names.iter().filter_map(|name| set.get(name)).collect(),
        };
        let hash = match &subscription.names {
            Names::All => set.hash(),
            Names::Listed(_) => combined_hash(wanted.iter().copied()),
        };
        let version = format!("{hash:016x}");
        let unchanged = subscription
            .sent
            .as_ref()
            .is_some_and(|sent| sent.version == version);
        if unchanged && !always {
            return None;
        }

        let changed: Vec<&Resource> = if always || is_full_state(type_url) {
            wanted.clone()
        } else {
            let known = &subscription.contents;
            let is_new = |r: &&Resource| known.get(&r.name) != Some(&r.hash());
            wanted.iter().copied().filter(is_new).collect()
        };
        if !is_full_state(type_url) {
            subscription.contents = wanted.iter().map(|r| (r.name.clone(), r.hash())).collect();
            // Something went away and nothing came: these types have no word for that.
            if changed.is_empty() && !always {
                return None;
            }
        }

        self.responses += 1;
        let nonce = format!("{:x}-{}", self.responses, &version[..8]);
        let response = Response::new(
            type_url,
            &version,
            &nonce,
            &self.control_plane,
            changed.into_iter(),
        );
        subscription.sent = Some(Sent { nonce, version });
        Some(response)
    }
}
