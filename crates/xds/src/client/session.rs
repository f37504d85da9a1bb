//! The state of an ADS client, over all its streams.

use std::collections::BTreeSet;

use api::envoy::config::core::v3::Node;
use api::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use api::google::rpc::Status;

use super::{Event, ResourceType};

/// gRPC's INVALID_ARGUMENT, as Envoy sends it with a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// What is asked and what was accepted.
#[derive(Debug)]
pub struct Session {
    node: Node,
    node_sent: bool,
    open: bool,
    types: [TypeState; 4],
}

#[derive(Debug, Default)]
struct TypeState {
    /// Outer `None`: not asked; inner `None`: all.
    wanted: Option<Option<BTreeSet<String>>>,
    /// Whether this stream has been asked.
    asked: bool,
    /// The version accepted last; it outlives streams.
    version: String,
    /// The nonce of the newest response on this stream.
    nonce: String,
}

impl Session {
    /// Nothing asked yet.
    pub fn new(node: Node) -> Session {
        Session {
            node,
            node_sent: false,
            open: false,
            types: Default::default(),
        }
    }

    /// A new stream is open: the requests that it begins with.
    pub fn opened(&mut self) -> Vec<DiscoveryRequest> {
        self.open = true;
        self.node_sent = false;
        for state in &mut self.types {
            state.asked = false;
            state.nonce.clear();
        }
        ResourceType::ALL
            .into_iter()
            .filter_map(|kind| self.ask(kind))
            .collect()
    }

    /// The stream is gone.
    pub fn closed(&mut self) {
        self.open = false;
    }

    /// Changes what is asked; the request to send, if any.
    pub fn subscribe(
        &mut self,
        kind: ResourceType,
        names: Option<BTreeSet<String>>,
    ) -> Option<DiscoveryRequest> {
        self.state(kind).wanted = Some(names);
        if self.open { self.ask(kind) } else { None }
    }

    /// A response came; `None` if it is of a type that was not asked for.
    pub fn received(&mut self, response: DiscoveryResponse) -> Option<Event> {
        let kind = ResourceType::ALL
            .into_iter()
            .find(|k| k.type_url() == response.type_url)?;
        let state = self.state(kind);
        if !state.asked {
            return None;
        }
        state.nonce.clone_from(&response.nonce);
        Some(Event::Response {
            kind,
            version: response.version_info,
            nonce: response.nonce,
            resources: response.resources,
        })
    }

    /// Accepts; no request if a newer response has come since or the stream is another.
    pub fn ack(
        &mut self,
        kind: ResourceType,
        version: &str,
        nonce: &str,
    ) -> Option<DiscoveryRequest> {
        version.clone_into(&mut self.state(kind).version);
        self.answer(kind, nonce, None)
    }

    /// Refuses; the version stays the one that was accepted last.
    pub fn nack(
        &mut self,
        kind: ResourceType,
        nonce: &str,
        message: String,
    ) -> Option<DiscoveryRequest> {
        self.answer(kind, nonce, Some(message))
    }

    fn answer(
        &mut self,
        kind: ResourceType,
        nonce: &str,
        error: Option<String>,
    ) -> Option<DiscoveryRequest> {
        if !self.open || self.state(kind).nonce != nonce {
            return None;
        }
        let mut request = self.request(kind);
        request.error_detail = error.map(|message| Status {
            code: INVALID_ARGUMENT,
            message,
            details: Vec::new(),
        });
        Some(request)
    }

    fn ask(&mut self, kind: ResourceType) -> Option<DiscoveryRequest> {
        let state = self.state(kind);
        let names = state.wanted.as_ref()?;
        // on a fresh stream an empty list would ask for everything
        if !state.asked && names.as_ref().is_some_and(BTreeSet::is_empty) {
            return None;
        }
        state.asked = true;
        Some(self.request(kind))
    }

    fn request(&mut self, kind: ResourceType) -> DiscoveryRequest {
        let node = (!self.node_sent).then(|| self.node.clone());
        self.node_sent = true;
        let state = self.state(kind);
        DiscoveryRequest {
            version_info: state.version.clone(),
            node,
            resource_names: state.wanted.iter().flatten().flatten().cloned().collect(),
            type_url: kind.type_url().to_owned(),
            response_nonce: state.nonce.clone(),
            ..DiscoveryRequest::default()
        }
    }

