//! Nacos, as r-nacos is it, built by `make peers`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::http;
use crate::netns::Site;
use crate::process::Process;
use crate::registries::place::Place;
use crate::wait;

const START_LIMIT: Duration = Duration::from_secs(60);
/// Until the user is there.
const USER_LIMIT: Duration = Duration::from_secs(10);
const STARTS: usize = 3;
/// Of the user who is there from the beginning.
const USER: &str = "mesh";

/// One server; its configurations and persistent instances outlive [`Nacos::kill`].
#[derive(Debug)]
pub struct Nacos {
    place: Place,
    folder: PathBuf,
    password: Option<String>,
    process: Process,
}

impl Nacos {
    /// Starts a server with its data and its log in `folder`, and waits until it answers. With a password clients have to
    /// log in as `mesh`.
    pub fn start(folder: &Path, password: Option<&str>) -> Result<Nacos> {
        Nacos::start_at(Place::loopback()?, folder, password)
    }

    /// The same in a network namespace.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<Nacos> {
        Nacos::start_at(Place::Site(site.clone()), folder, None)
    }

    fn start_at(place: Place, folder: &Path, password: Option<&str>) -> Result<Nacos> {
        let folder = folder.join("nacos");
        fs::create_dir_all(folder.join("data"))?;
        let process = run(&place, &folder, password)?;
        let mut server = Nacos {
            place,
            folder,
            password: password.map(str::to_owned),
            process,
        };
        server.wait_ready()?;
        // It can fail within while it makes its data, and answers then without the user.
        for _ in 0..STARTS {
            if server.has_user()? {
                return Ok(server);
            }
            server.kill()?;
            fs::remove_dir_all(server.folder.join("data"))?;
            fs::create_dir_all(server.folder.join("data"))?;
            server.restart()?;
        }
        bail!("Nacos has no user {USER} after {STARTS} starts")
    }

    /// Whether the user can log in, if there has to be one.
    fn has_user(&mut self) -> Result<bool> {
        let Some(password) = &self.password else {
            return Ok(true);
        };
        let form = format!("username={USER}&password={password}");
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let address = self.address();
        let log_in = || {
            let path = "/nacos/v1/auth/login";
            let answer = http::request(address, "POST", path, &headers, form.as_bytes())?;
            ensure!(answer.status == 200, "says {}", answer.status);
            Ok(())
        };
        Ok(wait::until_ok("log in", USER_LIMIT, log_in).is_ok())
    }

    /// Where clients connect; gRPC is 1000 ports higher.
    pub fn address(&self) -> SocketAddr {
        self.place.address(8848)
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address with the same data.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.place, &self.folder, self.password.as_deref())?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let address = self.address();
        let has_password = self.password.is_some();
        let process = &mut self.process;
        wait::until_ok("Nacos", START_LIMIT, || {
            process.check()?;
            let path = "/nacos/v1/ns/service/list?pageNo=1&pageSize=1";
            let answer = http::get(address, path)?;
            let is_ready = answer.status == 200 || has_password && answer.status == 403;
            ensure!(is_ready, "says {}: {}", answer.status, answer.text());
            Ok(())
        })
    }
}

fn run(place: &Place, folder: &Path, password: Option<&str>) -> Result<Process> {
    let program = crate::programs::peer("rnacos").context("make peers builds it")?;
    let ip = place.ip().to_string();
    let mut command = Command::new(program);
    command
        .env("RNACOS_SDK_HOST", &ip)
        .env("RNACOS_HTTP_PORT", "8848")
        .env("RNACOS_GRPC_PORT", "9848")
        .env("RNACOS_HTTP_CONSOLE_PORT", "10848")
        .env("RNACOS_RAFT_NODE_ADDR", format!("{ip}:9848"))
        .env("RNACOS_DATA_DIR", folder.join("data"))
        .env("RNACOS_CONSOLE_ENABLE_CAPTCHA", "false")
        .env("RUST_LOG", "warn")
        .current_dir(folder);
    if let Some(password) = password {
        command
            .env("RNACOS_ENABLE_OPEN_API_AUTH", "true")
            .env("RNACOS_INIT_ADMIN_USERNAME", USER)
            .env("RNACOS_INIT_ADMIN_PASSWORD", password);
    }
    Process::start("rnacos", &mut place.command(command), folder)
}
