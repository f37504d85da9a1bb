//! A small HTTP/1.1 client for looking at programs from outside, one connection a call, and a server for calls that
//! need no real application behind them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Time for one step (connect, write, each read).
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, dechunked.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// GET.
pub fn get(to: SocketAddr, path: &str) -> Result<Answer> {
    request(to, "GET", path, &[], &[])
}

/// POST of a JSON body.
pub fn post_json(to: SocketAddr, path: &str, body: &Value) -> Result<Answer> {
    let body = serde_json::to_vec(body)?;
    request(
        to,
        "POST",
        path,
        &[("content-type", "application/json")],
        &body,
    )
}

/// Any request. `Host` is the address unless `headers` name it.
pub fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    exchange(&mut connect(to)?, to, method, path, headers, body)
}

/// A connection whose steps take at most [`STEP_LIMIT`].
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, STEP_LIMIT).with_context(|| format!("{to}"))?;
    stream.set_read_timeout(Some(STEP_LIMIT))?;
    stream.set_write_timeout(Some(STEP_LIMIT))?;
    Ok(stream)
}

/// A request and its answer on a connection that ends with it.
pub(crate) fn exchange(
    stream: &mut (impl Read + Write),
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        head += &format!("host: {to}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()?;

    let mut received = Vec::new();
    stream
        .read_to_end(&mut received)
        .with_context(|| format!("{method} {to}{path}"))?;
    parse(&received).with_context(|| format!("{method} {to}{path}"))
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no answer")?;
    let head = std::str::from_utf8(&bytes[..end])?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .split(' ')
        .nth(1)
        .context("no status")?
        .parse()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    };
    if answer
        .header("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        answer.body = dechunk(&answer.body)?;
    } else if let Some(length) = answer.header("content-length") {
        let length: usize = length.parse()?;
        if answer.body.len() < length {
            bail!("{} of {length} bytes of the body came", answer.body.len());
        }
    }
    Ok(answer)
}

fn dechunk(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .context("chunk cut off")?;
        let size = std::str::from_utf8(&bytes[..end])?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        let chunk = bytes
            .get(end + 2..end + 2 + size)
            .context("chunk cut off")?;
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).context("chunk cut off")?;
    }
}

/// A server that answers every request with a label and what it was asked, one request a connection.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Server {
    /// Listens on `address` and answers `label METHOD PATH`.
    pub fn start(address: SocketAddr, label: &str) -> Result<Server> {
        let listener = TcpListener::bind(address).with_context(|| format!("{address}"))?;
        let address = listener.local_addr()?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (stop, label) = (Arc::clone(&stopped), label.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let label = label.clone();
                // A caller that breaks off is its own business.
                thread::spawn(move || answer(&stream, &label).ok());
            }
        });
        Ok(Server { address, stopped })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(stream: &TcpStream, label: &str) -> Result<()> {
    stream.set_read_timeout(Some(STEP_LIMIT))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().context("no request")??;
    let asked = request.trim_end_matches(" HTTP/1.1");
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("{label} {asked}");
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all((head + &body).as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lengths_and_chunks() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi").unwrap();
        assert_eq!(
            (plain.status, plain.text().as_str(), plain.header("x-a")),
            (200, "hi", Some("b"))
        );
        let chunked = b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n ho\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().text(), "hi ho");
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").is_err());
    }

    #[test]
    fn the_server_answers_until_it_is_dropped() {
        let server = Server::start(([127, 0, 0, 1], 0).into(), "here").unwrap();
        let address = server.address;
        assert_eq!(get(address, "/a?b").unwrap().text(), "here GET /a?b");
        drop(server);
        crate::wait::until("its end", STEP_LIMIT, || get(address, "/").err()).unwrap();
    }
}
