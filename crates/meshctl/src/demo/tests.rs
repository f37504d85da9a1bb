//! The demo applications call each other directly, without a mesh: what the mesh must not change.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use tokio::net::TcpListener;

use super::client::{Call, Client, Failure};
use super::{bolt, dubbo, http};
use crate::up::plan::{PROTOCOLS, Protocol};

async fn provider(protocol: Protocol) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let Ok(SocketAddr::V4(address)) = listener.local_addr() else {
        panic!("bound to an IPv4 address");
    };
    tokio::spawn(async move {
        match protocol {
            Protocol::Http => http::serve(listener, "demo-v1").await,
            Protocol::Bolt => bolt::serve(listener, "demo-v1").await,
            Protocol::Dubbo => dubbo::serve(listener, "demo-v1").await,
        }
    });
    address
}

#[tokio::test]
async fn calls_arrive_with_argument_and_header() {
    for protocol in PROTOCOLS {
        let mut client = Client::new(protocol, provider(protocol).await);
        for _ in 0..3 {
            let call = Call::new("lookup", "größe|7").header("demo-user", "alice");
            let reply = client
                .call(&call)
                .await
                .unwrap_or_else(|e| panic!("{protocol}: {e}"));
            assert_eq!(
                (&*reply.provider, &*reply.user, &*reply.argument),
                ("demo-v1", "alice", "größe|7"),
                "{protocol}"
            );
        }
    }
}

#[tokio::test]
async fn large_arguments_come_back() {
    for protocol in PROTOCOLS {
        let mut client = Client::new(protocol, provider(protocol).await);
        let argument = "x".repeat(1 << 20);
        let reply = client.call(&Call::new("lookup", &argument)).await;
        assert_eq!(reply.expect("an answer").argument, argument, "{protocol}");
    }
}

#[tokio::test]
async fn an_exception_is_told_from_other_failures() {
    for protocol in PROTOCOLS {
        let mut client = Client::new(protocol, provider(protocol).await);
        match client.call(&Call::new("fail", "out of stock")).await {
            Err(Failure::Exception(message)) => assert_eq!(message, "out of stock", "{protocol}"),
            other => panic!("{protocol}: {other:?}"),
        }
        let reply = client.call(&Call::new("lookup", "next")).await;
        assert_eq!(reply.expect("an answer").argument, "next", "{protocol}");
    }
}

#[tokio::test]
async fn a_missing_server_is_a_broken_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let Ok(SocketAddr::V4(address)) = listener.local_addr() else {
        panic!("bound to an IPv4 address");
    };
    drop(listener);
    for protocol in PROTOCOLS {
        let result = Client::new(protocol, address)
            .call(&Call::new("lookup", ""))
            .await;
        assert!(
            matches!(result, Err(Failure::Connection(_))),
            "{protocol}: {result:?}"
        );
    }
}