    fn state(&mut self, kind: ResourceType) -> &mut TypeState {
        let [cluster, endpoint, listener, route] = &mut self.types;
        match kind {
            ResourceType::Cluster => cluster,
            ResourceType::Endpoint => endpoint,
            ResourceType::Listener => listener,
            ResourceType::Route => route,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(Node {
            id: "n".into(),
            ..Node::default()
        })
    }

    fn response(kind: ResourceType, version: &str, nonce: &str) -> DiscoveryResponse {
        DiscoveryResponse {
            type_url: kind.type_url().into(),
            version_info: version.into(),
            nonce: nonce.into(),
            ..DiscoveryResponse::default()
        }
    }

    fn names(list: &[&str]) -> Option<BTreeSet<String>> {
        Some(list.iter().map(|s| (*s).to_owned()).collect())
    }

    #[test]
    fn acks_and_nacks_carry_the_right_version_and_nonce() {
        let mut s = session();
        s.subscribe(ResourceType::Cluster, None);
        let first = s.opened();
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].node.as_ref().map(|n| n.id.as_str()), Some("n"));
        s.received(response(ResourceType::Cluster, "1", "a"))
            .expect("asked for");
        let ack = s.ack(ResourceType::Cluster, "1", "a").expect("an ACK");
        assert_eq!(
            (ack.version_info.as_str(), ack.response_nonce.as_str()),
            ("1", "a")
        );
        assert!(ack.node.is_none() && ack.error_detail.is_none());
        s.received(response(ResourceType::Cluster, "2", "b"))
            .expect("asked for");
        let nack = s
            .nack(ResourceType::Cluster, "b", "c1: name: bad".into())
            .expect("a NACK");
        assert_eq!(
            (nack.version_info.as_str(), nack.response_nonce.as_str()),
            ("1", "b")
        );
        assert_eq!(
            nack.error_detail.map(|d| d.message),
            Some("c1: name: bad".into())
        );
    }

    #[test]
    fn a_late_answer_to_an_older_response_is_not_sent() {
        let mut s = session();
        s.opened();
        s.subscribe(ResourceType::Listener, None);
        s.received(response(ResourceType::Listener, "1", "a"));
        s.received(response(ResourceType::Listener, "2", "b"));
        assert!(s.ack(ResourceType::Listener, "1", "a").is_none());
        assert!(s.ack(ResourceType::Listener, "2", "b").is_some());
    }

    #[test]
    fn a_new_stream_begins_with_everything_in_order_and_the_last_versions() {
        let mut s = session();
        s.opened();
        s.subscribe(ResourceType::Route, names(&["80"]));
        s.subscribe(ResourceType::Endpoint, names(&[]));
        s.subscribe(ResourceType::Cluster, None);
        s.received(response(ResourceType::Cluster, "7", "x"));
        s.ack(ResourceType::Cluster, "7", "x");
        s.closed();
        assert!(s.subscribe(ResourceType::Listener, None).is_none());
        let requests = s.opened();
        let kinds: Vec<_> = requests
            .iter()
            .map(|r| (r.type_url.as_str(), r.version_info.as_str()))
            .collect();
        assert_eq!(
            kinds,
            [
                (ResourceType::Cluster.type_url(), "7"),
                (ResourceType::Listener.type_url(), ""),
                (ResourceType::Route.type_url(), ""),
            ],
            "an empty list of endpoints asks for nothing"
        );
        assert!(requests.iter().all(|r| r.response_nonce.is_empty()));
        assert_eq!(requests.iter().filter(|r| r.node.is_some()).count(), 1);
    }

    #[test]
    fn names_that_are_given_up_are_taken_back_with_an_empty_list() {
        let mut s = session();
        s.opened();
        assert!(s.subscribe(ResourceType::Endpoint, names(&["a"])).is_some());
        let request = s
            .subscribe(ResourceType::Endpoint, names(&[]))
            .expect("a request");
        assert!(request.resource_names.is_empty());
    }

    #[test]
    fn a_type_that_was_not_asked_for_is_ignored() {
        let mut s = session();
        s.opened();
        assert!(
            s.received(response(ResourceType::Route, "1", "a"))
                .is_none()
        );
        assert!(
            s.received(DiscoveryResponse {
                type_url: "x".into(),
                ..Default::default()
            })
            .is_none()
        );
    }
}
