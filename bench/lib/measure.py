"""The measurements: load in interleaved rounds, memory with idle connections, time to the first answer."""

import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from . import peers

HTTP_CONNECTIONS = 64
RPC_CONNECTIONS = 16
RPC_IN_FLIGHT = 16
IDLE_CONNECTIONS = (1000, 10000)
STARTS = 7


def machine():
    """What the figures were taken on."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu.group(1) if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.group(1)) / 2**20) if memory else 0,
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """Runs the cases with the peers that are on this machine."""

    def __init__(self, programs, folder, chosen, rounds, seconds):
        self.programs = programs
        self.folder = folder
        self.chosen = [name.lower() for name in chosen] if chosen else None
        self.rounds = rounds
        self.seconds = seconds
        self.missing = set()
        cores = sorted(os.sched_getaffinity(0))
        # With a single core nothing can be kept apart.
        self.proxy_core = cores[0] if len(cores) > 1 else None
        self.load_core = cores[1] if len(cores) > 1 else None

    def peers(self, case):
        for name, program, config in peers.CASES[case]:
            if self.chosen is not None and name.lower() not in self.chosen and name != "direct":
                continue
            if program is not None and program not in self.programs:
                if name not in self.missing:
                    say(f"{name}: {program} is not there, left out")
                    self.missing.add(name)
                continue
            yield name, program, config

    # --- load --------------------------------------------------------------------------------

    def load(self, case):
        """Name -> medians over the rounds. Each round starts every proxy anew and then stops it."""
        samples = {}
        broken = set()
        for number in range(self.rounds):
            for name, program, config in self.peers(case):
                if name in broken:
                    continue
                try:
                    sample = self.one_load(case, program, config)
                except peers.Problem as problem:
                    broken.add(name)
                    say(f"{case}: {name} left out: {problem}")
                    continue
                samples.setdefault(name, []).append(sample)
                cost = f"{sample['cpu_us']:.1f} us/request, " if sample["cpu_us"] is not None else ""
                say(f"{case} round {number + 1}/{self.rounds} {name}: {cost}{sample['rps']:.0f} requests/s, "
                    f"p99 {sample['p99_us']:.0f} us, {sample['errors']} errors")
        return {name: medians(taken) for name, taken in samples.items()}

    def one_load(self, case, program, config):
        server, server_port = peers.server(self.programs, case, self.load_core, self.folder)
        with server:
            if program is None:
                self.generate(case, server_port, min(self.seconds, 0.5))
                sample = self.generate(case, server_port, self.seconds)
                return {**sample, "cpu_us": None, "rss_mib": None}
            process, port = peers.proxy(self.programs, program, config, server_port, self.proxy_core, self.folder)
            with process:
                peers.wait_for_port(process, port)
                # Pools are opened and allocators warm before anything counts.
                self.generate(case, port, min(self.seconds, 0.5))
                before = process.cpu_seconds()
                sample = self.generate(case, port, self.seconds)
                process.check()
                cpu = process.cpu_seconds() - before
                if not sample["requests"]:
                    raise peers.Problem("no request was answered")
                if sample["errors"] > sample["requests"] / 100:
                    raise peers.Problem(f"{sample['errors']} errors in {sample['requests']} requests")
                return {**sample, "cpu_us": cpu * 1e6 / sample["requests"], "rss_mib": process.rss_kib() / 1024}

    def generate(self, case, port, seconds):
        pin = ["taskset", "-c", str(self.load_core)] if self.load_core is not None else []
        if case == "http":
            # wrk takes whole seconds only.
            command = [*pin, self.programs["wrk"], "--latency", "-t1", f"-c{HTTP_CONNECTIONS}",
                       f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{port}/"]
            return parse_wrk(run(command))
        command = [*pin, self.programs["loadgen"], "run", "--protocol", case, "--addr", f"127.0.0.1:{port}",
                   "--connections", str(RPC_CONNECTIONS), "--in-flight", str(RPC_IN_FLIGHT),
                   "--seconds", str(seconds)]
        return json.loads(run(command))

    # --- memory ------------------------------------------------------------------------------

    def memory(self):
        """Name -> resident memory idle and with idle HTTP connections after one request on each."""
        results = {}
        for name, program, config in self.peers("http"):
            if program is None or name == "TCP relay":
                continue
            server, server_port = peers.server(self.programs, "http", self.load_core, self.folder)
            with server:
                try:
                    results[name] = self.one_memory(program, config, server_port)
                except peers.Problem as problem:
                    say(f"memory: {name} left out: {problem}")
                    continue
            say(f"memory: {name}: {results[name]}")
        return results

    def one_memory(self, program, config, server_port):
        process, port = peers.proxy(self.programs, program, config, server_port, self.proxy_core, self.folder)
        with process:
            peers.wait_for_port(process, port)
            first_answer(process, port)
            time.sleep(1)
            idle = process.rss_kib()
            result = {"idle_mib": idle / 1024}
            for connections in IDLE_CONNECTIONS:
                command = [self.programs["loadgen"], "hold", "--protocol", "http", "--addr", f"127.0.0.1:{port}",
                           "--connections", str(connections)]
                with peers.Process(command, self.load_core, self.folder / "hold.log") as holder:
                    holder.line()
                    time.sleep(0.5)
                    result[f"kib_per_connection_{connections}"] = (process.rss_kib() - idle) / connections
            return result

    # --- start -------------------------------------------------------------------------------

    def start(self):
        """Name -> milliseconds from starting the program to the first proxied answer."""
        taken = {}
        broken = set()
        server, server_port = peers.server(self.programs, "http", self.load_core, self.folder)
        with server:
            for _ in range(STARTS):
                for name, program, config in self.peers("http"):
                    if program is None or name in ("TCP relay", *broken):
                        continue
                    process, port = peers.proxy(
                        self.programs, program, config, server_port, self.proxy_core, self.folder)
                    with process:
                        try:
                            end = first_answer(process, port)
                        except peers.Problem as problem:
                            broken.add(name)
                            say(f"start: {name} left out: {problem}")
                            continue
                    taken.setdefault(name, []).append((end - process.started) * 1000)
        return {name: {"min_ms": min(times), "median_ms": statistics.median(times)} for name, times in taken.items()}


def first_answer(process, port, seconds=20.0):
    """Asks until there is a 200; returns when that was."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
                stream.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                if b" 200 " in stream.recv(64):
                    return time.monotonic()
        except OSError:
            pass
        process.check()
        time.sleep(0.0005)
    raise peers.Problem(f"{' '.join(process.command)} gives no answer after {seconds:.0f} s")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise peers.Problem(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def parse_wrk(text):
    def micros(name):
        value, unit = re.search(rf"^\s+{name}%\s+([\d.]+)(us|ms|s|m)", text, re.M).groups()
        return float(value) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]

    requests = int(re.search(r"(\d+) requests in", text).group(1))
    errors = 0
    for line in re.findall(r"Socket errors: (.*)", text):
        errors += sum(int(number) for number in re.findall(r"\d+", line))
    for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text):
        errors += int(number)
    return {
        "requests": requests,
        "errors": errors,
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)),
        "p50_us": micros(50),
        "p99_us": micros(99),
    }


def medians(samples):
    result = {}
    for key in ("cpu_us", "rps", "p50_us", "p99_us", "rss_mib"):
        values = [sample[key] for sample in samples]
        result[key] = None if values[0] is None else statistics.median(values)
    result["cpu_us_min"] = None if samples[0]["cpu_us"] is None else min(sample["cpu_us"] for sample in samples)
    result["errors"] = sum(sample["errors"] for sample in samples)
    return result
