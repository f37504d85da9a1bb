//! Loopback addresses and ports that no other test uses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A port above the range that the kernel gives to clients: only [`Loopback`] binds it, as the mark of ownership.
const MARK_PORT: u16 = 64_999;

/// Name of the hosts file in a test's folder.
pub(crate) const HOSTS_FILE: &str = "hosts";

/// 254 addresses `127.x.y.1` to `127.x.y.254` that belong to this value as long as it lives: programs may use the same
/// fixed ports in tests that run at the same time.
#[derive(Debug)]
pub struct Loopback {
    network: [u8; 2],
    _mark: TcpListener,
}

impl Loopback {
    /// Takes a network that nobody has.
    pub fn claim() -> Result<Loopback> {
        // 127.0 and 127.1 are left to people.
        const FIRST: u32 = 2 << 8;
        const COUNT: u32 = 250 << 8;
        let start = std::process::id().wrapping_mul(7);
        for attempt in 0..1000 {
            let number = FIRST + start.wrapping_add(attempt) % COUNT;
            let [_, _, high, low] = number.to_be_bytes();
            if let Ok(mark) = TcpListener::bind((Ipv4Addr::new(127, high, low, 254), MARK_PORT)) {
                return Ok(Loopback {
                    network: [high, low],
                    _mark: mark,
                });
            }
        }
        bail!("no free network in 127.0.0.0/8")
    }

    /// A name of host number `host` that JVMs know which are given the file of [`Loopback::write_hosts`].
    pub fn name(&self, host: u8) -> String {
        format!("host-{host}")
    }

    /// Writes the hosts file for JVMs in `folder`. A JVM that is given such a file asks nobody else: it names the
    /// machine, too.
    pub fn write_hosts(&self, folder: &Path) -> Result<()> {
        let machine = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let mut text = format!("127.0.0.1 localhost {}\n", machine.trim());
        for host in 1..10 {
            text += &format!("{} {}\n", self.ip(host), self.name(host));
        }
        let file = folder.join(HOSTS_FILE);
        fs::write(&file, text).with_context(|| format!("{}", file.display()))
    }

    /// The address with this last number, 1 to 253.
    pub fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.network[0], self.network[1], host)
    }

    /// A socket address of host number `host`.
    pub fn address(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(self.ip(host), port))
    }
}

/// A port that was free on every address a moment ago, from the kernel's own choice.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claims_never_share_an_address() {
        let first = Loopback::claim().unwrap();
        let second = Loopback::claim().unwrap();
        assert_ne!(first.ip(1), second.ip(1));
        // The same fixed port can be had in both.
        let _a = TcpListener::bind(first.address(1, 61_001)).unwrap();
        let _b = TcpListener::bind(second.address(1, 61_001)).unwrap();
    }
}
