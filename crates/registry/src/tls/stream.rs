//! A connection to a server, with TLS or without.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientTls;
use crate::naming::host_port;

/// What is read from and written to.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to `host:port`; takes no longer than whoever waits for it.
pub(crate) async fn connect(server: &str, tls: Option<&ClientTls>) -> io::Result<Stream> {
    let tls = match tls {
        Some(tls) => {
            let name = match &tls.server_name {
                Some(name) => name.clone(),
                None => host_port(server).map_err(io::Error::other)?.0,
            };
            let name = ServerName::try_from(name).map_err(io::Error::other)?;
            let config = tls.config().map_err(io::Error::other)?;
            Some((TlsConnector::from(Arc::new(config)), name))
        }
        None => None,
    };
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    match tls {
        Some((connector, name)) => {
            let stream = connector.connect(name, stream).await?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        None => Ok(Stream::Plain(stream)),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
