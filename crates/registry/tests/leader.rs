//! One of several hubs leads, by a lease of a real etcd.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use registry::leader::{Election, take_part};
use registry::{EtcdStore, Role};
use testkit::registries::Etcd;
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(60);
/// Names the etcd of the child's candidate.
const STORE: &str = "LEADER_TEST_STORE";

fn candidate(etcd: &str) -> Result<watch::Receiver<Role>> {
    let store = EtcdStore::parse(etcd).map_err(anyhow::Error::msg)?;
    Ok(take_part(Election::Etcd(Box::new(store))).0)
}

async fn wait(role: &mut watch::Receiver<Role>, expected: Role) -> Result<()> {
    let reached = tokio::time::timeout(LIMIT, role.wait_for(|role| *role == expected));
    let reached = reached
        .await
        .with_context(|| format!("never {expected:?}"))?;
    reached.map(drop).context("it has ended")
}

/// Not a test of its own: what the child process runs.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn child_process() -> Result<()> {
    let Ok(etcd) = std::env::var(STORE) else {
        return Ok(());
    };
    let mut role = candidate(&etcd)?;
    wait(&mut role, Role::Leader).await?;
    println!("\nleading");
    std::future::pending().await
}

fn url(etcd: SocketAddr) -> String {
    // A server that is not there is passed over.
    format!("etcd://127.0.0.1:1,{etcd}/test")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_another_takes_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Etcd::start(folder.path())?;
    let etcd = url(server.address());
    let mut child = Command::new(std::env::current_exe()?)
        .args(["child_process", "--exact", "--nocapture"])
        .env(STORE, &etcd)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let leads = |line: std::io::Result<String>| line.is_ok_and(|line| line == "leading");
    assert!(output.lines().any(leads));
    let mut second = candidate(&etcd)?;
    wait(&mut second, Role::Follower).await?;
    child.kill()?;
    child.wait()?;
    wait(&mut second, Role::Leader).await?;

    // Nobody can know who leads while etcd is away; its lease is still there when it is back.
    let mut third = candidate(&etcd)?;
    wait(&mut third, Role::Follower).await?;
    server.kill()?;
    wait(&mut second, Role::Unknown).await?;
    wait(&mut third, Role::Unknown).await?;
    server.restart()?;
    let leads = tokio::time::timeout(LIMIT, async {
        tokio::select! {
            led = second.wait_for(|role| *role == Role::Leader) => led.is_ok(),
            led = third.wait_for(|role| *role == Role::Leader) => led.is_ok(),
        }
    });
    assert!(leads.await?);
    // One that ends in an orderly way does not let others wait.
    let second_leads = *second.borrow() == Role::Leader;
    let (gone, mut rest) = if second_leads {
        (second, third)
    } else {
        (third, second)
    };
    drop(gone);
    wait(&mut rest, Role::Leader).await
}
