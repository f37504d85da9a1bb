//! All registries, the mesh between them, and what should be seen where.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use testkit::http::{self, Server};
use testkit::mesh::{Kind as Program, Mesh, NAMESPACE, Sidecar};
use testkit::netns::Site;
use testkit::wait;

use crate::kubernetes;
use crate::side::{Kind, Side};
use crate::state::{Entry, Instance, SERVICE, State};

/// A registry that dies takes its sessions and leases with it after a while, on a busy machine later.
const LIMIT: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(50);
/// How long nothing may change after all is as it should be.
const QUIET: Duration = Duration::from_millis(700);

const RECIPE: &str = include_str!("../../../docs/registries/sync.md");
const HEADING: &str = "## Every registry knows what is in every other\n";

const CONSUMER: u8 = 2;
const PROVIDER: u8 = 3;
const CONSUMER_PORT: u16 = 10_088;
/// Ports of the providers' sidecar; the application of each is this much higher.
const PORTS: std::ops::Range<u16> = 20_000..20_018;
const APPLICATION: u16 = 1000;
/// The provider that Eureka's applications can reach.
const CART: u16 = PORTS.end;
/// The source of a folder, and the instance that is listed there.
const FILES: &str = "files";
const LISTED: u16 = PORTS.start;

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sides: Vec<Side>,
    /// By their ports, the instances that applications keep registered.
    living: BTreeMap<u16, Instance>,
    /// By their ports, the first colors that they were registered with.
    first_colors: BTreeMap<u16, String>,
    consumer: Sidecar,
    provider: Ipv4Addr,
    _provider: Sidecar,
    /// Has the providers' address.
    _network: Site,
    _applications: Vec<Server>,
    pub(crate) mesh: Mesh,
    began: Instant,
}

impl World {
    /// Starts the mesh and these registries with the documentation's recipe, and leases of pilot's of this length.
    pub(crate) fn start(kinds: &[Kind], lease: &str) -> Result<World> {
        let began = Instant::now();
        let mesh = Mesh::start_keeping()?;
        let folder = mesh.folder().to_owned();
        let sides = thread::scope(|scope| {
            let folder = &folder;
            let starting: Vec<_> = kinds
                .iter()
                .map(|kind| scope.spawn(move || Side::start(*kind, folder)))
                .collect();
            let sides = starting.into_iter().map(|side| {
                let side = side.join();
                side.map_err(|_| anyhow!("a start has panicked"))?
            });
            sides.collect::<Result<Vec<Side>>>()
        })?;
        let services = folder.join("services");
        fs::create_dir(&services)?;
        let addresses: Vec<_> = sides.iter().map(Side::address).collect::<Result<_>>()?;
        mesh.write(
            "recipe.yaml",
            &recipe(&addresses, &services.display().to_string(), lease)?,
        )?;
        let eureka = sides.iter().find(|side| side.kind == Kind::Eureka);
        let reachable = eureka.context("no Eureka")?.outside();
        // Kubernetes has no endpoints with loopback addresses.
        let network = Site::start("providers", &folder)?;
        let address = network.outside();
        mesh.write("sidecars.yaml", &sidecars(&mesh, address, reachable))?;
        let applications = (PORTS.start..=CART).map(|port| {
            let address = mesh.address(PROVIDER, port + APPLICATION);
            Server::start(address, &port.to_string())
        });
        let applications = applications.collect::<Result<_>>()?;
        let of_provider = [("app", "provider")];
        let provider = mesh.sidecar(Program::Mosn, "provider-sidecar", PROVIDER, &of_provider)?;
        let of_consumer = [("app", "consumer")];
        let mut consumer =
            mesh.sidecar(Program::Mosn, "consumer-sidecar", CONSUMER, &of_consumer)?;
        for port in PORTS {
            wait::until_ok("the providers' sidecar", LIMIT, || {
                Ok(TcpStream::connect((address, port))?)
            })?;
        }
        consumer.wait_listening(CONSUMER_PORT)?;
        let world = World {
            sides,
            living: BTreeMap::new(),
            first_colors: BTreeMap::new(),
            consumer,
            provider: address,
            _provider: provider,
            _network: network,
            _applications: applications,
            mesh,
            began,
        };
        world.say("all is started");
        Ok(world)
    }

