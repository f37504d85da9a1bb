//! How long after a watcher of the registry a proxy has a change: a relay between the proxy and pilot sees the proxy's
//! acknowledgements go by.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::mesh::registry::v1::{Instance, RegisterRequest, Selector, WatchRequest};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::connect;

/// How long one change may take.
const LATEST: Duration = Duration::from_secs(10);
/// Between two changes: nothing of the one before is under way any more.
const PAUSE: Duration = Duration::from_millis(30);
/// Length of the head of an HTTP/2 frame (RFC 9113 §4.1); its fourth byte is the type, 0 for data.
const FRAME_HEAD: usize = 9;
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// When the proxy last sent data: it sends nothing but requests and acknowledgements.
#[derive(Default)]
struct Sent {
    last: RefCell<Option<Instant>>,
    told: Notify,
}

/// Prints `RELAY address` for the proxy to connect to, waits for a line on standard input, and makes the changes.
pub(crate) async fn run(addr: String, changes: u32) -> anyhow::Result<Value> {
    LocalSet::new().run_until(measure(addr, changes)).await
}

async fn measure(addr: String, changes: u32) -> anyhow::Result<Value> {
    let sent = Rc::new(Sent::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("RELAY {}", listener.local_addr()?);
    tokio::task::spawn_local(relay(listener, addr.clone(), sent.clone()));

    let mut client = connect(&addr).await?;
    let mut instance = Instance {
        protocol: "http".to_owned(),
        service: "bench-acks".to_owned(),
        id: "changing".to_owned(),
        address: "10.0.0.1".to_owned(),
        port: 8080,
        ttl_ms: Some(0),
        ..Instance::default()
    };
    register(&mut client, &instance).await?;
    let request = WatchRequest {
        selector: Some(Selector {
            protocol: instance.protocol.clone(),
            service: instance.service.clone(),
            ..Selector::default()
        }),
        ..WatchRequest::default()
    };
    let mut watch = connect(&addr).await?.watch(request).await?.into_inner();
    while !watch
        .message()
        .await?
        .context("the watch has ended")?
        .synced
    {}
    let line = || std::io::stdin().read_line(&mut String::new());
    tokio::task::spawn_blocking(line).await??;

    let mut notified = Histogram::<u64>::new(3)?;
    let mut above = Histogram::<u64>::new(3)?;
    for number in 0..changes {
        tokio::time::sleep(PAUSE).await;
        sent.last.take();
        instance.port = 8080 + number % 1000 + 1;
        let changed = Instant::now();
        let watching = async {
            loop {
                let message = watch.message().await?.context("the watch has ended")?;
                if !message.changes.is_empty() {
                    return anyhow::Ok(Instant::now());
                }
            }
        };
        let acknowledged = async {
            loop {
                let told = sent.told.notified();
                if let Some(at) = *sent.last.borrow() {
                    return anyhow::Ok(at);
                }
                told.await;
            }
        };
        let all =
            async { tokio::try_join!(register(&mut client, &instance), watching, acknowledged) };
        let ((), seen, acknowledged) = tokio::time::timeout(LATEST, all)
            .await
            .with_context(|| format!("change {number} was not acknowledged"))??;
        let micros = |time: Duration| u64::try_from(time.as_micros()).map(|us| us.max(1));
        notified.record(micros(seen - changed)?)?;
        above.record(micros(acknowledged.saturating_duration_since(seen))?)?;
    }
    let ms = |histogram: &Histogram<u64>, quantile| {
        histogram.value_at_quantile(quantile) as f64 / 1000.0
    };
    Ok(json!({
        "changes": changes,
        "notified_p50_ms": ms(&notified, 0.5),
        "notified_p99_ms": ms(&notified, 0.99),
        "above_p50_ms": ms(&above, 0.5),
        "above_p99_ms": ms(&above, 0.99),
        "above_max_ms": above.max() as f64 / 1000.0,
    }))
}

async fn register(client: &mut crate::Client, instance: &Instance) -> anyhow::Result<()> {
    let request = RegisterRequest {
        instances: vec![instance.clone()],
        ..RegisterRequest::default()
    };
    client.register(request).await?;
    Ok(())
}

async fn relay(listener: TcpListener, addr: String, sent: Rc<Sent>) {
    while let Ok((client, _)) = listener.accept().await {
        let (addr, sent) = (addr.clone(), sent.clone());
        tokio::task::spawn_local(async move {
            // A connection that breaks is opened again by the proxy.
            let _ = pass(client, &addr, &sent).await;
        });
    }
}

async fn pass(client: TcpStream, addr: &str, sent: &Sent) -> anyhow::Result<()> {
    let server = TcpStream::connect(addr).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = async { anyhow::Ok(tokio::io::copy(&mut from_server, &mut to_client).await?) };
    let up = async {
        let mut skip = PREFACE;
        let mut head = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_client.read(&mut buffer).await?;
            anyhow::ensure!(count > 0, "the proxy has closed");
            let now = Instant::now();
            let bytes = buffer.get(..count).unwrap_or_default();
            if has_data(bytes, &mut skip, &mut head) {
                *sent.last.borrow_mut() = Some(now);
                sent.told.notify_waiters();
            }
            to_server.write_all(bytes).await?;
        }
        #[allow(unreachable_code, reason = "it gives the block its type")]
        anyhow::Ok(())
    };
    tokio::try_join!(down, up)?;
    Ok(())
}

/// Whether a frame of data begins in these bytes; `skip` is what is left of the frame before, `head` of a head.
fn has_data(mut bytes: &[u8], skip: &mut usize, head: &mut Vec<u8>) -> bool {
    let mut found = false;
    while !bytes.is_empty() {
        let passed = (*skip).min(bytes.len());
        *skip -= passed;
        bytes = bytes.get(passed..).unwrap_or_default();
        let wanted = (FRAME_HEAD - head.len()).min(bytes.len());
        if *skip > 0 || wanted == 0 {
            continue;
        }
        head.extend_from_slice(bytes.get(..wanted).unwrap_or_default());
        bytes = bytes.get(wanted..).unwrap_or_default();
        if let [a, b, c, kind, ..] = head.as_slice()
            && head.len() == FRAME_HEAD
        {
            found |= *kind == 0;
            *skip = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            head.clear();
        }
    }
    found
}
