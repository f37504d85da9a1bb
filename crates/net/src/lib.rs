//! Sockets: listening with SO_REUSEPORT, and what the standard library has no word for.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Opens a listening TCP socket of which several may share one address (one for each worker).
///
/// `backlog` is in connections. The socket is non-blocking. An IPv6 wildcard address takes IPv4 too, as in Envoy's
/// `ipv4_compat`, only if the system's default says so.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Opens one socket for each of `count` workers on the same address; port 0 is chosen once for all.
pub fn listen_for_workers(
    address: SocketAddr,
    backlog: u32,
    count: usize,
) -> io::Result<Vec<TcpListener>> {
    let first = listen(address, backlog)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(listen(bound, backlog)?);
    }
    Ok(sockets)
}