    /// Says in the output when something was.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    pub(crate) fn side(&mut self, kind: Kind) -> Result<&mut Side> {
        let side = self.sides.iter_mut().find(|side| side.kind == kind);
        side.context("not in this world")
    }

    fn host(&self) -> String {
        self.provider.to_string()
    }

    fn instance(&mut self, port: u16, weight: u32, color: &str, origin: &'static str) -> Instance {
        let first = self.first_colors.entry(port);
        let first_color = first.or_insert_with(|| color.to_owned()).clone();
        Instance {
            port,
            weight,
            color: color.to_owned(),
            first_color,
            origin,
        }
    }

    /// Registers an instance with the stock client of its registry, or changes it.
    pub(crate) fn register(
        &mut self,
        kind: Kind,
        port: u16,
        weight: u32,
        color: &str,
    ) -> Result<()> {
        let instance = self.instance(port, weight, color, kind.source());
        let host = self.host();
        self.side(kind)?.registrant().register(&host, &instance)?;
        self.living.insert(port, instance);
        Ok(())
    }

    /// Takes an instance out with the stock client of its registry.
    pub(crate) fn deregister(&mut self, kind: Kind, port: u16) -> Result<()> {
        self.look()?;
        self.forget(port);
        let host = self.host();
        self.side(kind)?.registrant().deregister(&host, port)
    }

    /// Kills the application that registers in a registry.
    pub(crate) fn kill_registrant(&mut self, kind: Kind) -> Result<()> {
        self.look()?;
        let of_it = self.living.values().filter(|i| i.origin == kind.source());
        let ports: Vec<u16> = of_it.map(|instance| instance.port).collect();
        for port in ports {
            self.forget(port);
        }
        self.side(kind)?.registrant().kill()
    }

    fn forget(&mut self, port: u16) {
        self.living.remove(&port);
        self.first_colors.remove(&port);
        for side in &mut self.sides {
            side.history.forget(port);
        }
    }

    /// Lists an instance by hand.
    pub(crate) fn list(&mut self, weight: u32, color: &str) -> Result<()> {
        let host = self.host();
        let text = format!(
            "services:\n- protocol: http\n  name: {SERVICE}\n  instances:\n  \
             - {{address: {host}, port: {LISTED}, weight: {weight}, metadata: {{color: {color}}}}}\n"
        );
        fs::write(self.mesh.folder().join("services/shop.yaml"), text)?;
        let instance = self.instance(LISTED, weight, color, FILES);
        self.living.insert(LISTED, instance);
        Ok(())
    }

    /// A service of the mesh that no registry has heard of is found and called by a Spring Cloud client of Eureka.
    pub(crate) fn call_from_eureka(&mut self) -> Result<()> {
        let host = self.side(Kind::Eureka)?.outside();
        let text = format!(
            "services:\n- {{protocol: http, name: cart, instances: [{{address: {host}, port: {CART}}}]}}\n"
        );
        fs::write(self.mesh.folder().join("services/cart.yaml"), text)?;
        let side = self.side(Kind::Eureka)?;
        let answer = wait::until_ok("an answer of the cart", LIMIT, || {
            side.ask_watcher("call cart")
        })?;
        ensure!(answer == format!("{CART} GET /who"), "{answer}");
        self.say("called from Eureka");
        Ok(())
    }

    fn expected(&self, source: &str) -> State {
        let mut state: State = self.living.values().map(|i| i.seen_in(source)).collect();
        state.sort();
        state
    }

    /// Takes in what all clients saw.
    pub(crate) fn look(&mut self) -> Result<()> {
        for side in &mut self.sides {
            side.look(&self.living)?;
        }
        Ok(())
    }

    /// Waits until every client sees what it should, and stays so; nothing may have flapped since the last time.
    pub(crate) fn converge(&mut self, what: &str) -> Result<()> {
        let all: Vec<Kind> = self.sides.iter().map(|side| side.kind).collect();
        self.converge_on(&all, what)
    }

    /// The same for the clients of some registries.
    pub(crate) fn converge_on(&mut self, kinds: &[Kind], what: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut since = None;
        loop {
            self.look()?;
            let are_right = self
                .sides
                .iter()
                .filter(|side| kinds.contains(&side.kind))
                .all(|side| side.history.now() == self.expected(side.kind.source()));
            match (are_right, since) {
                (false, _) => since = None,
                (true, None) => since = Some(Instant::now()),
                (true, Some(since)) if Instant::now() > since + QUIET => break,
                (true, Some(_)) => {}
            }
            if Instant::now() > deadline {
                bail!("{what}: not all see the same:\n{}", self.table());
            }
            thread::sleep(STEP);
        }
        let mut faults = self
            .sides
            .iter()
            .flat_map(|side| &side.history.faults)
            .peekable();
        if faults.peek().is_some() {
            let faults: Vec<&str> = faults.map(String::as_str).collect();
            bail!(
                "{what}: on the way:\n{}\n{}",
                faults.join("\n"),
                self.table()
            );
        }
        self.say(what);
        Ok(())
    }

    /// Every pair of an instance's registry and a client's: whether it is seen as it should be.
    fn table(&self) -> String {
        let mut text = String::new();
        for side in &self.sides {
            let source = side.kind.source();
            let (expected, seen) = (self.expected(source), side.history.now());
            let _ = writeln!(text, "the client of {source}:");
            let all: BTreeSet<&Entry> = expected.iter().chain(&seen).collect();
            for entry in all {
                let count = |state: &State| state.iter().filter(|e| *e == entry).count();
                let (expected, seen) = (count(&expected), count(&seen));
                let verdict = if expected == seen { "ok " } else { "NOT" };
                let _ = writeln!(
                    text,
                    "  {verdict} {entry:?}: expected {expected}, seen {seen}"
                );
            }
        }
        let page = self.registries().map(|page| format!("{page:#}"));
        let page = page.unwrap_or_else(|error| error.to_string());
        text + &page
    }

    /// Pilot's `/debug/registries`.
    pub(crate) fn registries(&self) -> Result<Value> {
        http::get(self.mesh.pilot_http(), "/debug/registries")?.json()
    }

    /// Waits until pilot says of a registry whether it can be read.
    pub(crate) fn wait_stale(&mut self, kind: Kind, is_stale: bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.look()?;
            let page = self.registries()?;
            let sources = page["sources"].as_array().context("no sources")?;
            let source = sources
                .iter()
                .find(|source| source["name"] == kind.source());
            let source = source.with_context(|| page.to_string())?;
            if source["stale"] == is_stale && source["connected"] == !is_stale {
                self.say(&format!("{} is stale: {is_stale}", kind.source()));
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{source}");
            thread::sleep(STEP);
        }
    }

    /// Waits until the client of a registry sees an instance.
    pub(crate) fn wait_seen(&mut self, kind: Kind, port: u16) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.look()?;
            let state = self.side(kind)?.history.now();
            if state.iter().any(|entry| entry.port == port) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{port} expected in {}:\n{}",
                kind.source(),
                self.table()
            );
            thread::sleep(STEP);
        }
    }

    /// Calls through both sidecars until just the living instances have answered, and no call failed.
    pub(crate) fn call_all(&mut self) -> Result<()> {
        let living: BTreeSet<u16> = self.living.keys().copied().collect();
        let hosts: BTreeSet<String> = self.living.values().map(host_of).collect();
        let to = (self.consumer.ip(), CONSUMER_PORT).into();
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut answered = BTreeSet::new();
            let mut failures = BTreeSet::new();
            for host in hosts.iter().cycle().take(living.len() * 12) {
                match http::request(to, "GET", "/who", &[("host", host)], &[]) {
                    Ok(answer) if answer.status == 200 => {
                        let text = answer.text();
                        let port = text.split(' ').next().and_then(|port| port.parse().ok());
                        answered.insert(port.with_context(|| text.clone())?);
                    }
                    Ok(answer) => drop(failures.insert(answer.text())),
                    Err(error) => drop(failures.insert(format!("{error:#}"))),
                }
                if answered == living {
                    break;
                }
            }
            if answered == living && failures.is_empty() {
                self.say(&format!("called: {living:?}"));
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{living:?} expected, {answered:?} answered; {failures:?}"
            );
        }
    }
}

