"""What protection costs: SPNN beside the same network pooled in PyTorch and split over plain gRPC, in one run.

usage: python3 benches/speed.py [--epochs N] [--rounds R] [--shape fraud|distress] [--out docs/speed.md] [--profile]

The systems take turns, round after round, each round beginning with the next one, so that whatever else the machine
does hits all of them alike; a ratio is taken only between runs of the same round. README.md says how to read the
result.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT.parent / "shared" / "peers"
SPNN = ROOT / "target" / "release" / "spnn"
WORK = ROOT / "target" / "speed"
BUILD = "cargo build --release"

# As many epochs as plain_torch.py runs, which cannot be told otherwise: a minimum over more epochs is a lower minimum.
EPOCHS = {"fraud": 6, "distress": 40}
# About 6 seconds of work each, against which reading the files is small.
PROFILE_EPOCHS = {"fraud": 100, "distress": 300}
TIMEOUT_S = 900
TORCH = "PyTorch, pooled"


class Failed(Exception):
    """Why a system gave no figures."""


@dataclass
class Run:
    """One system, one shape, one round. `wall` and `cpu`: (fastest, median) seconds of an epoch, the first left out."""

    wall: tuple
    cpu: tuple
    sent: float | None = None  # bytes of messages in an epoch
    wire: float | None = None  # bytes of packets in an epoch
    rss: int | None = None  # sum over the processes
    version: str = ""
    report: dict | None = None


def main():
    args = arguments()
    if not SPNN.exists():
        sys.exit(f"error: there is no {SPNN.relative_to(ROOT)}\nhint: {BUILD}")
    binary = SPNN.stat().st_mtime_ns
    WORK.mkdir(parents=True, exist_ok=True)
    loads = [os.getloadavg()[0]]
    page = []
    versions = {"spnn": said([str(SPNN), "--version"]).removeprefix("spnn ")}
    for shape in [args.shape] if args.shape else list(EPOCHS):
        epochs = args.epochs or EPOCHS[shape]
        page += [f"\n## {title(shape)}\n"]
        try:
            page += [write_data(shape)]
            runs, notes = measure(shape, epochs, args.rounds, loads)
            versions |= {"PyTorch": r.version for r in runs[TORCH] if r}
            page += tables(runs, notes, epochs, EPOCHS[shape])
            if args.profile:
                page += profile(shape)
        except Failed as why:
            page += [note(f"{why}")]
    if SPNN.stat().st_mtime_ns != binary:
        page = ["", note("**spnn was rebuilt during this run: its rounds are not of one binary.**"), *page]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(head(args, versions, loads) + page) + "\n")
    print(f"written: {args.out}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, help="of spnn and gRPC; PyTorch's are fixed (default: as PyTorch's)")
    parser.add_argument("--rounds", type=int, default=3, help="how often every system runs (default: 3)")
    parser.add_argument("--shape", choices=EPOCHS, help="only this one")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "speed.md", help="default: docs/speed.md")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes; needs perf")
    args = parser.parse_args()
    if args.rounds < 1 or (args.epochs is not None and args.epochs < 2):
        parser.error("at least one round, and two epochs, of which the first is not counted")
    return args


# The systems and their turns.

SYSTEMS = {
    TORCH: lambda shape, epochs: torch(shape),
    "gRPC split, unprotected": lambda shape, epochs: grpc(shape, epochs),
    "spnn pooled": lambda shape, epochs: pooled(shape, epochs),
    "spnn, plain": lambda shape, epochs: simulate(shape, epochs, "--first-layer", "plain"),
    "spnn, sharing, ring 64": lambda shape, epochs: simulate(shape, epochs, "--first-layer", "sharing"),
    "spnn, sharing, ring 32": lambda shape, epochs: simulate(
        shape, epochs, "--first-layer", "sharing", "--ring-bits", "32"
    ),
}


def measure(shape, epochs, rounds, loads):
    """Every system in every round: its `Run`, or None and a note that says why."""
    runs = {name: [] for name in SYSTEMS}
    notes = {}
    for r in range(rounds):
        names = list(SYSTEMS)
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            try:
                run = SYSTEMS[name](shape, epochs)
                say = f"{run.wall[0]:.4g} s, {run.cpu[0]:.4g} s of processor"
            except Failed as why:
                run, say = None, str(why)
                notes.setdefault(f"{name}: {why}", []).append(str(r + 1))
            runs[name].append(run)
            loads.append(os.getloadavg()[0])
            print(f"{shape} round {r + 1}/{rounds}  {name}: {say}", flush=True)
    return runs, [f"{text} (round {', '.join(rounds)})" for text, rounds in notes.items()]


def torch(shape):
    need("torch", "numpy")
    got, rss = peer("plain_torch.py", shape, "1")
    version = f"{got['torch']}, {got['threads']} thread"
    return Run(spread_of(got["wall"]), spread_of(got["cpu"]), rss=rss, version=version)


def grpc(shape, epochs):
    need("torch", "numpy", "grpcio")
    try:
        got, rss = peer("split_grpc.py", shape, str(epochs))
    except Failed as why:
        raise Failed(f"{why} (it needs root, for `unshare -n`)") from why
    return Run(spread_of(got["wall"]), spread_of(got["cpu"]), wire=got["bytes_epoch"], rss=rss)


def peer(script, *args):
    output, rss = run([sys.executable, str(PEERS / script), *args])
    return json.loads(output.strip().splitlines()[-1]), rss


def spread_of(summary):
    return summary["min"], summary["median"]


def need(*packages):
    """The peers and their packages are optional, but never left out without a word."""
    if not PEERS.is_dir():
        raise Failed("skipped: there is no ../shared/peers")
    modules = {"grpcio": "grpc"}
    missing = [p for p in packages if importlib.util.find_spec(modules.get(p, p)) is None]
    if missing:
        raise Failed(f"skipped: this Python has no {' and no '.join(missing)}")


def pooled(shape, epochs):
    command = [str(SPNN), "--log", "warn", "pooled", session(shape), "--epochs", str(epochs), "--json"]
    output, rss = run(command)
    counted = json.loads(output.strip().splitlines()[-1])["epochs"][1:]
    return Run(*(spread([e[k] for e in counted]) for k in ("seconds", "cpu_seconds")), rss=rss)


def simulate(shape, epochs, *options):
    directory = Path(tempfile.mkdtemp(dir=WORK, prefix="run-"))
    try:
        run(simulation(shape, epochs, directory, *options))
        report = json.loads((directory / "report.json").read_text())
    finally:
        shutil.rmtree(directory)  # it holds keys
    counted = report["epochs"][1:]
    return Run(
        wall=spread([e["seconds"] for e in counted]),
        cpu=spread([sum(e["cpu_seconds"].values()) for e in counted]),
        # Over all epochs: packets of one epoch may leave in the next.
        sent=over(report, "bytes_sent") / epochs,
        wire=over(report, "wire_bytes_sent") / epochs,
        rss=sum(report["peak_rss_bytes"].values()),
        report=report,
    )


def simulation(shape, epochs, directory, *options):
    command = [str(SPNN), "--log", "warn", "simulate", session(shape), "--run-dir", str(directory)]
    return command + ["--epochs", str(epochs), *options]


def session(shape):
    return str(ROOT / "benches" / "sessions" / f"{shape}_shape.toml")


def spread(values):
    return min(values), statistics.median(values)


def over(report, field):
    return sum(sum(epoch[field].values()) for epoch in report["epochs"])


def write_data(shape):
    """Writes the rows the peers train on to where the session files look. %.9g brings a float32 back exactly."""
    file = WORK / f"{shape}.csv"
    try:
        need("numpy")
    except Failed as why:
        if file.exists():
            return note(f"{why}, so the rows are those of an earlier run.")
        raise Failed(f"{why}, which makes the rows that everything here trains on") from why
    import numpy

    sys.path.insert(0, str(PEERS))
    from common import data

    x, y = data(shape)
    header = ",".join(["y"] + [f"x{i}" for i in range(x.shape[1])])
    partial = file.with_suffix(f".{os.getpid()}")
    numpy.savetxt(partial, numpy.hstack([y, x]), fmt="%.9g", delimiter=",", header=header, comments="")
    os.replace(partial, file)
    return f"The rows are synthetic, of the peers' own making (`common.data`), the same for every system: {len(x):,}."


# Processes.


def run(command):
    """Standard output of a command, and the peak memory of its processes together."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)
        except OSError as why:
            raise Failed(f"failed: {why}") from why
        started, peaks = time.monotonic(), {}
        busy_before, own_before = busy_seconds(), own_seconds()
        try:
            while process.poll() is None:
                look(process.pid, peaks)
                elapsed = time.monotonic() - started
                if elapsed > TIMEOUT_S:
                    raise Failed(f"failed: not done after {TIMEOUT_S} s")
                time.sleep(min(0.1, 0.005 + elapsed / 10))  # a short run is not missed, a long one not disturbed
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the session of its own that was just started
                process.wait()
        busy, own = busy_seconds() - busy_before, own_seconds() - own_before
        OTHERS.append(max(0.0, busy - own) / ((time.monotonic() - started) * os.cpu_count()))
        if process.returncode != 0:
            err.seek(0)
            tail = " / ".join(err.read().strip().splitlines()[-2:])
            raise Failed(f"failed with {process.returncode}: {tail}".replace(str(ROOT.parent), ".."))
        out.seek(0)
        return out.read(), sum(peaks.values()) or None


