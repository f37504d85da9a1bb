"""The registry's measurements: pilot is started anew for each case, and asked and loaded from other processes."""

import json
import os
import socket
import time
import urllib.request
from pathlib import Path

from . import peers
from .measure import run, say

JAVA = Path(__file__).resolve().parent.parent / "java"
# Goals; what a shared machine does not reach is said to be missed.
REGISTRATIONS_PER_SECOND = 20_000
RSS_MIB = 600
CHANGE_P99_MS = 50
ACK_P99_MS = 20

PREAMBLE = """# Performance of the registry

`make bench-registry` measures pilot's registry and writes this page. Pilot is the program as it is shipped, with the store on
disk; the load comes from other processes on the same machine over gRPC. Instances are as Dubbo registers them: version, group,
six pairs of metadata. Sizes and times can be changed: BENCH_INSTANCES, BENCH_SERVICES, BENCH_WATCHERS, BENCH_RATE,
BENCH_PROVIDERS, BENCH_SECONDS.

"""


def find_programs(target):
    """Name -> path of every program that is there."""
    found = {}
    for name in ("pilot", "mosn", "registryload"):
        path = target / "release" / name
        if not path.exists():
            raise peers.Problem(f"{path} is not there; run `make bench-registry`, which builds it")
        found[name] = str(path)
    found["apps"] = target / "apps"
    cache = Path(os.environ.get("MESH_PEERS") or Path.home() / ".cache/sofamesh-peers")
    if (cache / "bin" / "rnacos").exists():
        found["rnacos"] = str(cache / "bin" / "rnacos")
    return found


