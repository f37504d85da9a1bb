//! Requests as no client sends them.

use anyhow::{Context, Result};
use api::google::protobuf::Any;
use api::nacos::request_client::RequestClient;
use api::nacos::{Metadata, Payload};
use registry::facades::nacos::GRPC_OFFSET;
use serde_json::json;
use testkit::http::request;
use testkit::net::Loopback;

use crate::Facade;

/// What a call over gRPC is answered: the name of the answer and its JSON.
async fn call(
    channel: &tonic::transport::Channel,
    kind: &str,
    body: &[u8],
) -> Result<(String, serde_json::Value)> {
    let payload = Payload {
        metadata: Some(Metadata {
            r#type: kind.to_owned(),
            ..Metadata::default()
        }),
        body: Some(Any {
            type_url: String::new(),
            value: body.to_vec(),
        }),
    };
    let answer = RequestClient::new(channel.clone()).request(payload).await?;
    let answer = answer.into_inner();
    let kind = answer.metadata.context("no metadata")?.r#type;
    let body = answer.body.context("no body")?.value;
    Ok((kind, serde_json::from_slice(&body)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_none_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let facade = Facade::start(loopback.address(1, 8848), folder.path(), None).await?;
    let server = facade.address;
    let ask = |method: &'static str, path: String, body: Vec<u8>| {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        tokio::task::spawn_blocking(move || request(server, method, &path, &headers, &body))
    };
    let instance = "/nacos/v1/ns/instance";
    for (method, path, body, status, part) in [
        ("GET", "/", "", 404, "no such path"),
        ("POST", instance, "", 400, "'serviceName'"),
        ("POST", instance, "serviceName=s&ip=10.0.0.1", 400, "'port'"),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=99999",
            400,
            "99999",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1&weight=-1",
            400,
            "weights",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1&weight=NaN",
            400,
            "weights",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=0.0.0.0&port=1",
            400,
            "0.0.0.0",
        ),
        (
            "POST",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1&metadata=%7B",
            400,
            "metadata",
        ),
        (
            "PUT",
            instance,
            "serviceName=s&ip=10.0.0.1&port=1",
            400,
            "no matched ip",
        ),
        (
            "GET",
            "/nacos/v1/ns/instance?serviceName=s&ip=1.1.1.1&port=1",
            "",
            404,
            "no matched ip",
        ),
        (
            "PUT",
            "/nacos/v1/ns/instance/beat",
            "serviceName=s&ip=10.0.0.1&port=1",
            200,
            "20404",
        ),
        (
            "PUT",
            "/nacos/v1/ns/instance/beat",
            "serviceName=s&beat=%7B",
            400,
            "beat",
        ),
        (
            "POST",
            "/nacos/v3/client/ns/instance",
            "serviceName=s",
            400,
            "\"code\":10000",
        ),
        (
            "GET",
            "/nacos/v1/cs/configs?dataId=d&group=g",
            "",
            404,
            "config data not exist",
        ),
        (
            "POST",
            "/nacos/v1/cs/configs",
            "dataId=d&group=g",
            400,
            "'content'",
        ),
        (
            "POST",
            "/nacos/v1/cs/configs/listener",
            "Listening-Configs=a%02b",
            400,
            "probeModify",
        ),
    ] {
        let answer = ask(method, path.to_owned(), body.as_bytes().to_vec()).await??;
        let text = answer.text();
        assert_eq!(answer.status, status, "{method} {path} {body}: {text}");
        assert!(text.contains(part), "{method} {path} {body}: {text}");
    }
    let large = format!("dataId=d&group=g&content={}", "x".repeat(5 << 20));
    let answer = ask(
        "POST",
        "/nacos/v1/cs/configs".to_owned(),
        large.into_bytes(),
    )
    .await??;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(answer.text().contains("over limit"));

    // One that lives by beats: it is there with the first, ill without, and gone.
    let beat = json!({"ip": "10.0.0.1", "port": 80, "serviceName": "g@@shop", "cluster": "c",
        "metadata": {"preserved.heart.beat.timeout": "300", "preserved.ip.delete.timeout": "1500"}});
    let beat = format!("serviceName=g@@shop&beat={beat}");
    let answer = ask(
        "PUT",
        "/nacos/v1/ns/instance/beat".to_owned(),
        beat.into_bytes(),
    )
    .await??;
    assert_eq!(answer.json()?["code"], 10_200);
    facade
        .wait("http", "g@@shop", &["10.0.0.1:80/100/true"])
        .await?;
    facade
        .wait("http", "g@@shop", &["10.0.0.1:80/100/false"])
        .await?;
    facade.wait("http", "g@@shop", &[]).await?;

    let mut grpc = server;
    grpc.set_port(server.port() + GRPC_OFFSET);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{grpc}"))?;
    let channel = channel.connect().await?;
    for (kind, body, code) in [
        ("InstanceRequest", "{}", 301),
        ("InstanceRequest", "{", 502),
        ("InstanceRequest", "{\"instance\":{\"port\":-1}}", 502),
        ("NoSuchRequest", "{}", 302),
        ("ConnectionSetupRequest", "{}", 301),
        ("", "", 302),
    ] {
        let (answer, json) = call(&channel, kind, body.as_bytes()).await?;
        assert_eq!(
            (answer.as_str(), &json["errorCode"]),
            ("ErrorResponse", &json!(code)),
            "{kind} {body}"
        );
        assert_eq!(json["success"], false);
    }
    let (answer, json) = call(&channel, "ServerCheckRequest", b"{}").await?;
    assert_eq!(answer, "ServerCheckResponse");
    assert_eq!(json["supportAbilityNegotiation"], true);
    let huge = vec![b' '; 20 << 20];
    assert!(call(&channel, "InstanceRequest", &huge).await.is_err());
    Ok(())
}
