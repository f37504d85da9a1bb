//! The SOFARegistry adapter with the real server and its stock client, SOFARPC on top. One server for everything: it takes a
//! minute to start.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{all_told, hub_of, status, until, wait_same};
use registry::{Hub, Instance, ORIGIN_MARK, RegistrySource, ServiceKey, Wanted};
use serde_json::json;
use testkit::net::Loopback;
use testkit::process::Process;
use testkit::registries::SofaRegistry;

const LIMIT: Duration = Duration::from_secs(90);
const ORDER: &str = "com.foo.Order:1.0:blue@DEFAULT SOFA";
const GREETER: &str = "mesh.apps.sofaregistry.Greeter";
/// Copies of many services.
const MANY: u16 = 2000;

/// An application with the stock client.
struct App(Process);

impl App {
    fn start(server: &SofaRegistry, name: &str, folder: &Path) -> Result<App> {
        let http = server.http();
        let arguments = [
            "--host".to_owned(),
            http.ip().to_string(),
            "--port".to_owned(),
            http.port().to_string(),
        ];
        let class = "mesh.apps.sofaregistry.Client";
        testkit::apps::start_client("sofaregistry", class, name, &arguments, folder).map(App)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.ask(command, LIMIT)
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        self.0.tell(command, LIMIT)
    }

