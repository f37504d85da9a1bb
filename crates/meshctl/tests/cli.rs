//! The command line as a user meets it: what it prints, where, and with which exit code.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use registry::{Limits, Registry};

use serde_json::Value;
use testkit::process::Process;

/// Debug builds on a machine that does other things at the same time.
const PATIENCE: Duration = Duration::from_secs(20);

fn meshctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    // What the user's own environment says must not decide.
    command.args(arguments).env_remove("MESHCTL_PILOT");
    command.env("MESHCTL_DIR", "/nonexistent/meshctl-test");
    command
}

fn run(arguments: &[&str]) -> Output {
    meshctl(arguments).output().expect("meshctl starts")
}

fn printed(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn complaint(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

fn dump() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dump.json");
    path.to_string_lossy().into_owned()
}

fn proxy_config(arguments: &[&str]) -> String {
    let dump = dump();
    let mut all = vec!["proxy-config"];
    all.extend(arguments);
    all.extend(["--file", &dump]);
    let output = run(&all);
    assert!(output.status.success(), "{}", complaint(&output));
    printed(&output).to_owned()
}

#[test]
fn proxy_config_prints_aligned_tables() {
    assert_eq!(
        proxy_config(&["listeners"]),
        "\
ADDRESS       PORT    MATCH     DESTINATION
127.77.0.10   8080    ALL       Route: 8080
127.77.0.10   12220   ALL       RPC Route: 12220
127.77.0.10   12220   DEFAULT   Cluster: BlackHoleCluster
"
    );
    assert_eq!(
        proxy_config(&["clusters"]),
        "\
SERVICE FQDN   PORT    SUBSET   DIRECTION   TYPE     DESTINATION RULE
               10080   -        inbound     STATIC
stock.demo     8080    -        outbound    EDS
stock.demo     8080    v1       outbound    EDS      stock-demo.demo
xds-grpc       -       -        -           STATIC
"
    );
    assert_eq!(
        proxy_config(&["routes"]),
        "\
NAME   VHOST NAME        DOMAINS                                MATCH             DESTINATION                                                        VIRTUAL SERVICE
8080   stock.demo:8080   stock.demo, stock.demo:8080 + 1 more   /* [demo-fault]   outbound|8080|v1|stock.demo (with faults)                          stock-demo.demo
8080   stock.demo:8080   stock.demo, stock.demo:8080 + 1 more   /*                outbound|8080|v1|stock.demo 80%, outbound|8080|v2|stock.demo 20%   stock-demo.demo
"
    );
    assert_eq!(
        proxy_config(&["endpoints"]),
        "\
ENDPOINT            STATUS     OUTLIER CHECK   CLUSTER
127.77.0.1:15010    HEALTHY    OK              xds-grpc
127.77.0.11:10080   HEALTHY    OK              outbound|8080|v1|stock.demo
127.77.0.12:10080   DRAINING   OK              outbound|8080|v1|stock.demo
"
    );
}

#[test]
fn proxy_config_filters_and_prints_documents() {
    let json = proxy_config(&[
        "clusters",
        "--fqdn",
        "stock.demo",
        "--subset",
        "v1",
        "-o",
        "json",
    ]);
    let clusters: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(clusters.as_array().map(Vec::len), Some(1));
    assert_eq!(clusters[0]["name"], "outbound|8080|v1|stock.demo");

    let yaml = proxy_config(&["listeners", "--port", "12220", "-o", "yaml"]);
    assert!(yaml.starts_with("- name: "), "{yaml}");
    assert!(!yaml.contains("8080"), "{yaml}");

    assert_eq!(
        proxy_config(&["endpoints", "--status", "draining"])
            .lines()
            .count(),
        2
    );
    assert_eq!(proxy_config(&["routes", "--name", "9"]).lines().count(), 1);
}

#[test]
fn every_command_explains_itself_with_examples() {
    let commands: [&[&str]; 13] = [
        &[],
        &["up"],
        &["proxy-status"],
        &["proxy-config"],
        &["proxy-config", "listeners"],
        &["proxy-config", "routes"],
        &["proxy-config", "clusters"],
        &["proxy-config", "endpoints"],
        &["registry"],
        &["registry", "list"],
        &["registry", "register"],
        &["registry", "watch"],
        &["completion"],
    ];
    for command in commands {
        let output = run(&[command, &["--help"]].concat());
        assert!(output.status.success(), "{command:?}");
        assert!(printed(&output).contains("Examples:"), "{command:?}");
    }
}

#[test]
fn wrong_arguments_exit_with_2_and_say_what_is_wrong() {
    for (arguments, words) in [
        (&["nosuch"][..], "unrecognized subcommand"),
        (&["proxy-config", "clusters"], "required"),
        (&["up", "--rate", "0"], "--rate"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(complaint(&output).contains(words), "{}", complaint(&output));
    }
}

#[test]
fn failures_exit_with_1_and_say_what_to_do() {
    let cases: [(&[&str], &str); 6] = [
        (
            &["proxy-config", "clusters", "web"],
            "no `meshctl up` is running",
        ),
        (
            &["proxy-config", "clusters", "127.0.0.1:1"],
            "admin address",
        ),
        (
            &["proxy-status", "--pilot", "127.0.0.1:1"],
            "start a mesh with `meshctl up`",
        ),
        (&["registry", "list", "--pilot", "127.0.0.1:1"], "--pilot"),
        (
            &["proxy-config", "clusters", "--file", "/nonexistent"],
            "cannot read /nonexistent",
        ),
        (&["up", "--network", "10.0.0"], "must begin with 127"),
    ];
    for (arguments, words) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            complaint(&output).starts_with("error: "),
            "{}",
            complaint(&output)
        );
        assert!(complaint(&output).contains(words), "{}", complaint(&output));
        assert!(!complaint(&output).contains('\x1b'), "no colours in a pipe");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = meshctl(&["proxy-config", "clusters", "--file", &dump(), "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meshctl starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(complaint(&output), "");
    assert!(output.status.success());
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completion", shell]);
        assert!(output.status.success());
        for word in ["proxy-config", "endpoints", "deregister"] {
            assert!(printed(&output).contains(word), "{shell}: {word}");
        }
    }
}

/// A registry on a port of its own, served as pilot serves it.
fn serve_registry() -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let registry = Registry::in_memory(Limits::default()).expect("a registry");
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a port");
            let address = listener.local_addr().expect("an address");
            sender.send(address.to_string()).expect("the test waits");
            axum::serve(listener, registry.http_router()).await
        })
    });
    receiver.recv().expect("the registry listens")
}

#[test]
fn instances_are_registered_seen_watched_and_deregistered() {
    let pilot = serve_registry();
    let registry = |arguments: &[&str]| {
        let mut all = vec!["registry"];
        all.extend(arguments);
        all.extend(["--pilot", &pilot]);
        run(&all)
    };
    assert_eq!(printed(&registry(&["list"])), "nothing is registered\n");

    let folder = tempfile::tempdir().expect("a folder");
    let mut watch = Process::converse(
        "watch",
        &mut meshctl(&[
            "registry",
            "watch",
            "--protocol",
            "dubbo",
            "--pilot",
            &pilot,
        ]),
        folder.path(),
    )
    .expect("watch starts");

    let named = ["--protocol", "dubbo", "--service", "demo.Orders"];
    let content = [
        "--address",
        "10.0.0.7",
        "--port",
        "20880",
        "--version",
        "2.0",
        "--metadata",
        "zone=east",
    ];
    let output = registry(&[&["register"], &named[..], &content[..]].concat());
    assert!(output.status.success(), "{}", complaint(&output));
    let line = printed(&output).to_owned();
    let id = line
        .trim_end()
        .strip_prefix("registered dubbo/demo.Orders ")
        .expect("the id of the instance");

    let seen = watch.hear(PATIENCE).expect("a change");
    assert!(
        seen.contains("put") && seen.contains("10.0.0.7:20880"),
        "{seen}"
    );

    let json: Value =
        serde_json::from_slice(&registry(&["list", "-o", "json"]).stdout).expect("JSON");
    assert_eq!(json[0]["metadata"]["zone"], "east");
    assert_eq!(
        printed(&registry(&["list", "--version", "1.0"])),
        "nothing is registered\n"
    );
    let table = registry(&["list"]);
    assert!(
        printed(&table).contains("demo.Orders"),
        "{}",
        printed(&table)
    );

    let output = registry(&[&["deregister"], &named[..], &["--id", id]].concat());
    assert!(output.status.success(), "{}", complaint(&output));
    let seen = watch.hear(PATIENCE).expect("a change");
    assert!(seen.contains("deregistered"), "{seen}");

    let again = registry(&[&["deregister"], &named[..], &["--id", id]].concat());
    assert_eq!(again.status.code(), Some(1));
    assert!(
        complaint(&again).contains("registry list"),
        "{}",
        complaint(&again)
    );

    let refused = registry(
        &[
            &["register"],
            &named[..],
            &["--address", "10.0.0.7", "--port", "0"],
        ]
        .concat(),
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        complaint(&refused).contains("port"),
        "{}",
        complaint(&refused)
    );
}
