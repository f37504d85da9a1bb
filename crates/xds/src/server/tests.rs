use std::collections::BTreeMap;

use api::envoy::config::cluster::v3::Cluster;
use api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use api::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use api::google::rpc::Status;
use prost::Message;

use super::*;

fn clusters(names: &[&str]) -> ResourceSet {
    let cluster = |name: &&str| {
        let name = (*name).to_owned();
        Resource::new(
            name.as_str(),
            &Cluster {
                name: name.clone(),
                ..Cluster::default()
            },
        )
    };
    ResourceSet::new(names.iter().map(cluster).collect())
}

/// Load assignments whose content is a number.
fn endpoints(contents: &[(&str, u32)]) -> ResourceSet {
    let assignment = |(name, content): &(&str, u32)| {
        let message = ClusterLoadAssignment {
            cluster_name: (*name).to_owned(),
            named_endpoints: [(content.to_string(), Default::default())].into(),
            ..ClusterLoadAssignment::default()
        };
        Resource::new(*name, &message)
    };
    ResourceSet::new(contents.iter().map(assignment).collect())
}

fn request(type_url: &str, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn decode(response: &Response) -> DiscoveryResponse {
    let mut bytes = Vec::new();
    response.encode(&mut bytes);
    assert_eq!(bytes.len(), response.size());
    DiscoveryResponse::decode(bytes.as_slice()).expect("a well-formed response")
}

fn names(response: &Response) -> Vec<String> {
    decode(response)
        .resources
        .iter()
        .map(|any| match any.type_url.as_str() {
            CLUSTER => {
                Cluster::decode(any.value.as_slice())
                    .expect("a cluster")
                    .name
            }
            _ => {
                ClusterLoadAssignment::decode(any.value.as_slice())
                    .expect("endpoints")
                    .cluster_name
            }
        })
        .collect()
}

#[test]
fn a_response_is_a_discovery_response() {
    let mut connection = Connection::new("pilot");
    assert_eq!(
        connection.on_request(&request(CLUSTER, &[], "")),
        Reaction::Respond
    );
    let response = connection
        .respond(CLUSTER, &clusters(&["b", "a"]))
        .expect("a response");
    let message = decode(&response);
    assert_eq!(message.type_url, CLUSTER);
    assert_eq!(
        message.control_plane.expect("an identifier").identifier,
        "pilot"
    );
    assert!(!message.nonce.is_empty() && !message.version_info.is_empty());
    assert_eq!(names(&response), ["a", "b"]);
}

#[test]
fn an_ack_needs_no_answer_and_the_same_is_not_pushed_twice() {
    let mut connection = Connection::new("");
    connection.on_request(&request(CLUSTER, &[], ""));
    let set = clusters(&["a"]);
    let sent = decode(&connection.respond(CLUSTER, &set).expect("a response"));
    assert_eq!(
        connection.on_request(&request(CLUSTER, &[], &sent.nonce)),
        Reaction::Acked
    );
    assert!(connection.push(CLUSTER, &set).is_none());
    let subscription = connection.subscription(CLUSTER).expect("a subscription");
    assert_eq!(subscription.acked, subscription.sent);
    assert!(connection.push(CLUSTER, &clusters(&["a", "b"])).is_some());
}

#[test]
fn a_stale_nonce_changes_nothing() {
    let mut connection = Connection::new("");
    connection.on_request(&request(ENDPOINTS, &["a"], ""));
    let first = decode(
        &connection
            .respond(ENDPOINTS, &endpoints(&[("a", 1)]))
            .expect("first"),
    );
    let second = decode(
        &connection
            .push(ENDPOINTS, &endpoints(&[("a", 2)]))
            .expect("second"),
    );
    assert_ne!(first.nonce, second.nonce);
    assert_eq!(
        connection.on_request(&request(ENDPOINTS, &["a", "b"], &first.nonce)),
        Reaction::Stale
    );
    // The same names with the newest nonce are asked for.
    assert_eq!(
        connection.on_request(&request(ENDPOINTS, &["a", "b"], &second.nonce)),
        Reaction::Respond
    );
}

#[test]
fn a_nack_is_kept_until_another_response_is_taken() {
    let mut connection = Connection::new("");
    connection.on_request(&request(CLUSTER, &[], ""));
    let sent = decode(
        &connection
            .respond(CLUSTER, &clusters(&["a"]))
            .expect("a response"),
    );
    let mut nack = request(CLUSTER, &[], &sent.nonce);
    nack.error_detail = Some(Status {
        message: "a: no such thing".to_owned(),
        ..Status::default()
    });
    assert_eq!(connection.on_request(&nack), Reaction::Rejected);
    assert!(
        connection.push(CLUSTER, &clusters(&["a"])).is_none(),
        "what was refused is not sent again"
    );
    let subscription = connection.subscription(CLUSTER).expect("a subscription");
    assert_eq!(subscription.acked, None);
    assert_eq!(
        subscription.nack.as_ref().map(|nack| nack.message.as_str()),
        Some("a: no such thing")
    );
    let sent = decode(
        &connection
            .push(CLUSTER, &clusters(&["b"]))
            .expect("the repair"),
    );
    assert_eq!(
        connection.on_request(&request(CLUSTER, &[], &sent.nonce)),
        Reaction::Acked
    );
    assert_eq!(
        connection
            .subscription(CLUSTER)
            .expect("a subscription")
            .nack,
        None
    );
}

#[test]
fn endpoints_are_pushed_in_parts_and_answered_whole() {
    let mut connection = Connection::new("");
    connection.on_request(&request(ENDPOINTS, &["a", "b", "unknown"], ""));
    let response = connection.respond(ENDPOINTS, &endpoints(&[("a", 1), ("b", 1), ("c", 1)]));
    assert_eq!(names(&response.expect("an answer")), ["a", "b"]);
    let set = endpoints(&[("a", 1), ("b", 2), ("c", 2)]);
    assert_eq!(
        names(&connection.push(ENDPOINTS, &set).expect("a push")),
        ["b"]
    );
    assert!(connection.push(ENDPOINTS, &set).is_none());
    // After new clusters everything is sent, because the client waits for it.
    assert_eq!(
        names(&connection.respond(ENDPOINTS, &set).expect("an answer")),
        ["a", "b"]
    );
}

#[test]
fn a_nonce_of_an_earlier_stream_is_a_first_request() {
    let mut connection = Connection::new("");
    assert_eq!(
        connection.on_request(&request(ROUTE, &["80"], "old")),
        Reaction::Respond
    );
}

#[test]
fn no_names_of_a_named_type_end_the_subscription() {
    let mut connection = Connection::new("");
    connection.on_request(&request(ROUTE, &["80"], ""));
    let sent = decode(
        &connection
            .respond(ROUTE, &ResourceSet::default())
            .expect("an answer"),
    );
    assert_eq!(
        connection.on_request(&request(ROUTE, &[], &sent.nonce)),
        Reaction::Unsubscribed
    );
    assert_eq!(connection.subscriptions().count(), 0);
    assert!(connection.push(ROUTE, &ResourceSet::default()).is_none());
}

proptest::proptest! {
    /// Whatever is pushed and acknowledged in whatever order, a client that keeps what it is sent ends with the newest
    /// content of all that it names.
    #[test]
    fn a_client_ends_with_the_newest(steps in proptest::collection::vec((0u32..4, 0u32..4, 0u8..3), 1..40)) {
        let mut connection = Connection::new("");
        let mut held: BTreeMap<String, ClusterLoadAssignment> = BTreeMap::new();
        let mut wanted = vec!["a"];
        let mut world = endpoints(&[("a", 0), ("b", 0)]);
        let mut last_nonce = String::new();
        let take = |held: &mut BTreeMap<String, ClusterLoadAssignment>, response: Response| {
            let message = decode(&response);
            for any in &message.resources {
                let content = ClusterLoadAssignment::decode(any.value.as_slice()).expect("endpoints");
                held.insert(content.cluster_name.clone(), content);
            }
            message.nonce
        };
        connection.on_request(&request(ENDPOINTS, &wanted, ""));
        last_nonce = connection.respond(ENDPOINTS, &world).map_or(last_nonce, |r| take(&mut held, r));
        for (a, b, action) in steps {
            match action {
                0 => {
                    world = endpoints(&[("a", a), ("b", b)]);
                    if let Some(response) = connection.push(ENDPOINTS, &world) {
                        last_nonce = take(&mut held, response);
                    }
                }
                1 => {
                    wanted = if wanted.len() == 1 { vec!["a", "b"] } else { vec!["a"] };
                    let reaction = connection.on_request(&request(ENDPOINTS, &wanted, &last_nonce));
                    if reaction == Reaction::Respond {
                        let response = connection.respond(ENDPOINTS, &world).expect("an answer");
                        last_nonce = take(&mut held, response);
                    }
                }
                _ => {
                    let stale = connection.on_request(&request(ENDPOINTS, &["z"], "stale"));
                    proptest::prop_assert_eq!(stale, Reaction::Stale);
                }
            }
            for name in &wanted {
                let newest = world.get(name).map(|r| ClusterLoadAssignment::decode(r.value()).expect("endpoints"));
                proptest::prop_assert_eq!(held.get(*name), newest.as_ref());
            }
        }
    }
}