class Pilot(peers.Process):
    """A pilot on ports of its own, with everything below a folder."""

    def __init__(self, program, folder, *more):
        folder.mkdir(parents=True, exist_ok=True)
        self.grpc, self.http = peers.free_port(), peers.free_port()
        command = [program, "discovery", "--grpcAddr", f"127.0.0.1:{self.grpc}", "--httpAddr", f"127.0.0.1:{self.http}",
                   "--monitoringAddr", f"127.0.0.1:{peers.free_port()}", "--log_output_level", "warning", *more]
        super().__init__(command, None, folder / "pilot.log")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=60) as answer:
            return answer.read()

    def wait_ready(self, seconds=120.0):
        """Seconds since it was started."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.get("/ready")
                return time.monotonic() - self.started
            except OSError:
                self.check()
                if time.monotonic() > deadline:
                    raise peers.Problem(f"pilot is not ready after {seconds:.0f} s") from None
                time.sleep(0.005)

    def settled_rss_mib(self):
        """Resident memory when it has not grown or shrunk for a second."""
        last, since = self.rss_kib(), time.monotonic()
        while time.monotonic() - since < 1:
            time.sleep(0.1)
            now = self.rss_kib()
            if abs(now - last) > 512:
                last, since = now, time.monotonic()
        return last / 1024


class Bench:
    """Runs the cases."""

    def __init__(self, programs, folder, options):
        self.programs = programs
        self.folder = folder
        self.options = options

    def load(self, pilot, *arguments):
        command = [self.programs["registryload"], "--addr", f"127.0.0.1:{pilot.grpc}",
                   "--services", str(self.options.services), *arguments]
        return json.loads(run(command))

    def store(self):
        """A registry on disk is filled, and then started again on what it has."""
        folder = self.folder / "store"
        data = str(folder / "data")
        with Pilot(self.programs["pilot"], folder, "--registryDir", data) as pilot:
            pilot.wait_ready()
            empty = pilot.settled_rss_mib()
            result = self.load(pilot, "fill", "--instances", str(self.options.instances))
            result["cpu_us"] = pilot.cpu_seconds() * 1e6 / self.options.instances
            result["empty_mib"] = empty
            result["rss_mib"] = pilot.settled_rss_mib()
            pilot.check()
            status = json.loads(pilot.get("/v1/status"))
            if status["instances"] != self.options.instances:
                raise peers.Problem(f"pilot has {status['instances']} instances")
            result["services"] = status["services"]
        result["file_mib"] = sum(path.stat().st_size for path in Path(data).rglob("*.redb")) / 2**20
        with Pilot(self.programs["pilot"], folder, "--registryDir", data) as pilot:
            result["start_seconds"] = pilot.wait_ready()
            result["start_rss_mib"] = pilot.settled_rss_mib()
        say(f"store: {result}")
        return result

    def watchers(self):
        """Watches of single services over a few connections, and changes at a fixed rate."""
        folder = self.folder / "watchers"
        with Pilot(self.programs["pilot"], folder, "--registryDir", str(folder / "data")) as pilot:
            pilot.wait_ready()
            before = pilot.settled_rss_mib()
            cpu = pilot.cpu_seconds()
            result = self.load(pilot, "watch", "--watchers", str(self.options.watchers), "--rate", str(self.options.rate),
                               "--seconds", str(self.options.seconds))
            result["cpu_seconds"] = pilot.cpu_seconds() - cpu
            result["rss_mib"] = pilot.rss_kib() / 1024
            result["empty_mib"] = before
        say(f"watchers: {result}")
        return result

    def zookeeper(self):
        """All of Dubbo's providers in a ZooKeeper, read by the stock Java client and by pilot."""
        folder = self.folder / "zookeeper"
        folder.mkdir()
        port = peers.free_port()
        config = folder / "zoo.cfg"
        config.write_text(f"tickTime=2000\nclientPort={port}\nclientPortAddress=127.0.0.1\ndataDir={folder / 'data'}\n"
                          "admin.enableServer=false\nmaxClientCnxns=0\n")
        classes = folder / "classes"
        libraries = f"{self.programs['apps']}/dubbo/lib/*"
        compile_java(classes, libraries, "ZooKeeperProviders.java")
        java = ["java", "-XX:+UseSerialGC", "-cp", f"{classes}:{libraries}", "ZooKeeperProviders"]
        address = f"127.0.0.1:{port}"
        services = max(1, self.options.providers // 20)
        server = ["java", "-Xmx1g", "-cp", "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar",
                  "org.apache.zookeeper.server.ZooKeeperServerMain", str(config)]
        with peers.Process(server, None, folder / "server.log") as zookeeper:
            peers.wait_for_port(zookeeper, port, 60)
            run([*java, "write", address, str(services), str(self.options.providers)])
            started = time.monotonic()
            client = json.loads(run([*java, "read", address]))
            client["seconds_of_process"] = time.monotonic() - started - 0.5
            ours = self.read_source(folder, "zookeeper", f"servers: ['{address}']")
        result = {"java": client, "pilot": ours}
        say(f"zookeeper: {result}")
        return result

    def nacos(self):
        """The same in a Nacos; None without the server, which `make peers` builds."""
        if "rnacos" not in self.programs:
            say("nacos: left out; `make peers` builds the server")
            return None
        folder = self.folder / "nacos"
        folder.mkdir()
        port = free_nacos_port()
        classes = folder / "classes"
        libraries = f"{self.programs['apps']}/nacos/lib/*"
        compile_java(classes, libraries, "NacosProviders.java")
        java = ["java", "-XX:+UseSerialGC", f"-Duser.home={folder}", f"-DJM.LOG.PATH={folder}", "-cp",
                f"{classes}:{libraries}", "NacosProviders"]
        address = f"127.0.0.1:{port}"
        services = max(1, self.options.providers // 20)
        settings = {"RNACOS_SDK_HOST": "127.0.0.1", "RNACOS_HTTP_PORT": str(port), "RNACOS_GRPC_PORT": str(port + 1000),
                    "RNACOS_HTTP_CONSOLE_PORT": str(peers.free_port()), "RNACOS_RAFT_NODE_ADDR": f"127.0.0.1:{port + 1000}",
                    "RNACOS_DATA_DIR": str(folder / "data"), "RUST_LOG": "warn"}
        server = ["env", "-C", str(folder), *(f"{name}={value}" for name, value in settings.items()), self.programs["rnacos"]]
        with peers.Process(server, None, folder / "server.log") as nacos:
            peers.wait_for_port(nacos, port, 60)
            peers.wait_for_port(nacos, port + 1000, 60)
            with peers.Process([*java, "write", address, str(services), str(self.options.providers)], None,
                               folder / "writer.log") as writer:
                said(writer, "WRITTEN")
                with peers.Process([*java, "read", address], None, folder / "reader.log") as reader:
                    client = json.loads(said(reader, "{"))
                    client["seconds_of_process"] = time.monotonic() - reader.started - 0.5
                    client["cpu_seconds"] = reader.cpu_seconds()
                ours = self.read_source(folder, "nacos", f"servers: ['{address}']")
        result = {"java": client, "pilot": ours}
        say(f"nacos: {result}")
        return result

    def read_source(self, folder, kind, fields):
        """Pilot reads a registry: seconds since its start, and its memory then."""
        config = folder / f"config-{kind}"
        config.mkdir()
        (config / "source.yaml").write_text(
            "apiVersion: mesh.sofastack.io/v1alpha1\nkind: RegistrySource\n"
            f"metadata: {{name: bench}}\nspec:\n  {kind}:\n    {fields}\n")
        with Pilot(self.programs["pilot"], folder, "--configDir", str(config)) as pilot:
            deadline = time.monotonic() + 120
            while True:
                pilot.check()
                seconds = time.monotonic() - pilot.started
                sources = self.sources(pilot)
                if any(source["instances"] == self.options.providers for source in sources):
                    break
                if time.monotonic() > deadline:
                    raise peers.Problem(f"pilot has read {sources}")
                time.sleep(0.01)
            return {"instances": self.options.providers, "seconds": seconds, "rss_mib": pilot.settled_rss_mib(),
                    "cpu_seconds": pilot.cpu_seconds()}

    @staticmethod
    def sources(pilot):
        try:
            return json.loads(pilot.get("/debug/registries")).get("sources", [])
        except OSError:
            return []

    def acks(self):
        """From a watcher's notification to a proxy's acknowledgement."""
        folder = self.folder / "acks"
        with Pilot(self.programs["pilot"], folder, "--registryDir", str(folder / "data")) as pilot:
            pilot.wait_ready()
            command = [self.programs["registryload"], "--addr", f"127.0.0.1:{pilot.grpc}", "acks"]
            with peers.Process(command, None, folder / "load.log") as load:
                relay = int(load.line().rpartition(":")[2])
                admin = peers.free_port()
                bootstrap = folder / "mosn.json"
                bootstrap.write_text(json.dumps(sidecar(relay, admin)))
                mosn = [self.programs["mosn"], "-c", str(bootstrap), "--concurrency", "1", "--log-level", "error"]
                with peers.Process(mosn, None, folder / "mosn.log") as proxy:
                    wait_for_cluster(proxy, admin, "bench-acks")
                    load.child.stdin.write(b"go\n")
                    load.child.stdin.flush()
                    result = json.loads(load.line())
        say(f"acks: {result}")
        return result


def compile_java(classes, libraries, file):
    run(["javac", "-d", str(classes), "-cp", libraries, "-sourcepath", str(JAVA), str(JAVA / file)])


def free_nacos_port():
    """A port; that which is 1000 higher, where clients expect gRPC, is free, too."""
    while True:
        port = peers.free_port()
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port + 1000))
                return port
        except (OSError, OverflowError):
            continue