def look(pid, peaks):
    """Notes the peak memory so far of a process and of those below it.

    From /proc, because the maximum that `wait` gives survives exec and would count this process's memory.
    """
    proc = Path("/proc") / str(pid)
    try:
        if b"plain_torch.py" in (proc / "cmdline").read_bytes() and peaks and pid not in peaks:
            return  # split_grpc.py measures PyTorch before and after itself
        peak = re.search(r"VmHWM:\s+(\d+) kB", (proc / "status").read_text())
        children = (proc / "task" / str(pid) / "children").read_text().split()
    except OSError:
        return  # ended meanwhile, or no such /proc: then there is no figure
    if peak:
        peaks[pid] = int(peak[1]) * 1024
    for child in children:
        look(int(child), peaks)


# Share of all cores' time that something else had during each command: what makes figures larger than they are.
OTHERS = []


def busy_seconds():
    """Of all cores, for anyone, the hypervisor's other guests included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def others():
    if not OTHERS:
        return "Nothing was run."
    usual, most = statistics.median(OTHERS), max(OTHERS)
    text = f"Others had {usual:.0%} of the cores' time (median over the runs; {most:.0%} at most)."
    # A tenth of two cores is a fifth of the one that a run with one thread has.
    return text + " **Too busy a machine to quote these times.**" * (usual > 0.1)


def said(command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# The page.


def head(args, versions, loads):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = said(["git", "describe", "--always", "--dirty", "--tags"])
    versions["spnn"] += f" ({f'working tree {commit}, ' if commit else ''}built {date(SPNN.stat().st_mtime)})"
    if newer := [f for f in sources() if f.stat().st_mtime > SPNN.stat().st_mtime]:
        versions["spnn"] += f", **older than {len(newer)} of its source files** (`{BUILD}` makes it new)"
    versions.setdefault("PyTorch", "none")
    if importlib.util.find_spec("grpc"):
        versions["grpcio"] = importlib.metadata.version("grpcio")
    versions["Python"] = platform.python_version()
    command = shlex.join(["python3", "benches/speed.py", *sys.argv[1:]])
    readme = os.path.relpath(ROOT / "benches" / "README.md", args.out.resolve().parent)
    return [
        "# Speed",
        "",
        f"Made by `{command}` on {date(time.time())}, everything below in that one run;",
        f"[benches/README.md]({readme}) says what is measured and how to read it.",
        "",
        f"- Machine: {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {platform.system()},"
        " all roles on it, over loopback.",
        f"- Load average (1 minute): {loads[0]:.2f} before, {max(loads):.2f} at most, the systems themselves included.",
        f"- {others()}",
        f"- {'; '.join(f'{k} {v}' for k, v in versions.items())}.",
        f"- {args.rounds} round{'s'[: args.rounds > 1]}; the first epoch of every run is left out of the times.",
    ]


def date(seconds):
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def sources():
    files = [f for d in ("src", "crates") for f in (ROOT / d).rglob("*.rs") if "tests" not in f.parts]
    return files + [ROOT / "Cargo.toml", ROOT / "Cargo.lock"]


def title(shape):
    return {
        "fraud": "Fraud: 14 + 14 columns, 28 → 8 → 8 → 1, batch 5,000",
        "distress": "Distress: 42 + 41 columns, 83 → 400 → 16 → 8 → 1, batch 1,024",
    }[shape]


def tables(runs, notes, epochs, torch_epochs):
    page = ["", "SGD, learning rate 0.1, sigmoid. " + counted(epochs, torch_epochs), ""]
    page += costs(runs)
    page += ["", "Packets are UDP payload for spnn; for gRPC all on loopback, TCP and IP headers included."]
    page += ["", "Fastest epoch of each round, wall seconds:", ""] + by_round(runs)
    page += ["", "Bytes per training row and party, against the formula:", ""] + bytes_table(runs)
    return page + [""] * bool(notes) + [note(n) for n in notes]


def counted(epochs, torch_epochs):
    text = f"{epochs} epochs a run."
    if epochs != torch_epochs:
        text += f" **PyTorch's own run has {torch_epochs}: minima over unequal numbers of epochs do not compare well.**"
    return text


def costs(runs):
    rows = []
    for name, all_runs in runs.items():
        done = [r for r in all_runs if r]
        if not done:
            rows.append([name] + ["–"] * 9)
            continue
        row = [name]
        for of in (lambda r: r.wall, lambda r: r.cpu):
            row += [f"{min(of(r)[0] for r in done):.3g}", f"{statistics.median(of(r)[1] for r in done):.3g}"]
            pairs = [of(r)[0] / of(t)[0] for r, t in zip(all_runs, runs[TORCH]) if r and t]
            row.append(ratio(pairs))
        row += [size(middle(r.sent for r in done)), size(middle(r.wire for r in done))]
        rows.append(row + [size(middle(r.rss for r in done))])
    header = ["system", "wall s/epoch: min", "median", "× PyTorch", "CPU s/epoch: min", "median", "× PyTorch"]
    return table(header + ["sent/epoch", "packets/epoch", "peak memory"], rows)


def ratio(pairs):
    if not pairs:
        return "–"
    text = f"**{statistics.median(pairs):.2f}**"
    return text if min(pairs) == max(pairs) else f"{text} ({min(pairs):.2f}–{max(pairs):.2f})"


def by_round(runs):
    rounds = len(runs[TORCH])
    rows = [[name] + [f"{r.wall[0]:.3g}" if r else "–" for r in all_runs] for name, all_runs in runs.items()]
    return table(["system"] + [f"round {i + 1}" for i in range(rounds)], rows)


def bytes_table(runs):
    """Parties send 8·h bytes a row (4·h in the small ring or in the clear) and receive 4·h; the rest is headers."""
    rows = []
    for name, all_runs in runs.items():
        reports = [r.report for r in all_runs if r and r.report]
        if not reports:
            continue
        report = reports[-1]
        h, parties = report["hidden_width"], report["parties"]
        row_parties = report["rows"]["train"] * len(report["epochs"]) * parties
        by_kind = [epoch["bytes_sent_by_kind"] for epoch in report["epochs"]]
        up = sum(kinds.get("first-layer", 0) for e in by_kind for role, kinds in e.items() if role != "server")
        down = sum(e["server"].get("first-layer-gradient", 0) for e in by_kind)
        width = 8 if report["first_layer"] == "sharing" and report["ring_bits"] == 64 else 4
        sent, wire = over(report, "bytes_sent"), over(report, "wire_bytes_sent")
        row = [name] + against(width, h, up / row_parties) + against(4, h, down / row_parties)
        rows.append(row + [f"{100 * (wire / sent - 1):+.2f} %"])
    header = ["system", "up: formula", "measured", "down: formula", "measured", "UDP over messages"]
    return table(header, rows) if rows else ["–"]


def against(width, h, measured):
    expected = width * h
    # Headers are 40 bytes a message or less: next to nothing per row.
    verdict = "" if expected <= measured <= expected * 1.01 else ": **differs**"
    return [f"{width}·{h} = {expected:,}", f"{measured:,.2f}{verdict}"]


def middle(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def size(count):
    return "–" if count is None else f"{count / 1e6:,.2f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def note(text):
    print(text, flush=True)
    return f"> {text}"


# Where the time goes.

MEMORY = "kernel: fresh pages"
WAKE = "kernel: wake-ups, switches, polling"
COPY = "kernel: copying packets"
UDP = "kernel: UDP and IP"

# The first that matches the name of a function is its category; of the kernel's and libc's functions first.
KERNEL = [
    (COPY, r"copy|iovec|check_object|virt_addr|datagram_iter"),
    (WAKE, r"finish_task|spin_|sched|futex|epoll|^ep_|wake|irq|poll|eventfd|timer|syscall|fdget|fget|switch|yield"),
    (UDP, r"udp|^_*ip_|skb|sock|msg|net|dev_|fib|route|inet|xmit|loopback|backlog|gro_|gso|nf_|send|recv|dst_|csum"),
    (MEMORY, r"page|fault|folio|mmap|unmap|mem_cgroup|vma|zap|charge|frozen|pcp|rmqueue|lru|tlb"),
]
LIBRARY = [
    ("copying and zeroing in user space", r"mem(move|cpy|set|cmp)"),
    (WAKE, r"epoll|syscall|futex|clock|pthread"),
    (UDP, r"send|recv"),
]
PROGRAM = [
    ("start: reading the files", r"csv|dec2flt|FromStr|from_utf8|trim_matches|spnn_party::data|check_labels|bignum"),
    ("TLS: AES-GCM (ring)", r"ring_core|\bring::|rustls|aes_gcm|ghash"),
    ("QUIC (quinn)", r"quinn"),
    ("masks (AES-CTR)", r"\baes::|\bctr::|mask|cipher"),
    ("fixed point: encode, open", r"fixed_point"),
    ("network layers", r"matrixmultiply|gemm|spnn_nn|sigmoid|ndarray"),
    ("rows: order and gather", r"gather|shuffle|rand_chacha|schedule::|prepare::"),
    ("messages: frames and checks", r"spnn_protocol|\bbytes::"),
    ("async runtime (tokio)", r"tokio|\bmio\b|BinaryHeap|mutex|parking"),
    ("allocator", r"\b_?mi_|alloc::"),
]


def profile(shape):
    """Samples all processes of a simulation, and adds up the functions by what they are for."""
    what = f"({PROFILE_EPOCHS[shape]} epochs, all roles, start and end included)"
    page = ["", f"Where `--first-layer sharing`, ring 64, spends its processor time {what}:", ""]
    if not shutil.which("perf"):
        return page + [note("skipped: there is no perf")]
    directory = Path(tempfile.mkdtemp(dir=WORK, prefix="run-"))
    record = directory / "perf.data"
    try:
        # perf follows the roles, which are children of `simulate`, by itself.
        command = simulation(shape, PROFILE_EPOCHS[shape], directory / "run", "--first-layer", "sharing")
        run(["perf", "record", "-q", "-F", "999", "-o", str(record), "--", *command])
        report = ["perf", "report", "-i", str(record), "--no-children", "--sort", "comm,dso,symbol"]
        lines, _ = run([*report, "--stdio", "-t", "|"])
    except Failed as why:
        return page + [note(f"perf {why}")]
    finally:
        shutil.rmtree(directory)
    samples = parse(lines)
    sums = {}
    for percent, thread, library, symbol in samples:
        both = sums.setdefault(category(library, symbol), [0.0, 0.0])
        both[thread.startswith("tokio")] += percent
    largest_first = sorted(sums.items(), key=lambda s: -sum(s[1]))
    rows = [[name, f"{a + b:.1f}", f"{a:.1f}", f"{b:.1f}"] for name, (a, b) in largest_first]
    page += table(["% of samples", "all", "main threads", "network threads"], rows)
    top = [f"`{short(symbol)}` {percent:.1f}" for percent, _, _, symbol in samples[:12]]
    return page + ["", f"Most in one function, %: {', '.join(top)}."]


def parse(lines):
    samples = []
    for line in lines.splitlines():
        if line.strip() and not line.startswith("#"):
            percent, thread, library, symbol = (cell.strip() for cell in line.split("|")[:4])
            samples.append((float(percent.rstrip("%")), thread, library, re.sub(r"^\[.\] ", "", symbol)))
    return samples


def category(library, symbol):
    if "kernel" in library:
        patterns, rest = KERNEL, "kernel: other"
    elif library == SPNN.name:
        patterns, rest = PROGRAM, "other"
    else:
        patterns, rest = LIBRARY, "other"
    return next((name for name, pattern in patterns if re.search(pattern, symbol)), rest)


def short(symbol):
    """The name without the list of processor features that a multiversioned function carries."""
    return re.sub(r"(::\w+?_)avx512\w+", r"\1avx512…", symbol)


if __name__ == "__main__":
    main()
