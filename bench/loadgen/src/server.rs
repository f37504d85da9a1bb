//! The server behind the measured proxies: it answers each call with a prepared body and does nothing else.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Protocol;
use crate::frames::{Frames, Template};

/// Listens, prints `READY address`, and answers until the process is ended.
pub(crate) async fn serve(protocol: Protocol, addr: SocketAddr, body: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind(addr).await?;
    println!("READY {}", listener.local_addr()?);
    let template = Template::answer(protocol, body);
    loop {
        let (stream, _) = listener.accept().await?;
        let template = template.clone();
        tokio::spawn(async move {
            // A connection that breaks is the client's to count.
            let _ = answer(stream, protocol, &template).await;
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    protocol: Protocol,
    template: &Template,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut frames = Frames::new(protocol);
    let mut output = Vec::new();
    loop {
        if stream.read_buf(frames.input()).await? == 0 {
            return Ok(());
        }
        while let Some(id) = frames.next_request()? {
            template.append(id, &mut output);
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
    }
}