def said(process, start):
    """The first line of its output that begins so; libraries print others."""
    while not (line := process.line()).startswith(start):
        pass
    return line


def wait_for_cluster(proxy, admin, name):
    deadline = time.monotonic() + 30
    while True:
        proxy.check()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=5) as answer:
                if name in answer.read().decode():
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise peers.Problem(f"mosn has no cluster of {name}")
        time.sleep(0.05)


def sidecar(pilot_port, admin_port):
    """The bootstrap of a sidecar that has its configuration from pilot."""
    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    http2 = {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
             "explicit_http_config": {"http2_protocol_options": {}}}
    endpoint = {"endpoint": {"address": address(pilot_port)}}
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": "sidecar~127.0.0.1~bench.demo~demo.svc.cluster.local", "cluster": "bench.demo",
                 "metadata": {"NAMESPACE": "demo", "INSTANCE_IPS": "127.0.0.1", "INTERCEPTION_MODE": "NONE"}},
        "admin": {"address": address(admin_port)},
        "dynamic_resources": {
            "ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
                           "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
            "lds_config": ads, "cds_config": ads},
        "static_resources": {"clusters": [{
            "name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [endpoint]}]}}]},
    }


# --- the table ---------------------------------------------------------------------------------------

def markdown(results):
    """The part of the page between the markers."""
    machine = results["machine"]
    rows = []

    def goal(text, measured, reached):
        rows.append(f"| {text} | {measured} | {'reached' if reached else 'missed'} |")

    details = []
    if store := results.get("store"):
        goal(f"at least {REGISTRATIONS_PER_SECOND:,} acknowledged registrations/s, in batches of 1,000, on disk",
             f"{store['rate']:,.0f}/s", store["rate"] >= REGISTRATIONS_PER_SECOND)
        goal(f"{store['instances']:,} instances of {store['services']:,} services in at most {RSS_MIB} MiB",
             f"{store['rss_mib']:.0f} MiB", store["rss_mib"] <= RSS_MIB)
        details.append(
            f"Store: a call of 1,000 registrations takes {store['call_p50_ms']:.0f} ms (median; p99 {store['call_p99_ms']:.0f}) with "
            f"4 at a time; {store['cpu_us']:.1f} µs of pilot's processor time a registration; {store['empty_mib']:.0f} MiB "
            f"before the first; the file has {store['file_mib']:.0f} MiB. Started again with all of them pilot is ready after "
            f"{store['start_seconds']:.1f} s and has {store['start_rss_mib']:.0f} MiB.")
    if watchers := results.get("watchers"):
        goal(f"{watchers['watchers']:,} watchers, {watchers['rate']:,} changes/s: change to watcher p99 at most {CHANGE_P99_MS} ms",
             f"{watchers['p99_ms']:.1f} ms",
             watchers["p99_ms"] <= CHANGE_P99_MS and watchers["delivered"] == watchers["expected"])
        details.append(
            f"Watchers: {watchers['changes']:,} changes, each durable and told to ten watchers, {watchers['delivered']:,} of "
            f"{watchers['expected']:,} deliveries over {watchers['connections']} connections; from the time at which the change "
            f"was due to the watcher: median {watchers['p50_ms']:.1f} ms, p99 {watchers['p99_ms']:.1f}, longest "
            f"{watchers['max_ms']:.0f}. Pilot used {watchers['cpu_seconds']:.1f} s of processor time and has "
            f"{watchers['rss_mib']:.0f} MiB.")
    for name, title, how in (
            ("zookeeper", "ZooKeeper", " with Dubbo's URL parser, all requests under way at once"),
            ("nacos", "Nacos", ", which subscribes from 16 threads")):
        if both := results.get(name):
            java, ours = both["java"], both["pilot"]
            goal(f"{ours['instances']:,} instances read from {title} in less time than the Java client",
                 f"{ours['seconds']:.2f} s : {java['seconds_of_process']:.2f} s", ours["seconds"] < java["seconds_of_process"])
            goal(f"… and in less memory", f"{ours['rss_mib']:.0f} MiB : {java['rss_mib']:.0f} MiB",
                 ours["rss_mib"] < java["rss_mib"])
            details.append(
                f"{title}: {java['services']:,} interfaces in Dubbo's layout. The Java client is the stock one{how}; "
                f"{java['seconds']:.2f} s of its time without the start of the JVM. "
                f"Pilot does more meanwhile: it merges, checks and makes mesh services of them.")
    if acks := results.get("acks"):
        goal(f"registry change to xDS ACK by mosn: p99 at most {ACK_P99_MS} ms above the registry's own notification",
             f"{acks['above_p99_ms']:.1f} ms", acks["above_p99_ms"] <= ACK_P99_MS)
        details.append(
            f"ACK: {acks['changes']} changes; the registry's watcher hears of one after {acks['notified_p50_ms']:.1f} ms (median; "
            f"p99 {acks['notified_p99_ms']:.1f}), mosn has acknowledged it {acks['above_p50_ms']:.1f} ms later (median; p99 "
            f"{acks['above_p99_ms']:.1f}, longest {acks['above_max_ms']:.1f}).")
    lines = [
        f"Taken on {machine['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load average {machine['load']:.1f} at the start.",
        "",
        "| goal | measured | |",
        "|---|--:|---|",
        *rows,
        "",
    ]
    for detail in details:
        lines += [detail, ""]
    return "\n".join(lines)
