"""The proxies that are measured: where their programs are, and how each is started."""

import os
import re
import shutil
import signal
import socket
import string
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
CONFIGS = Path(__file__).resolve().parent.parent / "configs"

# case -> peers in the order of the table: (name, program, configuration file).
CASES = {
    "http": [
        ("direct", None, None),
        ("mosn", "mosn", "http.envoy.yaml"),
        ("Envoy", "envoy", "http.envoy.yaml"),
        ("nginx", "nginx", "http.nginx.conf"),
        ("HAProxy", "haproxy", "http.haproxy.cfg"),
        ("TCP relay", "haproxy", "tcp.haproxy.cfg"),
    ],
    "bolt": [
        ("direct", None, None),
        ("mosn", "mosn", "rpc.mosn.yaml"),
        ("TCP relay", "haproxy", "tcp.haproxy.cfg"),
    ],
    "dubbo": [
        ("direct", None, None),
        ("mosn", "mosn", "rpc.mosn.yaml"),
        ("Envoy", "envoy", "dubbo.envoy.yaml"),
        ("TCP relay", "haproxy", "tcp.haproxy.cfg"),
    ],
}


class Problem(Exception):
    """Something that the one who started the bench has to change."""


def find_programs(target):
    """Name -> path of every program that is there; loadgen and wrk have to be."""
    found = {}
    for name in ("mosn", "loadgen"):
        path = target / "release" / name
        if path.exists():
            found[name] = str(path)
    for name in ("envoy", "haproxy", "nginx", "wrk"):
        path = target / "tools" / "bin" / name
        path = str(path) if path.exists() else shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin")
        if path:
            found[name] = path
    for name in ("loadgen", "wrk"):
        if name not in found:
            raise Problem(f"{name} is not there; run `make bench`, which installs and builds what is needed")
    return found


def versions(programs):
    """What each measured program says of its version."""
    said = {}
    for name, arguments in (("envoy", ["--version"]), ("haproxy", ["-v"]), ("nginx", ["-v"]), ("mosn", ["--version"])):
        if name in programs:
            run = subprocess.run([programs[name], *arguments], capture_output=True, text=True, check=False)
            number = re.search(r"\d+\.\d+\.\d+", run.stdout + run.stderr)
            said[name] = number.group(0) if number else "?"
    return said


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A program on one core that is stopped when the block ends."""

    def __init__(self, command, core, log):
        self.command = command
        pinned = ["taskset", "-c", str(core), *command] if core is not None else command
        self.log = open(log, "wb")
        self.started = time.monotonic()
        # taskset replaces itself by the program, so the process id is the program's.
        self.child = subprocess.Popen(pinned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()
        self.log.close()

    def line(self):
        """The next line of its standard output."""
        text = self.child.stdout.readline().decode().strip()
        if not text:
            raise Problem(f"{' '.join(self.command)} ended: {Path(self.log.name).read_text(errors='replace')[-2000:]}")
        return text

    def check(self):
        if self.child.poll() is not None:
            raise Problem(f"{' '.join(self.command)} ended: {Path(self.log.name).read_text(errors='replace')[-2000:]}")

    def cpu_seconds(self):
        """User and system time so far of the process, all threads."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_kib(self):
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0


def server(programs, case, core, folder):
    """The answering server; returns its process and port."""
    process = Process([programs["loadgen"], "serve", "--protocol", case], core, folder / f"server-{case}.log")
    return process, int(process.line().rpartition(":")[2])


def proxy(programs, program, config, server_port, core, folder):
    """Starts a proxy before the server and returns its process and port; it may not listen yet."""
    port = free_port()
    home = folder / f"{program}-{port}"
    home.mkdir()
    text = string.Template((CONFIGS / config).read_text())
    path = home / config
    path.write_text(text.substitute(proxy_port=port, server_port=server_port, dir=home))
    path = str(path)
    command = {
        "mosn": ["-c", path, "--concurrency", "1", "--log-level", "error"],
        "envoy": ["-c", path, "--concurrency", "1", "-l", "error", "--disable-hot-restart"],
        "haproxy": ["-db", "-q", "-f", path],
        "nginx": ["-p", str(home), "-c", path, "-e", "stderr"],
    }[program]
    return Process([programs[program], *command], core, home / "log"), port


def wait_for_port(process, port, seconds=20.0):
    """Until something accepts connections on the port."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            process.check()
            if time.monotonic() > deadline:
                raise Problem(f"{' '.join(process.command)} does not listen after {seconds:.0f} s") from None
            time.sleep(0.01)
