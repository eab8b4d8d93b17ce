#!/usr/bin/env python3
"""A wide-area run: four processes in four network namespaces, 100 Mbit/s and 40 ms round trip between any two.

usage: python3 benches/wan.py [--binary target/release/spnn] [--epochs N] [--emulator ../shared/wan] [--out docs/wan.md]

Needs Linux, root, /dev/net/tun, ip, rustc and the emulator's source; without one of them it says which, and writes
nothing. README.md says what is measured and how to read it.
"""

import argparse
import contextlib
import ctypes
import heapq
import json
import math
import os
import platform
import random
import re
import shlex
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import speed
from speed import Failed, date, said, table

ROOT = speed.ROOT
WORK = ROOT / "target" / "wan"
SESSION = ROOT / "benches" / "sessions" / "fraud_shape.toml"
ROLES = ["coordinator", "server", "party-0", "party-1"]
TIMEOUT_S = 600

# The network: each role has an access link to one router, so a path between two roles is two links.
RATE_MBIT = 100
LINK_MS = 10
ONE_WAY_MS = 2 * LINK_MS
MTU = 1500
BYTES_A_SECOND = RATE_MBIT * 1e6 / 8
# Drop-tail queue of each link and direction: what a path of this rate holds in one round trip.
QUEUE_KB = math.ceil(BYTES_A_SECOND * 2 * ONE_WAY_MS / 1e3 / 1024)
SHALLOW_KB = QUEUE_KB // 4

# The session's shape (benches/sessions/fraud_shape.toml).
ROWS, COLUMNS, HIDDEN, OUTPUTS, PARTIES = 227_845, 28, 8, 8, 2
# Messages of a batch that follow each other: shares, z, its gradient, the first layer's gradient.
TRIPS = 4


