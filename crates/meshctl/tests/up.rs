//! `meshctl up`: the whole mesh in one command, and that nothing of it stays behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::process::Process;
use testkit::wait;

/// Debug builds on a machine that does other things at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

fn meshctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command
        .env_remove("MESHCTL_PILOT")
        .env_remove("MESHCTL_DIR");
    command
}

#[test]
fn the_script_of_calls_passes() {
    let output = meshctl()
        .args(["up", "--once"])
        .output()
        .expect("meshctl starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{complaint}");
    assert!(!printed.contains("FAIL"), "{printed}");
    assert!(printed.contains("25 of 25 steps passed"), "{printed}");
}

/// Ids of the processes whose command line names this folder or this network.
fn processes_of(word: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        fs::read(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(word))
    })
    .collect()
}

/// A live mesh on a network of its own, with calls going through it.
fn live_mesh(network: &str, folder: &Path) -> Process {
    let mut command = meshctl();
    command
        .args(["up", "--plain", "--network", network, "--dir"])
        .arg(folder.join("mesh"));
    let mut up = Process::converse("up", &mut command, folder).expect("meshctl starts");
    wait::until_ok("calls of all protocols", PATIENCE, || {
        let line = up.hear(PATIENCE)?;
        let rest = line.strip_prefix("Dubbo");
        anyhow::ensure!(
            rest.is_some_and(|rest| rest.contains("orders-v1")),
            "{line}"
        );
        Ok(())
    })
    .expect("the mesh carries calls");
    up
}

#[test]
fn a_live_mesh_is_seen_by_the_other_commands_and_stops_as_a_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let network = "127.252.1";
    let mut up = live_mesh(network, folder.path());

    let ask = |arguments: &[&str]| {
        let mut command = meshctl();
        command
            .args(arguments)
            .env("MESHCTL_DIR", folder.path().join("mesh"));
        let output = command.output().expect("meshctl starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let status = ask(&["proxy-status"]);
    assert!(
        !status.contains("STALE") && !status.contains("ERROR"),
        "{status}"
    );
    assert!(status.matches("SYNCED").count() >= 18, "{status}");
    assert_eq!(status.lines().count(), 10, "{status}");
    let routes = ask(&["proxy-config", "routes", "cart-v1"]);
    assert!(
        routes.contains("demo.PriceService") && routes.contains("20%"),
        "{routes}"
    );
    assert!(ask(&["proxy-config", "listeners", "checkout-v1"]).contains("30880"));
    assert!(ask(&["proxy-config", "clusters", "web-v1", "--fqdn", "stock.demo"]).contains("v2"));
    let endpoints = ask(&["proxy-config", "endpoints", "checkout-v1"]);
    assert!(endpoints.contains("127.252.1.32:30800"), "{endpoints}");
    assert_eq!(ask(&["registry", "list"]).matches("healthy").count(), 4);

    for command in documented_commands() {
        let words: Vec<&str> = command.split_whitespace().skip(1).collect();
        ask(&words);
    }

    let status = up.terminate(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}");
    assert_eq!(processes_of("127.252.1."), Vec::<u32>::new());
}

/// The commands that the documentation shows, but for those that do not end.
fn documented_commands() -> Vec<String> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut commands = Vec::new();
    for page in ["quickstart.md", "meshctl.md"] {
        let text = fs::read_to_string(docs.join(page)).expect(page);
        let mut in_block = false;
        for line in text.lines() {
            if line.starts_with("```") {
                in_block = line == "```sh";
            } else if in_block && line.starts_with("meshctl ") {
                let command = line.split(" #").next().unwrap_or(line).trim();
                commands.push(command.to_owned());
            }
        }
    }
    assert!(commands.len() > 15, "{commands:?}");
    commands
}

#[test]
fn a_killed_up_takes_its_mesh_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut up = live_mesh("127.252.2", folder.path());
    assert!(processes_of("127.252.2.").len() > 5);
    up.kill().expect("it is killed");
    wait::until("the end of its mesh", PATIENCE, || {
        processes_of("127.252.2.").is_empty().then_some(())
    })
    .expect("nothing stays behind");
}

#[test]
fn a_mesh_whose_part_ends_stops_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut up = live_mesh("127.252.3", folder.path());
    let provider = processes_of("127.252.3.31:20880");
    assert_eq!(provider.len(), 1);
    let kill = format!("kill -KILL {}", provider[0]);
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .expect("kill")
            .success()
    );
    wait::until("the end of the mesh", PATIENCE, || {
        up.check().is_err().then_some(())
    })
    .expect("it stops");
    assert!(up.output().contains("orders-v1 ended"), "{}", up.output());
    assert!(processes_of("127.252.3.").is_empty());
}
