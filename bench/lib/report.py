"""The table and the plot of a run."""

from html import escape

BEGIN = "<!-- bench:begin (written by bench/run) -->"
END = "<!-- bench:end -->"

TITLES = {
    "http": "HTTP/1.1, 64 connections, 1 KiB answers",
    "bolt": "Bolt, 16 connections × 16 calls in flight, 1 KiB answers",
    "dubbo": "Dubbo, 16 connections × 16 calls in flight, 1 KiB answers",
}
# (case, peer that mosn is compared with, highest ratio of CPU time per request that is a success)
TARGETS = [("http", "Envoy", 0.30), ("dubbo", "Envoy", 0.25), ("bolt", "TCP relay", 2.0)]
IDLE_RSS_MIB = 15
KIB_PER_CONNECTION = 2
FIRST_ANSWER_MS = 60

PREAMBLE = """# Performance

`make bench` measures the peers side by side in one run and writes this page. The proxy has one worker and one core of
its own; the load and the answering server share the other core. Each peer is started anew in each round, and the rounds of the
peers are interleaved. The figure that counts is the processor time (user + system) of the proxy's process per answered
request: on a machine that is shared with others it is the steadiest one, and only ratios within one run mean anything.
Every proxy runs with its defaults and without access logs (`bench/configs`). "TCP relay" is HAProxy copying bytes without looking
at them: what a proxy cannot get below by being clever about the protocol. "direct" is the load without a proxy.

"""


def number(value, digits=1):
    return "–" if value is None else f"{value:,.{digits}f}"


def markdown(results):
    """The part of the page between the markers."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"Taken on {machine['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, load average {machine['load']:.1f} at the start. {versions}. "
        f"{results['rounds']} rounds of {results['seconds']:g} s.",
        "",
    ]
    for case, peers in results["load"].items():
        lines += [
            f"### {TITLES[case]}",
            "",
            "| peer | CPU µs/request, median | minimum | requests/s | p50 µs | p99 µs | RSS MiB | errors |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, row in peers.items():
            lines.append(
                f"| {name} | {number(row['cpu_us'])} | {number(row['cpu_us_min'])} | {number(row['rps'], 0)} "
                f"| {number(row['p50_us'], 0)} | {number(row['p99_us'], 0)} | {number(row['rss_mib'])} | {row['errors']} |")
        lines.append("")
    if results["memory"] or results["start"]:
        lines += [
            "### Memory and start",
            "",
            "| peer | idle RSS MiB | KiB per idle connection, 1,000 | 10,000 | first answer ms, median | minimum |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for name in dict.fromkeys([*results["memory"], *results["start"]]):
            memory = results["memory"].get(name, {})
            start = results["start"].get(name, {})
            lines.append(
                f"| {name} | {number(memory.get('idle_mib'))} | {number(memory.get('kib_per_connection_1000'), 2)} "
                f"| {number(memory.get('kib_per_connection_10000'), 2)} | {number(start.get('median_ms'))} "
                f"| {number(start.get('min_ms'))} |")
        lines += ["", "An idle connection has made one request; its connection to the server is shared.", ""]
    goals = targets(results)
    if goals:
        lines += ["### Goals", "", "| goal | measured | |", "|---|--:|---|"]
        for goal, measured, reached in goals:
            lines.append(f"| {goal} | {measured} | {'reached' if reached else 'missed'} |")
        lines.append("")
    return "\n".join(lines)


def targets(results):
    """(goal, what was measured, whether it was reached) for every goal that this run can judge."""
    goals = []
    for case, peer, limit in TARGETS:
        rows = results["load"].get(case, {})
        if "mosn" in rows and peer in rows:
            ratio = rows["mosn"]["cpu_us"] / rows[peer]["cpu_us"]
            title = TITLES[case].partition(",")[0]
            goals.append((f"{title}: at most {limit:.2f} × {peer}", f"{ratio:.2f}", ratio <= limit))
    memory = results["memory"].get("mosn")
    if memory:
        goals.append((f"idle RSS at most {IDLE_RSS_MIB} MiB", f"{memory['idle_mib']:.1f}",
                      memory["idle_mib"] <= IDLE_RSS_MIB))
        each = memory["kib_per_connection_10000"]
        goals.append((f"at most {KIB_PER_CONNECTION} KiB per idle connection", f"{each:.2f}", each <= KIB_PER_CONNECTION))
    start = results["start"].get("mosn")
    if start:
        goals.append((f"first answer at most {FIRST_ANSWER_MS} ms after start", f"{start['median_ms']:.1f}",
                      start["median_ms"] <= FIRST_ANSWER_MS))
    return goals


def write_between_markers(path, text, preamble=PREAMBLE + "![CPU time per request](performance.svg)\n\n"):
    """Replaces what the last run wrote and keeps what people wrote around it."""
    page = path.read_text() if path.exists() else preamble + BEGIN + END + "\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


# --- plot ----------------------------------------------------------------------------------------

WIDTH = 760
LABEL = 110
BAR = 22
GAP = 8


def svg(results):
    """Horizontal bars: CPU microseconds per request of each peer, one group a case."""
    parts = []
    y = 34
    for case, peers in results["load"].items():
        rows = [(name, row["cpu_us"]) for name, row in peers.items() if row["cpu_us"] is not None]
        if not rows:
            continue
        longest = max(value for _, value in rows)
        parts.append(f'<text x="16" y="{y}" class="title">{escape(TITLES[case])}</text>')
        y += 14
        for name, value in rows:
            width = max(1, (WIDTH - LABEL - 90) * value / longest)
            kind = "own" if name == "mosn" else "peer"
            middle = y + BAR * 0.7
            parts.append(f'<text x="{LABEL - 8}" y="{middle:.0f}" class="name">{escape(name)}</text>')
            parts.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" class="{kind}"/>')
            parts.append(f'<text x="{LABEL + width + 6:.1f}" y="{middle:.0f}">{value:.1f} µs</text>')
            y += BAR + GAP
        y += 26
    body = "\n  ".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="CPU time of the proxy per request">
  <style>
    text {{ font: 13px sans-serif; fill: #333; }}
    .title {{ font-weight: bold; }}
    .name {{ text-anchor: end; }}
    .own {{ fill: #1668dc; }}
    .peer {{ fill: #b5bfcc; }}
  </style>
  <rect width="100%" height="100%" fill="#fff"/>
  {body}
</svg>
"""
