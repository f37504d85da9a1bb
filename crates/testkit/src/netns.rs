//! Programs in a network namespace of their own, joined to this one by a link: for those that listen on every address, or do
//! not take a loopback address for their own. The namespace ends with the program, and the link with it. It takes root.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::net::Loopback;
use crate::process::Process;
use crate::wait;

const LIMIT: Duration = Duration::from_secs(20);
/// Waits for a line, so that there is a link before the program begins.
const BEGIN: &str = "read _ && exec \"$@\"";

/// Two addresses of 198.18.0.0/15 (RFC 2544: for tests) that belong to this value as long as it lives.
#[derive(Debug)]
pub struct Link {
    number: u16,
    _claim: Loopback,
}

impl Link {
    /// Takes a link that nobody has.
    pub fn claim() -> Result<Link> {
        let claim = Loopback::claim()?;
        let [_, high, low, _] = claim.ip(1).octets();
        Ok(Link {
            number: u16::from_be_bytes([high, low]),
            _claim: claim,
        })
    }

    /// The address on this side.
    pub fn outside(&self) -> Ipv4Addr {
        const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
        Ipv4Addr::from(FIRST + 2 * u32::from(self.number))
    }

    /// The program's address.
    pub fn inside(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.outside()) + 1)
    }

    fn name(&self) -> String {
        format!("mesh{:04x}", self.number)
    }

    /// Starts a program that is spoken to in lines at the other end of the link; its stderr goes to `folder/name.log`.
    pub fn converse(&self, name: &str, program: &Command, folder: &Path) -> Result<Process> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", BEGIN, "sh"]);
        adopt(&mut command, program);
        let mut process = Process::converse(name, &mut command, folder)?;
        self.join(process.id())
            .context("a network namespace (as root only)")?;
        process.say("")?;
        Ok(process)
    }

    fn join(&self, process: u32) -> Result<()> {
        let own = fs::read_link("/proc/self/ns/net")?;
        let its = format!("/proc/{process}/ns/net");
        wait::until_ok("a namespace", LIMIT, || {
            if fs::read_link(&its)? == own {
                bail!("still in the one of this test");
            }
            Ok(())
        })?;
        let (name, id) = (self.name(), process.to_string());
        // The link of a program before this one goes a while after it.
        wait::until_ok("a link", LIMIT, || {
            run(&[
                "ip", "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &id,
            ])
        })?;
        let outside = format!("{}/31", self.outside());
        run(&["ip", "addr", "add", &outside, "dev", &name])?;
        run(&["ip", "link", "set", &name, "up"])?;
        let inside = format!("{}/31", self.inside());
        for words in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &inside, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            run(&[&["nsenter", "--net", "-t", &id, "ip"][..], words].concat())?;
        }
        Ok(())
    }

    /// Cuts the link as a partition of the network does, or mends it.
    pub fn set_cut(&self, is_cut: bool) -> Result<()> {
        let state = if is_cut { "down" } else { "up" };
        run(&["ip", "link", "set", &self.name(), state])
    }
}

/// A network namespace that outlives the programs in it, at the other end of a link.
#[derive(Debug)]
pub struct Site {
    id: u32,
    /// Nobody speaks to it; sites are shared by threads.
    _holder: Mutex<Process>,
    link: Link,
}

impl Site {
    /// Makes one; `folder` takes the log of what holds it.
    pub fn start(name: &str, folder: &Path) -> Result<Site> {
        let link = Link::claim()?;
        let holder = link.converse(&format!("site-{name}"), &Command::new("cat"), folder)?;
        Ok(Site {
            id: holder.id(),
            _holder: Mutex::new(holder),
            link,
        })
    }

    /// The address of what runs in it.
    pub fn inside(&self) -> Ipv4Addr {
        self.link.inside()
    }

    /// The address at this end of the link.
    pub fn outside(&self) -> Ipv4Addr {
        self.link.outside()
    }

    /// Cuts it off from this side, or mends that. What runs in it goes on reaching each other.
    pub fn set_cut(&self, is_cut: bool) -> Result<()> {
        self.link.set_cut(is_cut)
    }

    /// The same program in this namespace.
    pub fn enter(&self, program: &Command) -> Command {
        let id = self.id.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &id, "--"]);
        adopt(&mut command, program);
        command
    }
}

/// Appends a program to the command line that starts it, and gives it what it was to be started with.
fn adopt(command: &mut Command, program: &Command) {
    command.arg(program.get_program()).args(program.get_args());
    let envs = program.get_envs();
    command.envs(envs.filter_map(|(key, value)| Some((key, value?))));
    if let Some(folder) = program.get_current_dir() {
        command.current_dir(folder);
    }
}

fn run(words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program")?;
    // Debian keeps ip where not every user's PATH leads.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .with_context(|| (*program).to_owned())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{}: {}", words.join(" "), said.trim());
    }
    Ok(())
}