/// The host by which the mesh knows an instance.
fn host_of(instance: &Instance) -> String {
    match instance.origin == Kind::Kubernetes.source() {
        true => kubernetes::host(),
        false => SERVICE.to_owned(),
    }
}

/// The recipe's documents with the addresses of this test.
fn recipe(addresses: &[(&str, String)], folder: &str, lease: &str) -> Result<String> {
    let recipe = RECIPE.split(HEADING).nth(1).context("no recipe")?;
    let blocks = recipe.split("```yaml\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("```").next());
    let mut text = blocks.next().context("no recipe")?.to_owned();
    let more = blocks.next().context("no recipe for others")?;
    if addresses.iter().any(|(name, _)| more.contains(name)) {
        text = format!("{text}---\n{more}");
    }
    let of_folder = ("/etc/mesh/services", folder.to_owned());
    for (from, to) in addresses.iter().chain([&of_folder]) {
        ensure!(text.contains(from), "the recipe has no {from}");
        text = text.replace(from, to);
    }
    // The test need not wait as long as people should.
    let text = text.replace("pollInterval: 1s", "pollInterval: 200ms");
    let text = text.replace("to: [", "orphanHold: 10s\n  to: [");
    let text = text.replace("Timeout: 30s", &format!("Timeout: {lease}"));
    let text = text.replace("Duration: 30s", &format!("Duration: {lease}"));
    Ok(
        ["zk", "etcd", "eureka", "sofa", "consul", "nacos", "cluster"]
            .iter()
            .fold(text, |text, name| {
                let head = format!("metadata: {{name: {name}}}\nspec:\n");
                text.replace(&head, &format!("{head}  protection: {{hold: 10s}}\n"))
            }),
    )
}

/// The consumer's sidecar with one port for calls, and the providers' with one for each of them.
fn sidecars(mesh: &Mesh, provider: Ipv4Addr, reachable: Ipv4Addr) -> String {
    let document = |name: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
             metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n\
             \x20 workloadSelector: {{labels: {{app: {name}}}}}\n{spec}---\n"
        )
    };
    let consumer = mesh.ip(CONSUMER);
    let egress = format!(
        "  egress:\n  - port: {{number: {CONSUMER_PORT}, name: http, protocol: HTTP}}\n    \
         bind: {consumer}\n    captureMode: NONE\n    hosts: ['*/*']\n"
    );
    let mut ingress = "  egress:\n  - hosts: ['~/*']\n  ingress:\n".to_owned();
    let ports = PORTS.map(|port| (port, provider));
    for (port, ip) in ports.chain([(CART, reachable)]) {
        let application = port + APPLICATION;
        let _ = writeln!(
            ingress,
            "  - port: {{number: {port}, name: http-{port}, protocol: HTTP}}\n    \
             bind: {ip}\n    captureMode: NONE\n    defaultEndpoint: 0.0.0.0:{application}"
        );
    }
    document("consumer", &egress) + &document("provider", &ingress)
}