    /// What the application sees, once it is this.
    fn wait(&mut self, command: &str, is_right: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.ask(command)?;
            if is_right(&seen) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{command}: {seen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn endpoints(hub: &Hub) -> Vec<String> {
    let mut all = all_told(hub, |i| {
        let place = format!("{}:{}", i.address, i.port);
        format!(
            "{} {place} w{} v{} g{}",
            i.service, i.weight, i.version, i.group
        )
    });
    all.retain(|line| !line.contains("/many."));
    all
}

async fn wait_endpoints(hub: &Hub, expected: &[&str]) -> Result<()> {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    wait_same(LIMIT, || endpoints(hub), &expected).await
}

/// What is missing in a suspicious list stays for longer than this test waits for anything.
fn source(server: &SofaRegistry, data_endpoints: &[String]) -> Result<registry::SourceSpec> {
    let spec: RegistrySource = serde_json::from_value(json!({
        // An endpoint that is not there is passed over.
        "sofaregistry": {
            "endpoints": ["127.0.0.1:1", server.http().to_string()],
            "dataEndpoints": data_endpoints,
            "pollInterval": "200ms",
        },
        "protection": {"hold": "10m"},
    }))?;
    Ok(spec.compile("sofa")?)
}

type Copy = (Arc<str>, Arc<Instance>);

fn copy(protocol: &str, name: &str, (address, port): (&str, u16), weight: u32) -> Copy {
    let mut copy = Instance::new(ServiceKey::new(protocol, name), address, port);
    copy.version = "1.0".into();
    copy.weight = weight;
    copy.metadata = [(ORIGIN_MARK, "one/zk"), ("zone", "east")]
        .into_iter()
        .collect();
    (format!("one/zk/{name}-{port}").into(), Arc::new(copy))
}

fn wanted(publish: &[&Copy], withdraw: &[&Copy]) -> Wanted {
    let all = |copies: &[&Copy]| copies.iter().map(|copy| (*copy).clone()).collect();
    Wanted {
        publish: all(publish),
        withdraw: all(withdraw),
        ..Wanted::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_and_hub_find_each_other_whatever_happens_to_the_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = Loopback::claim()?;
    let mut server = SofaRegistry::start(folder.path())?;
    let one = hub_of("one");
    one.set_sources(vec![source(&server, &[])?]);
    let mut shop = App::start(&server, "shop", folder.path())?;
    let mut caller = App::start(&server, "caller", folder.path())?;

    publications_are_read(&one, &mut shop).await?;
    let provider = loopback.ip(2).to_string();
    let greeter = format!("bolt/{GREETER} {provider}:12200 w150 v1.0 g");
    shop.tell(&format!("export {provider} 12200 shop - 150"))?;
    let both = [
        greeter.as_str(),
        "bolt/com.foo.Order 10.0.0.1:12200 w40 v1.0 gblue",
    ];
    wait_endpoints(&one, &both).await?;

    // The copies' readers are SOFARPC itself, other applications, and hubs of other meshes.
    shop.tell(&format!("serve {provider} 12200 unregistered copied 100"))?;
    let mut of_greeter = copy("bolt", GREETER, (&provider, 12200), 50);
    Arc::make_mut(&mut of_greeter.1).group = "copied".into();
    let cart = copy("bolt", "com.foo.Cart", ("10.9.0.1", 8001), 70);
    let stock = copy("tri", "com.foo.Stock", ("10.9.0.1", 8002), 100);
    one.set_wanted("sofa", wanted(&[&of_greeter, &cart, &stock], &[]));
    until(LIMIT, "all is written", async || {
        status(&one).await.ok().filter(|s| s.written == 3)
    })
    .await?;
    let two = hub_of("two");
    two.set_sources(vec![source(&server, &[server.data_http().to_string()])?]);
    let copied = format!("bolt/{GREETER} {provider}:12200 w50 v1.0 gcopied");
    let of_all = [
        greeter.as_str(),
        copied.as_str(),
        "bolt/com.foo.Cart 10.9.0.1:8001 w70 v1.0 g",
        both[1],
        "tri/com.foo.Stock 10.9.0.1:8002 w100 v1.0 g",
    ];
    wait_endpoints(&two, &of_all).await?;
    wait_endpoints(&one, &both).await?;
    caller.tell("refer copied")?;
    caller.wait("call copied Ada", |said| said == "unregistered greets Ada")?;
    copies_are_seen(&mut caller, &one, (&of_greeter, &cart, &stock))?;

    // What the server says while it lives is believed at once.
    shop.tell("unexport shop")?;
    wait_endpoints(&one, &both[1..]).await?;
    shop.tell(&format!("export {provider} 12200 shop - 150"))?;
    wait_endpoints(&one, &both).await?;

    many_services_are_written_and_read(&server, &one, &two).await?;

    a_server_that_lost_everything(&mut server, &one, &both, &mut caller).await?;
    // What the other hub has not seen again it would hold back, gone or not.
    until(
        LIMIT,
        "the other hub holds nothing back any more",
        async || status(&two).await.ok().filter(|s| s.held == 0),
    )
    .await?;

    // A client that dies takes its publications along.
    caller.tell("publish com.foo.Pay:1.0@DEFAULT SOFA 10.0.0.7:12200?weight=100")?;
    let pay = "bolt/com.foo.Pay 10.0.0.7:12200 w100 v1.0 g";
    wait_endpoints(&one, &[both[0], both[1], pay]).await?;
    shop.0.kill()?;
    wait_endpoints(&one, &[pay]).await?;
    // So does a hub.
    caller.wait("seen com.foo.Cart:1.0@DEFAULT SOFA", |seen| {
        seen.contains(":8001")
    })?;
    drop(one);
    caller.wait("seen com.foo.Cart:1.0@DEFAULT SOFA", |seen| seen == "{}")?;
    wait_endpoints(&two, &[pay]).await?;
    Ok(())
}

async fn publications_are_read(hub: &Hub, shop: &mut App) -> Result<()> {
    shop.tell(&format!(
        "publish {ORDER} 10.0.0.1:12200?weight=30&appName=shop&_HOSTMACHINE=h 10.0.0.2:99999?weight=1"
    ))?;
    wait_endpoints(hub, &["bolt/com.foo.Order 10.0.0.1:12200 w30 v1.0 gblue"]).await?;
    let broken = until(LIMIT, "the broken entry is named", async || {
        let entries = status(hub).await.ok()?.skipped_entries;
        (entries.len() == 1).then_some(entries)
    })
    .await?;
    ensure!(broken[0].entry.contains("99999"), "{broken:?}");

    shop.tell(&format!("publish {ORDER} 10.0.0.1:12200?weight=40"))?;
    wait_endpoints(hub, &["bolt/com.foo.Order 10.0.0.1:12200 w40 v1.0 gblue"]).await?;
    // Dubbo publishes whole URLs.
    let dubbo = "com.foo.Bill:2.0:red@dubbo SOFA";
    let url = "dubbo://10.0.0.3:20880/com.foo.Bill?group=red&interface=com.foo.Bill&version=2.0";
    shop.tell(&format!("publish {dubbo} {url}&weight=60&methods=pay"))?;
    let bill = "dubbo/com.foo.Bill 10.0.0.3:20880 w60 v2.0 gred";
    let order = "bolt/com.foo.Order 10.0.0.1:12200 w40 v1.0 gblue";
    wait_endpoints(hub, &[order, bill]).await?;
    shop.tell(&format!("unpublish {dubbo}"))?;
    wait_endpoints(hub, &[order]).await
}

fn copies_are_seen(
    caller: &mut App,
    hub: &Hub,
    (greeter, cart, stock): (&Copy, &Copy, &Copy),
) -> Result<()> {
    let of_cart = "com.foo.Cart:1.0@DEFAULT SOFA";
    caller.tell(&format!("subscribe {of_cart} global"))?;
    caller.wait(&format!("seen {of_cart}"), |seen| {
        seen.starts_with("{DEFAULT_ZONE=[10.9.0.1:8001?") && seen.contains("weight=70")
    })?;
    let of_stock = "com.foo.Stock:1.0@dubbo SOFA";
    caller.tell(&format!("subscribe {of_stock} global"))?;
    caller.wait(&format!("seen {of_stock}"), |seen| {
        seen.contains("tri://10.9.0.1:8002/com.foo.Stock?") && seen.contains("mesh.origin=one/zk")
    })?;

    let lighter = copy("bolt", "com.foo.Cart", ("10.9.0.1", 8001), 7);
    hub.set_wanted("sofa", wanted(&[greeter, &lighter, stock], &[]));
    caller.wait(&format!("seen {of_cart}"), |seen| {
        seen.contains("weight=7&") || seen.ends_with("weight=7]}")
    })?;
    hub.set_wanted("sofa", wanted(&[greeter, cart], &[stock]));
    caller.wait(&format!("seen {of_stock}"), |seen| seen == "{}")?;
    caller.wait(&format!("seen {of_cart}"), |seen| {
        seen.contains("weight=70")
    })
}

async fn many_services_are_written_and_read(
    server: &SofaRegistry,
    one: &Hub,
    two: &Hub,
) -> Result<()> {
    let began = Instant::now();
    let many = (0..MANY).map(|number| {
        let mut copy = copy("bolt", &format!("many.S{number}"), ("10.9.0.2", 9000), 100);
        Arc::make_mut(&mut copy.1).metadata = [(ORIGIN_MARK, "two/zk")].into_iter().collect();
        copy
    });
    let wanted = Wanted {
        publish: many.collect(),
        ..Wanted::default()
    };
    two.set_wanted("sofa", wanted);
    until(LIMIT, "many services are written", async || {
        status(two)
            .await
            .ok()
            .filter(|s| s.written == usize::from(MANY))
    })
    .await?;
    let written = began.elapsed();
    let read = |hub: &Hub| {
        let services = hub.snapshot();
        let many = services.iter().filter(|s| s.key.name.starts_with("many."));
        many.count()
    };
    until(LIMIT, "many services are read", async || {
        (read(one) == usize::from(MANY)).then_some(())
    })
    .await
    .with_context(|| format!("there are {}", read(one)))?;
    eprintln!(
        "{MANY} services: written {written:?}, read {:?}",
        began.elapsed()
    );
    // A hub that comes later subscribes them all at once.
    let began = Instant::now();
    let three = hub_of("three");
    three.set_sources(vec![source(server, &[])?]);
    until(LIMIT, "many services are read anew", async || {
        (read(&three) == usize::from(MANY)).then_some(())
    })
    .await?;
    eprintln!("{MANY} services: read anew {:?}", began.elapsed());
    let began = Instant::now();
    two.set_wanted("sofa", Wanted::default());
    until(LIMIT, "many services are gone", async || {
        (read(one) == 0).then_some(())
    })
    .await?;
    eprintln!("{MANY} services: gone {:?}", began.elapsed());
    Ok(())
}

/// It comes back empty, then gets back what is alive. Nothing flaps meanwhile.
async fn a_server_that_lost_everything(
    server: &mut SofaRegistry,
    hub: &Hub,
    expected: &[&str],
    caller: &mut App,
) -> Result<()> {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    server.kill()?;
    until(LIMIT, "the loss is known", async || {
        status(hub).await.ok().filter(|s| !s.connected && s.stale)
    })
    .await?;
    ensure!(endpoints(hub) == expected, "{:?}", endpoints(hub));
    let mut changes = hub.changes()?;
    server.restart()?;
    until(LIMIT, "connected again", async || {
        status(hub).await.ok().filter(|s| s.connected && s.synced)
    })
    .await?;
    ensure!(endpoints(hub) == expected, "{:?}", endpoints(hub));
    // Both clients are back when the copies are seen and the last provider has been published again.
    caller.wait("seen com.foo.Cart:1.0@DEFAULT SOFA", |seen| {
        seen.contains(":8001")
    })?;
    until(LIMIT, "nothing is held back any more", async || {
        status(hub).await.ok().filter(|s| s.held == 0)
    })
    .await?;
    ensure!(endpoints(hub) == expected, "{:?}", endpoints(hub));
    let silence = Duration::from_millis(500);
    while let Ok(Some(event)) = tokio::time::timeout(silence, changes.next()).await {
        let registry::Event::Changes(changes) = event else {
            continue;
        };
        for change in changes.iter() {
            ensure!(
                change.kind == registry::ChangeKind::Put,
                "it flapped: {change:?}"
            );
        }
    }
    Ok(())
}