@dataclass(frozen=True)
class Variant:
    """What a run changes."""

    batch: int = 5000
    ring: int = 64
    tuning: str = ""  # inside `transport = { }` of every role
    queue_kb: int = QUEUE_KB

    def batches(self):
        return math.ceil(ROWS / self.batch)

    def bytes_a_row(self):
        """Of the messages in the order in which they follow each other; to the server are the first and the third."""
        return [PARTIES * HIDDEN * self.ring // 8, 4 * OUTPUTS, 4 * OUTPUTS, PARTIES * 4 * HIDDEN]


def window(kib):
    return f"initial_window = {kib << 10}"


BBR = 'congestion = "bbr"'
WIDE = window(1024)
SETTINGS_EPOCHS = 3
SHAPES = [Variant(), Variant(ring=32), Variant(batch=20_000), Variant(batch=20_000, ring=32), Variant(batch=60_000)]
SETTINGS = [Variant(tuning=t) for t in (window(256), window(512), WIDE, BBR)] + [
    Variant(tuning=t, queue_kb=SHALLOW_KB) for t in (window(256), WIDE, BBR)
]


@dataclass
class Run:
    """Bytes are those of an epoch."""

    epochs: list  # seconds of each but the first
    messages_down: int  # to the server
    messages_up: int  # from the server
    down: float  # IP packets to the server
    up: float  # IP packets from the server
    packets: int  # of the whole run, on all links
    dropped: int  # of them by the queues

    @property
    def seconds(self):
        return statistics.median(self.epochs)


# Namespaces.


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Star:
    """A namespace for each role and one for the router; an emulator is each role's access link."""

    def __init__(self, queue_kb):
        self.queue_kb = queue_kb
        self.emulators = {}

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self):
        router = self.namespace("router")
        ip("netns", "add", router)
        ip("netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for number, role in enumerate(ROLES, 1):
            inside = self.namespace(role)
            ip("netns", "add", inside)
            command = ["ip", "netns", "exec", router, str(WORK / "wanemu"), str(RATE_MBIT), str(LINK_MS), "0"]
            pipe = subprocess.PIPE
            emulator = subprocess.Popen(command + [str(self.queue_kb)], stdin=pipe, stdout=pipe, text=True)
            self.emulators[role] = emulator
            if not emulator.stdout.readline().startswith("ready"):
                raise Failed("the emulator did not start")
            # It always makes wan_a and wan_b: the one moves to the role, the other gets a name of its own.
            ip("-n", router, "link", "set", "wan_a", "netns", inside)
            ip("-n", router, "link", "set", "wan_b", "name", f"to_{number}")
            ends = [(inside, "wan_a", address(role)), (router, f"to_{number}", f"10.77.{number}.254")]
            for where, device, its in ends:
                ip("-n", where, "addr", "add", f"{its}/24", "dev", device)
                ip("-n", where, "link", "set", device, "mtu", str(MTU), "txqueuelen", "10000", "up")
                ip("-n", where, "link", "set", "lo", "up")
            ip("-n", inside, "route", "add", "default", "via", f"10.77.{number}.254")

    def __exit__(self, *_):
        self.close()
        for role in ["router", *ROLES]:
            subprocess.run(["ip", "netns", "del", self.namespace(role)], capture_output=True)

    def close(self):
        """Ends the emulators: packets seen, and packets dropped by their queues."""
        packets = dropped = 0
        for emulator in self.emulators.values():
            try:
                said, _ = emulator.communicate("\n", timeout=10)
            except subprocess.TimeoutExpired:
                emulator.kill()
                said, _ = emulator.communicate()
            for seen, lost in re.findall(r"(\d+) packets.* (\d+) dropped", said):
                packets, dropped = packets + int(seen), dropped + int(lost)
        self.emulators = {}
        return packets, dropped

    @staticmethod
    def namespace(role):
        return f"spnnwan-{os.getpid()}-{role}"

    def prefix(self, role):
        return ["ip", "netns", "exec", self.namespace(role)]

    @contextlib.contextmanager
    def inside(self, role):
        """Sockets that this thread makes meanwhile are in a role's namespace."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.namespace(role)}") as there:
            setns(there.fileno())
            try:
                yield
            finally:
                setns(home.fileno())

    def socket(self, role):
        with self.inside(role):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address(role), 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.settimeout(0.5)
        return made

    def counters(self, role):
        """Bytes of IP packets that came to a role and left it."""
        shown = said(["ip", "-n", self.namespace(role), "-j", "-s", "link", "show", "wan_a"])
        stats = json.loads(shown)[0]["stats64"]
        return stats["rx"]["bytes"], stats["tx"]["bytes"]


class Loopback:
    """All roles in one namespace that has nothing but a loopback."""

    def __enter__(self):
        ip("netns", "add", Star.namespace("loopback"))
        ip("-n", Star.namespace("loopback"), "link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        subprocess.run(["ip", "netns", "del", Star.namespace("loopback")], capture_output=True)

    def prefix(self, _):
        return ["ip", "netns", "exec", Star.namespace("loopback")]

    def counters(self, _):
        return 0, 0

    def close(self):
        return 0, 0


def address(role):
    return f"10.77.{ROLES.index(role) + 1}.1"


def setns(descriptor):
    clone_newnet = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "setns")


# The emulator, checked with plain UDP.


def round_trip_ms(star, a, b, times=40):
    """Median and largest of a small packet there and back, with nothing else on the way."""
    here, there = star.socket(a), star.socket(b)
    done = threading.Event()

    def echo():
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                data, sender = there.recvfrom(100)
                there.sendto(data, sender)

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        took = []
        for i in range(times):
            started = time.monotonic()
            here.sendto(struct.pack("!I", i), there.getsockname())
            here.recvfrom(100)
            took.append((time.monotonic() - started) * 1e3)
    finally:
        done.set()
        thread.join()
        here.close()
        there.close()
    return statistics.median(took), max(took)


def rate_mbit(star, senders, receiver, seconds=3.0):
    """What arrives, IP headers included, when each sender offers a fifth more than its link carries."""
    size, headers = 1400, 28
    into = star.socket(receiver)
    end = time.monotonic() + seconds

    def flood(out):
        sent, started = 0, time.monotonic()
        while (now := time.monotonic()) < end:
            due = (now - started) * 1.2 * BYTES_A_SECOND / (size + headers)
            while sent < due:
                out.sendto(bytes(size), into.getsockname())
                sent += 1
            time.sleep(0.001)

    outs = [star.socket(s) for s in senders]
    threads = [threading.Thread(target=flood, args=[out]) for out in outs]
    for thread in threads:
        thread.start()
    arrived, first, last = 0, None, None
    with contextlib.suppress(TimeoutError):
        while True:
            arrived += len(into.recv(2000)) + headers
            last = time.monotonic()
            first = first or last
    for thread in threads:
        thread.join()
    for s in [into, *outs]:
        s.close()
    return arrived * 8 / (last - first) / 1e6


def check_network():
    rows = []
    with Star(QUEUE_KB) as star:
        for a, b in [("party-0", "server"), ("party-1", "server"), ("party-0", "party-1"), ("server", "coordinator")]:
            middle, most = round_trip_ms(star, a, b)
            rows.append([f"{a} ↔ {b}, round trip", f"{2 * ONE_WAY_MS} ms", f"{middle:.2f} ms (at most {most:.2f})"])
            print(*rows[-1], sep="  ", flush=True)
        for senders, receiver in [(["party-0"], "server"), (["server"], "party-0"), (["party-0", "party-1"], "server")]:
            got = rate_mbit(star, senders, receiver)
            rows.append([f"{' and '.join(senders)} → {receiver}, rate", f"{RATE_MBIT} Mbit/s", f"{got:.1f} Mbit/s"])
            print(*rows[-1], sep="  ", flush=True)
        one_way_s = round_trip_ms(star, "party-0", "server")[0] / 2e3
    return rows, one_way_s


# A session.


def write_data():
    """Each party's own file. What a step costs depends on the sizes, not on the values."""
    files = [WORK / f"party-{i}.csv" for i in range(PARTIES)]
    if all(f.exists() for f in files):
        return
    numbers, width = random.Random(7), COLUMNS // PARTIES
    for party, file in enumerate(files):
        partial = file.with_suffix(f".{os.getpid()}")
        with partial.open("w") as out:
            names = [f"x{party * width + i}" for i in range(width)]
            out.write(",".join(["id"] + ["y"] * (party == 0) + names) + "\n")
            for row in range(ROWS):
                values = [f"{numbers.gauss(0, 1):.6f}" for _ in range(width)]
                label = ["1" if numbers.random() < 0.5 else "0"] if party == 0 else []
                out.write(",".join([f"R{row:06}", *label, *values]) + "\n")
        os.replace(partial, file)


def stage(binary, directory):
    """Certificates of all roles; the fingerprints of the parties'."""
    subprocess.run([binary, "pki", "init", "--dir", directory / "pki"], check=True, capture_output=True)
    prints = {}
    for role in ROLES:
        command = [binary, "pki", "issue", "--role", role, "--dir", directory / "pki", "--out", directory / role]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        prints[role] = shown.split()[-1]
    return prints


def configure(directory, prints, variant, epochs, addresses):
    text = SESSION.read_text()
    for key, value in [("epochs", epochs), ("batch_size", variant.batch)]:
        text, found = re.subn(rf"^{key} = .*", f"{key} = {value}", text, flags=re.MULTILINE)
        assert found == 1, key
    (directory / "session.toml").write_text(f"{text}\n[sharing]\nring_bits = {variant.ring}\n")
    for role in ROLES:
        lines = [
            'session = "../session.toml"',
            f'certificate = "{role}.pem"',
            f'key = "{role}.key"',
            'authority = "../pki/ca.pem"',
            f"transport = {{ {variant.tuning} }}",
        ]
        if role in ("coordinator", "server"):
            lines.append(f'listen = "{addresses[role]}"')
        if role != "coordinator":
            lines.append(f'coordinator = "{addresses["coordinator"]}"')
        if role.startswith("party"):
            lines.append(f'server = "{addresses["server"]}"')
            lines.append("peers = {" + ", ".join(f'{p} = "{prints[p]}"' for p in ROLES[2:] if p != role) + "}")
            label = ', label = "y"' if role == "party-0" else ""
            lines.append(f'data = {{ file = "{WORK / (role + ".csv")}", id = "id"{label} }}')
        (directory / role / "config.toml").write_text("\n".join(lines) + "\n")


def run(binary, variant, epochs, network):
    """Trains once, every role where `network` puts it."""
    local = isinstance(network, Loopback)
    addresses = {r: f"{'127.0.0.1' if local else address(r)}:{7000 + i}" for i, r in enumerate(ROLES[:2])}
    directory = Path(tempfile.mkdtemp(dir=WORK, prefix="run-"))
    processes = []
    try:
        configure(directory, stage(binary, directory), variant, epochs, addresses)
        before = network.counters("server")
        for role in ROLES:
            command = [str(binary), role.split("-")[0], "--config", str(directory / role / "config.toml")]
            log = (directory / role / "log").open("w")
            with log:
                started = subprocess.Popen(network.prefix(role) + command, stdout=log, stderr=log)
            processes.append((role, started))
        end = time.monotonic() + TIMEOUT_S
        for role, process in processes:
            process.wait(timeout=max(1, end - time.monotonic()))
            if process.returncode != 0:
                tail = (directory / role / "log").read_text().strip().splitlines()[-2:]
                raise Failed(f"{role} failed with {process.returncode}: {' / '.join(tail)}")
        down, up = (after - b for after, b in zip(network.counters("server"), before))
        report = json.loads((directory / "coordinator" / "report.json").read_text())
    except subprocess.TimeoutExpired as why:
        raise Failed(f"not done after {TIMEOUT_S} s") from why
    finally:
        for _, process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(directory)  # it holds keys
    assert report["rows"]["train"] == ROWS and report["batch_size"] == variant.batch
    sent = {role: {k: v for k, v in kinds.items() if k != "report"} for role, kinds in
            report["epochs"][-1]["bytes_sent_by_kind"].items()}
    up_messages = sum(sent.pop("server").values())
    down_messages = sum(sum(kinds.values()) for kinds in sent.values())
    for sent_bytes, a_row in [(down_messages, variant.bytes_a_row()[0::2]), (up_messages, variant.bytes_a_row()[1::2])]:
        assert math.isclose(sent_bytes, ROWS * sum(a_row), rel_tol=0.01), (sent_bytes, a_row)
    packets, dropped = network.close()
    seconds = [e["seconds"] for e in report["epochs"]][1:]
    return Run(seconds, down_messages, up_messages, down / epochs, up / epochs, packets, dropped)


def over_wan(binary, variant, epochs):
    with Star(variant.queue_kb) as star:
        return run(binary, variant, epochs, star)


def on_loopback(binary, variant, epochs):
    with Loopback() as loopback:
        return run(binary, variant, epochs, loopback)


def message_rates(binary, variant):
    """Mbit/s at which the server hands its z to the network, for each batch of an epoch, before the link slows it."""
    seen, done = [], threading.Event()

    def capture(tap):
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                packet, sender = tap.recvfrom(2000)
                # To the label holder, and more than an acknowledgement.
                if sender[2] == socket.PACKET_OUTGOING and packet[16:20] == holder and len(packet) > 600:
                    seen.append((time.monotonic(), len(packet)))

    holder = socket.inet_aton(address("party-0"))
    with Star(variant.queue_kb) as star:
        with star.inside("server"):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        tap.settimeout(0.2)
        thread = threading.Thread(target=capture, args=[tap])
        thread.start()
        try:
            run(binary, variant, 1, star)
        finally:
            done.set()
            thread.join()
            tap.close()
    bursts = []
    for when, size in seen:
        if not bursts or when - bursts[-1][1] > ONE_WAY_MS / 2e3:
            bursts.append([when, when, 0])
        bursts[-1][1:] = [when, bursts[-1][2] + size]
    whole = variant.batch * 4 * OUTPUTS  # z and the gradient to this party are of the same size
    return [size * 8 / (last - first) / 1e6 for first, last, size in bursts if size > 0.9 * whole and last > first]


# The formula.


@dataclass
class Link:
    """What was measured of network and program, for the formula."""

    one_way_s: float
    overhead: float  # bytes of packets for a byte of message


def overhead(r):
    """Packets of each direction carry its messages and acknowledge the other's: two equations, two unknowns."""
    d, u = r.messages_down, r.messages_up
    return (d * r.down - u * r.up) / (d * d - u * u)


def formula(variant, link, compute_s):
    """Seconds of an epoch in which everything waits for everything: sending, delays, computing."""
    sending = ROWS * sum(variant.bytes_a_row()) * link.overhead / BYTES_A_SECOND
    return sending, variant.batches() * TRIPS * link.one_way_s, compute_s


def derived(variant, link, compute_s, in_flight=1, chunks=1):
    """Seconds of an epoch with several batches under way, or each in chunks: messages queue at the server's link.

    `in_flight` 1 and `chunks` 1 is the formula. A batch starts when the one `in_flight` before it has ended.
    """
    rows = [min(variant.batch, ROWS - start) for start in range(0, ROWS, variant.batch)]
    free = [0.0, 0.0]  # when the link is free: to the server, from it
    left = [chunks] * len(rows)
    pause = compute_s / len(rows)
    # (time, batch, message, chunk): this message can be sent from then on; of two, the older batch goes first.
    events = [(pause, b, 0, c) for b in range(min(in_flight, len(rows))) for c in range(chunks)]
    heapq.heapify(events)
    end = 0.0
    while events:
        now, batch, message, chunk = heapq.heappop(events)
        if message < TRIPS:
            way = message % 2
            size = rows[batch] / chunks * variant.bytes_a_row()[message] * link.overhead
            free[way] = max(free[way], now) + size / BYTES_A_SECOND
            heapq.heappush(events, (free[way] + link.one_way_s, batch, message + 1, chunk))
            continue
        left[batch] -= 1
        end = max(end, now)
        following = batch + in_flight
        if left[batch] == 0 and following < len(rows):
            for c in range(chunks):
                heapq.heappush(events, (now + pause, following, 0, c))
    return end


def fullest(variant, link):
    """Seconds of an epoch if the fuller direction of the server's link never rested."""
    to_server, from_server = (sum(variant.bytes_a_row()[way::2]) for way in (0, 1))
    return ROWS * max(to_server, from_server) * link.overhead / BYTES_A_SECOND


# The page.


def main():
    args = arguments()
    binary = args.binary.resolve()
    try:
        prepare(binary, args.emulator)
    except Failed as why:
        sys.exit(f"skipped, nothing is written: {why}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that namespaces go
    write_data()
    built = binary.stat().st_mtime_ns
    started, busy, own = time.monotonic(), speed.busy_seconds(), speed.own_seconds()
    try:
        check, one_way_s = check_network()
        page = measure(binary, args.epochs, one_way_s)
    except Failed as why:
        sys.exit(f"error: {why}")
    others = (speed.busy_seconds() - busy - speed.own_seconds() + own) / (time.monotonic() - started) / os.cpu_count()
    top = head(args, binary, max(0.0, others))
    if binary.stat().st_mtime_ns != built:
        top += ["", "> **spnn was rebuilt during this run: its rows are not of one binary.**"]
    network = ["", "## The network itself", "", "Plain UDP, before any of the runs:", ""]
    network += table(["path", "set", "measured"], check)
    args.out.write_text("\n".join(top + network + page) + "\n")
    print(f"written: {args.out}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=speed.SPNN, help="default: target/release/spnn")
    parser.add_argument("--emulator", type=Path, default=ROOT.parent / "shared" / "wan", help="where wanemu.rs is")
    parser.add_argument("--epochs", type=int, default=4, help="of each run; the first is left out (default: 4)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "wan.md", help="default: docs/wan.md")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("at least two epochs, of which the first is not counted")
    return args


def prepare(binary, emulator):
    """Builds the emulator, or says what is missing."""
    source = emulator / "wanemu.rs"
    needed = [
        (binary.exists(), f"there is no {args_path(binary)} ({speed.BUILD})"),
        (sys.platform == "linux" and os.geteuid() == 0, "network namespaces need Linux and root"),
        (Path("/dev/net/tun").exists(), "there is no /dev/net/tun, which the emulator needs"),
        (source.exists(), f"there is no emulator, {args_path(source)} (--emulator says where)"),
        (shutil.which("rustc"), "there is no rustc, which builds the emulator"),
        (shutil.which("ip"), "there is no ip (iproute2)"),
    ]
    for there, why in needed:
        if not there:
            raise Failed(why)
    WORK.mkdir(parents=True, exist_ok=True)
    built = subprocess.run(["rustc", "-O", "-o", WORK / "wanemu", source], capture_output=True, text=True)
    if built.returncode != 0:
        raise Failed(f"the emulator does not build: {built.stderr.strip().splitlines()[-1]}")


def args_path(path):
    return os.path.relpath(path, ROOT)


def measure(binary, epochs, one_way_s):
    loop, wan = {}, {}
    for shape in SHAPES:
        loop[shape] = on_loopback(binary, shape, 2 * epochs)
        tell(shape, "loopback", loop[shape])
        for v in (shape, replace(shape, tuning=WIDE)):
            wan[v] = over_wan(binary, v, epochs)
            tell(v, "WAN", wan[v])
    for v in SETTINGS:
        if v not in wan:
            wan[v] = over_wan(binary, v, min(epochs, SETTINGS_EPOCHS))
            tell(v, "WAN", wan[v])
    paces = {v: message_rates(binary, v) for v in SETTINGS if v.queue_kb == QUEUE_KB}
    link = Link(one_way_s, overhead(wan[SHAPES[0]]))
    compute = {shape: loop[shape].seconds for shape in SHAPES}
    return (
        results(wan, link, compute)
        + terms(wan, link, compute)
        + bounds(wan, link, compute)
        + settings(wan, paces, link, compute)
        + pipelining(link, compute)
    )


def tell(v, where, r):
    print(f"batch {v.batch} ring {v.ring} {v.tuning or 'default'} queue {v.queue_kb} KB, {where}: {r.seconds:.3f} s"
          f" ({', '.join(f'{e:.3f}' for e in r.epochs)})", flush=True)


def head(args, binary, others):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    options = [a if not Path(a).is_absolute() else args_path(a) for a in sys.argv[1:]]
    readme = os.path.relpath(ROOT / "benches" / "README.md", args.out.resolve().parent)
    version = said([str(binary), "--version"]).removeprefix("spnn ")
    version += f" (built {date(binary.stat().st_mtime)})"
    if newer := [f for f in speed.sources() if f.stat().st_mtime > binary.stat().st_mtime]:
        version += f", **older than {len(newer)} of its source files**"
    return [
        "# Over a wide-area network",
        "",
        f"Made by `{shlex.join(['python3', 'benches/wan.py', *options])}` on {date(time.time())}, everything below in"
        " that one run;",
        f"[benches/README.md]({readme}) says what is measured and how to read it.",
        "",
        f"- Four processes (coordinator, server, party-0, party-1), each in a network namespace of its own, with an"
        f" access link of {RATE_MBIT} Mbit/s in each direction and {LINK_MS} ms one way to one router: between any two"
        f" {RATE_MBIT} Mbit/s and {2 * ONE_WAY_MS} ms round trip. No random loss; each link's queue holds"
        f" {QUEUE_KB} KB (one round trip of a path) unless it says otherwise; packets of up to {MTU} bytes.",
        f"- Session: {ROWS:,} rows, {COLUMNS} → {HIDDEN} → {OUTPUTS} → 1, first layer `sharing`, two parties, synthetic"
        " rows. Both parties' shares come through the server's link, which is the narrowest place.",
        f"- Machine: {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, all roles and emulators on it."
        f" Others had {others:.0%} of the cores' time.",
        f"- spnn {version}; Python {platform.python_version()}.",
        f"- {args.epochs} epochs a run (under Settings {min(args.epochs, SETTINGS_EPOCHS)}), the first left out.",
    ]


def what(v):
    return [f"{v.batch:,}", str(v.ring)]


def setting(v):
    if not v.tuning:
        return "default"
    key, value = v.tuning.split(" = ")
    return f"first window {int(value) >> 10:,} KiB" if key == "initial_window" else value.strip('"')


def drops(r):
    return f"{100 * r.dropped / r.packets:.2f} %"


def results(wan, link, compute):
    rows = []
    for shape in SHAPES:
        for v in (shape, replace(shape, tuning=WIDE)):
            r = wan[v]
            sending, delays, computing = formula(v, link, compute[shape])
            expected = sending + delays + computing
            uses = [f"{100 * b / r.seconds / BYTES_A_SECOND:.0f} %" for b in (r.down, r.up)]
            rows.append([
                *what(v), setting(v), f"{r.seconds:.2f} ({min(r.epochs):.2f}–{max(r.epochs):.2f})",
                f"{ROWS / r.seconds:,.0f}", f"{r.down / 1e6:.1f}", f"{r.up / 1e6:.1f}", *uses,
                f"{100 * sending / r.seconds:.0f} %", drops(r), f"{expected:.2f}", f"**{r.seconds / expected:.2f}**",
            ])
    columns = ["batch", "ring", "settings", "s/epoch: median", "rows/s", "MB to the server", "MB from it"]
    columns += ["link use: to", "from", "either", "packets dropped", "formula, s", "measured / formula"]
    return [
        "",
        "## Epochs",
        "",
        *table(columns, rows),
        "",
        "MB are IP packets at the server's link in an epoch, acknowledgements included. *either* is the time for"
        " which messages occupy the link in the one or the other direction, by the formula, over the measured time:"
        " within a batch the directions take turns. Packets are dropped by the queues, probably where the"
        " windows of both parties together are more than the path and a queue hold. Small differences between rows with"
        " drops are within what such runs vary by.",
    ]


def terms(wan, link, compute):
    rows = []
    for shape in SHAPES:
        n = shape.batches()
        sending, delays, computing = (1e3 * s / n for s in formula(shape, link, compute[shape]))
        measured = [f"{1e3 * wan[v].seconds / n:.1f}" for v in (shape, replace(shape, tuning=WIDE))]
        total = f"{sending + delays + computing:.1f}"
        rows.append([*what(shape), str(n), f"{sending:.1f}", f"{delays:.1f}", f"{computing:.1f}", total, *measured])
    columns = ["batch", "ring", "batches", "sending", f"{TRIPS} delays", "computing", "formula"]
    columns += ["measured: default", setting(Variant(tuning=WIDE))]
    return [
        "",
        "## The formula",
        "",
        "Time of a batch = bytes at the server's link / rate + 4 one-way delays + computing. The four are: shares to"
        " the server, `z` to the label holder, `grad_z` back, `grad_h1` to the parties; two round trips. Bytes a row: "
        + " + ".join(str(b) for b in SHAPES[0].bytes_a_row())
        + f" in ring 64, {' + '.join(str(b) for b in SHAPES[1].bytes_a_row())} in ring 32, times {link.overhead:.3f}"
        f" for packets, as measured in the first row. One-way delay: {link.one_way_s * 1e3:.2f} ms, as measured above."
        " Computing is the same session over loopback. ms a batch:",
        "",
        *table(columns, rows),
        "",
        "The formula is not a lower bound: a party whose gradient is complete can send its next shares while the"
        " other's is still on its way.",
    ]


def bounds(wan, link, compute):
    lines = ["", "## What bounds it", ""]
    for shape in SHAPES:
        best = min((wan[v] for v in (shape, replace(shape, tuning=WIDE))), key=lambda r: r.seconds)
        sending, delays, computing = formula(shape, link, compute[shape])
        total = sending + delays + computing
        fuller = max(best.down, best.up) / BYTES_A_SECOND / best.seconds
        text = f"- Batch {shape.batch:,}, ring {shape.ring}: {best.seconds / total:.2f} of the formula, in which"
        text += f" sending is {sending / total:.0%} and the delays {delays / total:.0%}. The fuller direction of the"
        text += f" link is {fuller:.0%} used, the one or the other {sending / best.seconds:.0%}: "
        if best.seconds > 1.15 * total:
            text += "**something else bounds it**."
        elif sending >= 0.8 * best.seconds:
            text += "**the link bounds it, one direction at a time**."
        elif delays >= 0.3 * best.seconds:
            text += "**the round trips bound it**; they are the formula's."
        else:
            text += "**mostly the link, one direction at a time**."
        lines.append(text)
    return lines + ["", "Each with the faster of its two settings."]


def settings(wan, paces, link, compute):
    expected = sum(formula(SHAPES[0], link, compute[SHAPES[0]]))
    rows = []
    for v in [SHAPES[0], *SETTINGS]:
        r = wan[v]
        pace = paces.get(v)
        rows.append([setting(v), str(v.queue_kb), f"{r.seconds:.2f}", f"{r.seconds / expected:.2f}",
                     f"{statistics.median(pace):.0f}" if pace else "–", drops(r)])
    small, wide = (wan[v] for v in SETTINGS[:3:2])
    rtt = 2 * link.one_way_s
    nominal = [1.25 * (kib << 10) * 8 / rtt / 1e6 for kib in (256, 1024)]
    text = (
        "The first window matters in every batch, not only in the first. Where messages fit into a connection's window,"
        " the program and not the window limits it, and so the window never grows; and quinn spreads a message over the"
        f" round trip at 1.25 windows each: at most {nominal[0]:.0f} Mbit/s with 256 KiB and {nominal[1]:.0f} with 1"
        " MiB, by its source. The column shows less, probably as the bursts wait for a timer of 1 ms. `z` and `grad_z`"
        " go alone, and a message that is handed over more slowly than the link sends makes the link wait: with 256"
        f" KiB an epoch takes {small.seconds:.2f} s, with 1 MiB {wide.seconds:.2f} s. `bbr` hands a message"
        " over at once; its two rows show what that gives with a longer and a shorter queue."
    )
    columns = ["settings", "queue, KB", "s/epoch", "/ formula", "`z` leaves the server at, Mbit/s", "packets dropped"]
    return [
        "",
        "## Settings",
        "",
        "Batch 5,000, ring 64. `transport = { initial_window = … }` or `{ congestion = \"bbr\" }` at all roles:",
        "",
        *table(columns, rows),
        "",
        text,
    ]


def pipelining(link, compute):
    rows = []
    for shape in SHAPES[:3]:
        args = (shape, link, compute[shape])
        base = sum(formula(*args))
        assert math.isclose(base, derived(*args), rel_tol=1e-6), "one batch at a time is the formula"
        times = [derived(*args, chunks=4), derived(*args, in_flight=2), derived(*args, in_flight=3)]
        limit = fullest(shape, link)
        cells = [f"{t:.2f} (× {base / t:.2f}; {limit / t:.0%})" for t in times]
        rows.append([*what(shape), f"{base:.2f} ({limit / base:.0%})", *cells, f"{limit:.2f}"])
    columns = ["batch", "ring", "as it is", "4 chunks a batch", "2 batches under way", "3 under way"]
    columns += ["link never rests"]
    return [
        "",
        "## What pipelining would give",
        "",
        "**Derived, not measured**: the formula's messages, delays and computing, played through with messages of one"
        " direction queueing at the server's link, the only link that it knows. s/epoch (× faster than the formula; use"
        " of the fuller direction):",
        "",
        *table(columns, rows),
        "",
        "- *2 batches under way*: parties send the shares of batch t+1 before the gradient of batch t is there. Weights"
        " at the parties, the server and the label holder are then one step old when they are used (two with three"
        " under way): another training than the pooled one, no longer the same bits, and its accuracy would have to be"
        " measured. The messages and masks stay the same.",
        "- *4 chunks a batch*: the rows of a batch go in four parts, so that `z` of the first leaves while shares of"
        " the last still come; the weights change once a batch, after all parts. Nothing gets old, so it is the same"
        " training; whether to the bit would have to be tested.",
        "- A larger batch gains without any of this where training allows it: see the table of epochs.",
    ]


if __name__ == "__main__":
    main()
