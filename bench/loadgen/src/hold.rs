//! Idle connections: each makes one call and is then kept open, to see what a proxy keeps for it.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Protocol;
use crate::frames::{Frames, Template};

/// Opens the connections one after the other, prints `HELD n`, and returns when standard input ends.
pub(crate) async fn hold(
    protocol: Protocol,
    addr: SocketAddr,
    connections: usize,
) -> anyhow::Result<()> {
    let template = Template::request(protocol);
    let mut held = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut stream = TcpStream::connect(addr)
            .await
            .with_context(|| format!("connection {number} to {addr}"))?;
        let mut output = Vec::new();
        template.append(number as u64 + 1, &mut output);
        stream.write_all(&output).await?;
        let mut frames = Frames::new(protocol);
        while frames.next_answer()?.is_none() {
            let bytes = stream.read_buf(frames.input()).await?;
            anyhow::ensure!(
                bytes > 0,
                "connection {number} was closed instead of answered"
            );
        }
        held.push(stream);
    }
    println!("HELD {connections}");
    // Blocking is right here: the connections have nothing left to do but to stay open.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(held);
    Ok(())
}
