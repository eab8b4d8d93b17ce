#!/usr/bin/env python3
"""SPNN beside what a user would pick instead, in one run: split learning, Flower, SecretFlow, CrypTen, SPU.

usage: python3 benches/peers.py [--rounds R] [--shape fraud|distress] [--only NAMES] [--resume]
                                [--python P] [--python-spu P] [--python-secretflow P]
                                [--binary FILE] [--output docs/benchmarks.md]

The peers are optional: what is missing gets a row that says so. Every measurement is written at once to a JSON file
next to the page, from which --resume goes on. README.md says how to install the peers and how to read the result.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import speed
from speed import Failed, date, said, size

ROOT = speed.ROOT
GOAL = 10

# (short, long) runs of ours: processor time of an epoch is the difference of the two over that of their epochs.
OURS_EPOCHS = {"fraud": (6, 46), "distress": (40, 240)}
FLOWER_ROUNDS = 47
STEPS = 3  # of CrypTen and SPU, after one that is not counted
SECRETFLOW_EPOCHS = {"fraud": 2, "distress": 3}  # the first is not counted
SPU_PRODUCTS = 6  # the first is not counted
PRODUCTS_AT_LEAST = 30  # of ours
TIMEOUT_S = 3000

# Rows, first-layer product of a full batch.
ROWS = {"fraud": 227_845, "distress": 2_937}
BATCH = {"fraud": 5_000, "distress": 1_024}
PRODUCT_SHAPES = {"fraud": "5000x28x8", "distress": "1024x83x400"}
ONCE = "product"  # stands for the shape where a measurement covers both


# The systems.


@dataclass(frozen=True)
class System:
    """What is measured: `measure(shape, options)` gives wall, cpu and bytes of an epoch."""

    name: str
    label: str
    protects: str
    how: str
    measure: Callable
    python: str = ""  # which of the interpreters
    needs: tuple = ()


TORCH, AGAIN = "torch", "torch-again"


def whole(script, *more):
    """A script that runs whole epochs."""

    def measure(shape, options):
        got = peer(options, "torch", script, shape, *more)
        return epoch(got["wall"]["min"], got["cpu"]["min"], got.get("bytes_epoch"))

    return measure


def grpc(shape, options):
    got = peer(options, "torch", "split_grpc.py", shape, speed.EPOCHS[shape])
    return epoch(got["wall"]["min"], got["cpu"]["min"], got["bytes_epoch"])


def flower(shape, options):
    got = peer(options, "torch", "flower_vfl.py", shape, FLOWER_ROUNDS)
    return epoch(got["epoch_wall_min"], got["epoch_cpu"], got["epoch_bytes"])


def crypten(provider):
    def measure(shape, options):
        got = peer(options, "torch", "crypten_train.py", shape, "sigmoid", STEPS, provider)
        return epoch(got["epoch_wall"], got["epoch_cpu"], got["epoch_bytes"])

    return measure


def spu(shape, options):
    got = peer(options, "spu", "spu_run.py", "train", shape, "SEMI2K", "FM64", STEPS)
    return epoch(got["epoch_wall"], got["epoch_cpu"], got["epoch_bytes"])


def secretflow(mode):
    def measure(shape, options):
        got = peer(options, "secretflow", "sf_sl.py", shape, mode, SECRETFLOW_EPOCHS[shape])
        # Tensors go through an object store in shared memory: what crosses loopback is only a part.
        return epoch(got["wall"]["min"], got["cpu"]["min"], None)

    return measure


def ours(mode):
    def measure(shape, options):
        if not options.binary.is_file():
            raise Failed(f"not built: there is no {shown(options.binary)} ({speed.BUILD})")
        if mode not in options.modes:
            raise Failed("not in this build")
        if mode == "paillier":
            # Minutes of arithmetic an epoch: one is enough, and the start, which then counts, is small beside it.
            record = simulate(shape, 1, mode)
            counted = later = record["epochs"]
            cpu = record["cpu_seconds"]
        else:
            short, long = OURS_EPOCHS[shape]
            first, record = simulate(shape, short, mode), simulate(shape, long, mode)
            # Fastest of as many epochs as PyTorch runs, the first left out: a minimum over more epochs is lower.
            counted, later = record["epochs"][1 : speed.EPOCHS[shape]], record["epochs"][1:]
            cpu = {r: (s - first["cpu_seconds"][r]) / (long - short) for r, s in record["cpu_seconds"].items()}
        sent = [sum(e["bytes_sent"].values()) for e in later]
        wire = [sum(e["wire_bytes_sent"].values()) for e in later]
        return epoch(min(e["seconds"] for e in counted), sum(cpu.values()), statistics.median(sent)) | {
            "cpu_by_process": cpu,
            "cpu_fastest_epoch": min(sum(e["cpu_seconds"].values()) for e in counted),
            "bytes_first_epoch": sum(record["epochs"][0]["bytes_sent"].values()),
            "wire_bytes": sum(wire) / len(wire),
            "binary": fingerprint(options.binary),
        }

    return measure


def simulate(shape, epochs, mode):
    directory = Path(tempfile.mkdtemp(dir=speed.WORK, prefix="run-"))
    try:
        speed.run(speed.simulation(shape, epochs, directory, "--first-layer", mode))
        return json.loads((directory / "report.json").read_text())
    except Failed as why:
        logs = [log.read_text().strip().splitlines()[-1:] for log in sorted(directory.glob("*/train.log"))]
        raise Failed(" / ".join([str(why), *(line for log in logs for line in log)])) from why
    finally:
        shutil.rmtree(directory)  # it holds keys


def epoch(wall, cpu, sent):
    if wall <= 0 or cpu <= 0:
        raise Failed(f"failed: {wall:.3g} s and {cpu:.3g} s of processor are no measurement")
    return {"wall": wall, "cpu": cpu, "bytes": sent}


ADDITIVE = (
    "The server sees only the sum of the parties' first-layer products; no dealer. Hidden layers are in the clear."
)
CLEAR = "Nothing of the first layer: each holder's product goes out in the clear. Rows stay with their holders."

PYTORCH = System(
    TORCH,
    "PyTorch, pooled",
    "Nothing: all columns and labels are in one process.",
    "whole epochs, one thread",
    whole("plain_torch.py", 1),
    "torch",
    ("torch", "numpy"),
)

SYSTEMS = [
    System("grpc", "Split over gRPC", CLEAR + " No TLS.", "whole epochs", grpc, "torch", ("torch", "numpy", "grpcio")),
    System(
        "flower",
        "Flower, vertical",
        CLEAR + " The server has the labels. No TLS.",
        f"{FLOWER_ROUNDS} batches, scaled to an epoch; processor time is their mean",
        flower,
        "torch",
        ("torch", "numpy", "flwr"),
    ),
    System(
        "secretflow-plain",
        "SecretFlow SLModel",
        "Nothing of the first layer: products go to the label holder in the clear.",
        "whole epochs",
        secretflow("plain"),
        "secretflow",
        ("secretflow", "torch"),
    ),
    System(
        "secretflow-spu",
        "SecretFlow SLModel, sum in SPU",
        "The label holder, which is also the server, sees only the sum of the first-layer products; no dealer."
        " Hidden layers are in the clear.",
        "whole epochs",
        secretflow("spu"),
        "secretflow",
        ("secretflow", "torch"),
    ),
    System(
        "crypten-tfp",
        "CrypTen, whole network, TFP",
        "Features, labels and weights of all layers are shared, but party 0 makes the triples and so could open"
        " everything: for development only.",
        f"{STEPS} batches, the fastest scaled to an epoch",
        crypten("TFP"),
        "torch",
        ("torch", "crypten"),
    ),
    System(
        "crypten-ttp",
        "CrypTen, whole network, TTP",
        "Features, labels and weights of all layers are shared; a dealer that colludes with no party makes the"
        " triples.",
        f"{STEPS} batches, the fastest scaled to an epoch; the dealer's processor time is not counted",
        crypten("TTP"),
        "torch",
        ("torch", "crypten"),
    ),
    System(
        "spu",
        "SPU, whole network, SEMI2K",
        "Features, labels and weights of all layers are shared, but the first party is trusted with the triples (TFP):"
        " SPU calls it unsafe.",
        f"{STEPS} batches, the fastest scaled to an epoch",
        spu,
        "spu",
        ("spu",),
    ),
    System(
        "spnn-plain",
        "spnn, plain",
        CLEAR + " TLS between all roles.",
        "whole epochs",
        ours("plain"),
    ),
    System(
        "spnn-sharing",
        "spnn, sharing",
        ADDITIVE + " TLS between all roles.",
        "whole epochs, ring 64",
        ours("sharing"),
    ),
    System(
        "spnn-beaver",
        "spnn, beaver",
        "Features and first-layer weights are shared between the parties, and the server sees only the sum; a dealer"
        " that colludes with no party makes the triples. Hidden layers are in the clear. TLS between all roles.",
        "whole epochs; the dealer's processor time is counted",
        ours("beaver"),
    ),
    System(
        "spnn-paillier",
        "spnn, paillier",
        ADDITIVE + " Products travel encrypted under the server's key. TLS between all roles.",
        "one whole epoch, the start's processor time included",
        ours("paillier"),
    ),
]


def crypten_product(provider):
    def measure(_, options):
        lines = peer(options, "torch", "crypten_matmul.py", provider, every=True)
        return {
            "shapes": {
                "x".join(map(str, line["shape"])): {
                    "wall": line["wall"]["min"],
                    "cpu": line["cpu_both"],
                    "bytes": line["bytes"],
                    "error": line["err"],
                    "clear": line["int64_matmul"],
                }
                for line in lines
            }
        }

    return measure


def spu_product(protocol):
    def measure(_, options):
        lines = peer(options, "spu", "spu_run.py", "matmul", protocol, "FM64", every=True)
        return {
            "shapes": {
                "x".join(map(str, line["shape"])): {
                    "wall": line["wall"]["min"],
                    "cpu": line["cpu_all"]["min"],
                    "bytes": line["bytes"],
                    "error": line["err"],
                }
                for line in lines
            }
        }

    return measure


def our_product(_, options):
    """From real sessions: their parties do nothing but this when a trained network predicts."""
    shapes = {shape: predicting(name) for name, shape in PRODUCT_SHAPES.items()}
    return {"shapes": shapes, "binary": fingerprint(options.binary)}


def predicting(name):
    speed.write_data(name)
    directory = Path(tempfile.mkdtemp(dir=speed.WORK, prefix="run-"))
    try:
        run_dir, rows = directory / "run", directory / "rows.csv"
        header, *lines = (speed.WORK / f"{name}.csv").read_text().splitlines(keepends=True)
        times = -(-PRODUCTS_AT_LEAST * BATCH[name] // len(lines))
        rows.write_text(header + "".join(lines) * times)
        speed.run(speed.simulation(name, 1, run_dir, "--first-layer", "beaver"))
        speed.run([str(speed.SPNN), "predict", str(run_dir), "--data", str(rows), "--log", "error"])
        trained = json.loads((run_dir / "report.json").read_text())["epochs"][0]
        predicted = json.loads((run_dir / "prediction" / "report.json").read_text())["epochs"][0]
    finally:
        shutil.rmtree(directory)  # it holds keys
    batches = len(lines) * times / BATCH[name]
    parties = [role for role in predicted["cpu_seconds"] if role.startswith("party")]
    sent = sum(predicted["bytes_sent_by_kind"][role]["first-layer"] for role in parties) / batches
    dealt = trained["bytes_sent"]["coordinator"] * BATCH[name] / len(lines)
    return {
        "wall": predicted["seconds"] / batches,
        "cpu": sum(predicted["cpu_seconds"][role] for role in parties) / batches,
        "dealer_cpu": trained["cpu_seconds"]["coordinator"] * BATCH[name] / len(lines),
        "bytes": sent + dealt,
        "error": None,
    }


OUR_PRODUCT = "product-spnn"
PRODUCTS = [
    System(
        "product-crypten-tfp",
        "CrypTen, TFP",
        "party 0 knows the triples",
        "",
        crypten_product("TFP"),
        "torch",
        ("crypten",),
    ),
    System("product-crypten-ttp", "CrypTen, TTP", "dealer", "", crypten_product("TTP"), "torch", ("crypten",)),
    System(
        "product-spu-semi2k", "SPU, SEMI2K", "party 0 knows the triples", "", spu_product("SEMI2K"), "spu", ("spu",)
    ),
    System(
        "product-spu-cheetah",
        "SPU, Cheetah",
        "no dealer (lattice encryption)",
        "",
        spu_product("CHEETAH"),
        "spu",
        ("spu",),
    ),
    System(OUR_PRODUCT, "spnn, beaver", "dealer", "", our_product),
]

# An SPNN put together from existing parts: name, label, product, what it protects.
COMPOSED = [
    (
        "crypten-ttp-split",
        "CrypTen TTP product + gRPC split",
        "product-crypten-ttp",
        "The first layer's forward pass is shared, with a dealer. Hidden layers are in the clear.",
    ),
    (
        "spu-semi2k-split",
        "SPU SEMI2K product + gRPC split",
        "product-spu-semi2k",
        "The first layer's forward pass is shared; the first party is trusted with the triples. Hidden layers are in"
        " the clear.",
    ),
    (
        "spu-cheetah-split",
        "SPU Cheetah product + gRPC split",
        "product-spu-cheetah",
        "The first layer's forward pass is shared, without a dealer. Hidden layers are in the clear.",
    ),
]

# Which peers protect as much as each mode, and how they differ.
SAME, MORE, TRUST = "the same kind", "more: all layers", "the first party knows the triples"
COMPARABLE = {
    "spnn-plain": [("grpc", SAME), ("flower", SAME + ", labels at the server"), ("secretflow-plain", SAME)],
    "spnn-sharing": [
        ("secretflow-spu", SAME),
        ("spu-cheetah-split", SAME),
        ("crypten-ttp-split", SAME + ", with a dealer"),
        ("crypten-ttp", MORE + ", with a dealer"),
        ("spu", f"{MORE}, but {TRUST}"),
    ],
    "spnn-beaver": [
        ("crypten-ttp-split", SAME),
        ("spu-semi2k-split", f"{SAME}, but {TRUST}"),
        ("spu-cheetah-split", SAME + ", no dealer"),
        ("secretflow-spu", "the sum only, no dealer"),
        ("crypten-ttp", MORE),
        ("spu", f"{MORE}, but {TRUST}"),
    ],
    "spnn-paillier": [
        ("spu-cheetah-split", SAME),
        ("secretflow-spu", SAME),
        ("crypten-ttp-split", SAME + ", with a dealer"),
        ("crypten-ttp", MORE + ", with a dealer"),
        ("spu", f"{MORE}, but {TRUST}"),
    ],
}

# Never run by this script. MP-SPDZ was looked up by its name; what is said of the rest comes from ../shared/PEERS.md.
NOT_RUN = [
    "**MP-SPDZ**: the Python, Debian, npm and Rust registries had nothing by its name when looked up; it is built from"
    " its sources.",
    "**FATE** (`pyfate`, SSHE Hetero-NN layer): Python 3.10 only, 5.9 GB, and its layer runs only under FATE's own"
    " launcher; no script here drives it.",
    "**TF-Encrypted**: bound to Python 3.8 and one TensorFlow release; it trains on shares in all layers as CrypTen and"
    " SPU do.",
    "**PySyft**: the releases with split learning need dependencies that no longer build; newer ones have none.",
    "**The paper's own code**: none is public.",
]


# Running.


def main():
    # So that a stop also ends what is running; --resume goes on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    options = arguments()
    state = State(options)
    speed.SPNN, speed.TIMEOUT_S = options.binary, TIMEOUT_S
    speed.WORK.mkdir(parents=True, exist_ok=True)
    os.environ |= {"PLAIN_PY": options.pythons["torch"], "PEER_REPS": str(SPU_PRODUCTS)}
    write_rows(options)
    for r in range(1, options.rounds + 1):
        for shape in options.shapes:
            # PyTorch first and last, the others in turn, so that a machine that gets busier hits no one alone.
            turn = (r - 1) % len(SYSTEMS)
            for system in [PYTORCH, *SYSTEMS[turn:], *SYSTEMS[:turn]]:
                state.measure(r, shape, system, options)
            state.measure(r, shape, PYTORCH, options, AGAIN)
        for system in PRODUCTS:
            state.measure(r, ONCE, system, options)
    options.output.write_text("\n".join(page(state, options)) + "\n")
    print(f"written: {shown(options.output)}")


def arguments():
    names = [s.name for s in (*SYSTEMS, *PRODUCTS)]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"NAMES are of {', '.join(names)}; PyTorch always runs."
    )
    path = {"type": Path, "metavar": "FILE"}
    parser.add_argument("--rounds", type=int, default=3, help="how often every system runs (default: 3)")
    parser.add_argument("--shape", choices=ROWS, help="only this one")
    parser.add_argument(
        "--only", type=lambda s: s.split(","), default=names, metavar="NAMES", help="separated by commas"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the JSON file of an earlier run")
    parser.add_argument("--binary", default=speed.SPNN, **path, help="default: target/release/spnn")
    for name, what in (("", "torch, numpy, grpcio, flwr and crypten"), ("-spu", "spu"), ("-secretflow", "secretflow")):
        default = sys.executable if not name else None
        parser.add_argument(f"--python{name}", default=default, metavar="PYTHON", help=f"the Python that has {what}")
    parser.add_argument("--output", default=ROOT / "docs" / "benchmarks.md", **path, help="default: docs/benchmarks.md")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("at least one round")
    if unknown := set(options.only) - set(names):
        parser.error(f"no such name: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    options.binary = options.binary.resolve()
    options.output = options.output.resolve()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.shapes = [options.shape] if options.shape else list(ROWS)
    # Not resolved: a virtual environment's Python is a link, and knows by its name where it belongs.
    given = {"torch": options.python, "spu": options.python_spu, "secretflow": options.python_secretflow}
    options.pythons = {name: os.path.abspath(shutil.which(p) or p) if p else "" for name, p in given.items()}
    options.versions = {name: versions(python) for name, python in options.pythons.items()}
    help_text = said([str(options.binary), "simulate", "--help"]) if options.binary.is_file() else ""
    options.modes = re.findall(r"^\s+- ([a-z0-9-]+):", help_text, re.MULTILINE)
    return options


class State:
    """What has been measured, on disk after every measurement."""

    def __init__(self, options):
        self.file = options.output.with_suffix(".json")
        self.sittings, self.rows, self.versions = [], [], {}
        if options.resume:
            if not self.file.is_file():
                sys.exit(f"error: there is no {shown(self.file)} to go on from")
            old = json.loads(self.file.read_text())
            # What another build gave is measured again.
            kept = {fingerprint(options.binary), None}
            self.sittings, self.versions = old["sittings"], old["versions"]
            self.rows = [row for row in old["rows"] if row.get("binary") in kept]
        self.started = time.time()
        for name, found in options.versions.items():
            if found:
                self.versions[name] = found
        if version := said([str(options.binary), "--version"]):
            self.versions["spnn"] = {"spnn": version.removeprefix("spnn ")}

    def measure(self, r, shape, system, options, name=None):
        name = name or system.name
        if (system.name in options.only or system is PYTORCH) and not self.done(r, shape, name):
            if self.started not in self.sittings:
                self.sittings.append(self.started)
            # What failed before is tried again.
            self.rows = [x for x in self.rows if (x["round"], x["shape"], x["system"]) != (r, shape, name)]
            row, started = {"round": r, "shape": shape, "system": name}, time.time()
            try:
                need(system, options)
                row |= system.measure(shape, options)
                row["others"] = speed.OTHERS[-1]
                told = f"{row['wall']:.4g} s, {row['cpu']:.4g} s of processor" if "wall" in row else "done"
            except Failed as why:
                told = row["failed"] = without_paths(str(why))
            except (KeyError, ValueError, TypeError, IndexError) as why:
                told = row["failed"] = without_paths(f"failed: its output is not as expected ({why!r})")
            row |= {"at": time.time(), "took": time.time() - started}
            self.rows.append(row)
            self.flush()
            print(f"round {r}/{options.rounds} {shape} {name}: {told}", flush=True)

    def flush(self):
        partial = self.file.with_suffix(".partial")
        content = {"sittings": self.sittings, "versions": self.versions, "rows": self.rows}
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, self.file)

    def done(self, r, shape, name):
        """The figures, if there are any."""
        return next(
            (x for x in self.rows if (x["round"], x["shape"], x["system"]) == (r, shape, name) and "failed" not in x),
            None,
        )

    def why_not(self, shape, name):
        reasons = [x["failed"] for x in self.rows if (x["shape"], x["system"]) == (shape, name) and "failed" in x]
        return reasons[-1] if reasons else "not run"


def need(system, options):
    if not system.python:
        return
    if not speed.PEERS.is_dir():
        raise Failed("not installed: there is no ../shared/peers")
    option = "--python" if system.python == "torch" else f"--python-{system.python}"
    if not options.pythons[system.python]:
        raise Failed(f"not installed: no {option} was given")
    found = options.versions[system.python]
    if not found:
        raise Failed(f"not installed: the Python of {option} does not start")
    if missing := [p for p in system.needs if p not in found]:
        raise Failed(f"not installed: the Python of {option} ({found['Python']}) has no {' and no '.join(missing)}")


PACKAGES = ["torch", "numpy", "grpcio", "flwr", "crypten", "spu", "secretflow", "jax", "ray"]


def versions(python):
    """Of the packages that an interpreter has, without importing any."""
    if not python:
        return {}
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {'Python': platform.python_version()}\n"
        f"for p in {PACKAGES}:\n"
        "    try: found[p] = m.version(p)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    output = said([python, "-c", code])
    return json.loads(output) if output else {}


def write_rows(options):
    """The rows ours trains on are the peers' own; they are made by the Python that has numpy."""
    for shape in options.shapes:
        if options.versions["torch"].get("numpy") and speed.PEERS.is_dir():
            code = (
                f"import sys; sys.path.insert(0, {str(ROOT / 'benches')!r}); import speed; speed.write_data({shape!r})"
            )
            try:
                speed.run([options.pythons["torch"], "-c", code])
            except Failed as why:
                sys.exit(f"error: the rows to train on could not be made: {why}")
        elif not (speed.WORK / f"{shape}.csv").exists():
            hint = "../shared/peers makes them, with a --python that has numpy"
            sys.exit(f"error: there are no rows to train on\nhint: {hint}")


def peer(options, python, script, *args, every=False):
    # Some peers leave logs where they run.
    command = ["env", f"--chdir={speed.WORK}", options.pythons[python], str(speed.PEERS / script), *map(str, args)]
    try:
        output, _ = speed.run(command)
    except Failed as why:
        raise Failed(f"{why}{' (it needs root, for a network namespace)' if os.geteuid() else ''}") from why
    lines = json_lines(output)
    if not lines:
        raise Failed("failed: it printed no result")
    return lines if every else lines[-1]


def json_lines(output):
    lines = []
    for line in output.splitlines():
        if line.startswith("{"):
            lines.append(json.loads(line))
    return lines


def fingerprint(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def shown(path):
    """A path as it may stand in a page: below the project, or by its last parts."""
    path = Path(path)
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return str(path) if not path.is_absolute() else "/".join(["…", *path.parts[1:][-3:]])


def without_paths(text):
    return re.sub(r"(?<![\w.…])/[\w.+-]+(?:/[\w.+-]+)+", lambda m: shown(m[0]), text)


# The page.


def page(state, options):
    rounds = options.rounds
    lines = head(state, options)
    for shape in options.shapes:
        lines += ["", f"## {speed.title(shape)}", ""]
        lines += costs(state, shape, rounds)
    lines += ["", "## The first-layer product alone", "", *products(state, rounds)]
    lines += ["", f"## {GOAL} times ahead?", "", *goal(state, options)]
    lines += ["", "## What each system protects", "", *protections()]
    return lines + ["", "## Not measured", "", *absent(state, options)]


def head(state, options):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    # CrypTen, SPU and SecretFlow do not wait for their processes, whose time then looks like that of others.
    waited = (TORCH, "grpc", "flower", "spnn-")
    others = [row["others"] for row in state.rows if "others" in row and row["system"].startswith(waited)]
    command = shlex.join(["python3", "benches/peers.py", *map(without_paths, sys.argv[1:])])
    ended = max((row["at"] for row in state.rows), default=time.time())
    sittings = ""
    if len(state.sittings) > 1:
        sittings = f", in {len(state.sittings)} sittings (**so figures of one round may be from different times**)"
    busy = "Nothing was run."
    if others:
        usual, most = statistics.median(others), max(others)
        busy = f"Others had {usual:.0%} of the cores' time (median; {most:.0%} at most;"
        busy += " over the runs of PyTorch, gRPC, Flower and spnn)."
        # Processor time bears that better than wall time, but caches and clocks are shared.
        busy += " **Too busy a machine to quote these times.**" * (usual > 0.1)
    kinds = {"torch": "PyTorch, gRPC, Flower, CrypTen", "spu": "SPU", "secretflow": "SecretFlow", "spnn": "spnn"}
    commit = said(["git", "describe", "--always", "--dirty", "--tags"])
    told = []
    for name, found in state.versions.items():
        text = ", ".join(f"{package} {version}" for package, version in found.items())
        if name == "spnn" and options.binary.is_file():
            text += f" (working tree {commit or 'unknown'}, built {date(options.binary.stat().st_mtime)}"
            newer = [f for f in speed.sources() if f.stat().st_mtime > options.binary.stat().st_mtime]
            text += f", **older than {len(newer)} of its source files**)" if newer else ")"
        told.append(f"  - {kinds[name]}: {text}")
    readme = os.path.relpath(ROOT / "benches" / "README.md", options.output.parent)
    return [
        "# Benchmarks",
        "",
        f"Made by `{command}` from {date(min([*state.sittings, ended]))} to {date(ended)}{sittings};",
        f"[benches/README.md]({readme}) says how to install the peers and run it.",
        "",
        f"- Machine: {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {vectors()}, {platform.system()},"
        " all processes on it, over loopback.",
        f"- {busy}",
        f"- Rounds: {options.rounds}. A figure is the median over the rounds and, in brackets, the range.",
        "- Versions, by the Python that runs them:",
        *told,
        "",
        "How the figures are made:",
        "",
        "- The rows are synthetic and the same for every system: what a step costs depends on the sizes, not on the"
        " values. SGD, learning rate 0.1, sigmoid.",
        "- `× PyTorch` divides by the pooled network in PyTorch, one thread, of the same round: the faster of one run"
        " before and one after all others of the round.",
        "- Wall time is the fastest epoch (or batch) of a run, the first left out. Processor time (CPU) is that of all"
        " processes of a system together, user and system.",
        "- The peers' processor time is their fastest epoch or batch (Flower: the mean), without CrypTen's dealer. That"
        " of spnn is the difference between a long and a short run over the difference of their epochs, so a mean, of"
        " all processes from start to end, coordinator and dealer included. This is the stricter one.",
        "- What stands in *italics* is composed, not run: the measured first-layer product of a full batch, times the"
        " batches of an epoch, plus the measured gRPC split of the same round. Sharing the inputs and opening the"
        " result to the server are left out, so it is a lower bound of what such a system would cost.",
        "- Bytes of a peer are all that crossed loopback, TCP and IP headers included. Those of spnn are messages with"
        f" their headers, in an epoch after the first{wire(state)}. SecretFlow's tensors go through shared memory, so"
        " that it has no such figure.",
        "- Initial weights and orders differ between the implementations, so losses are not compared here.",
    ]


def vectors():
    """Which of the instructions that matter here the processor has."""
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(flags[1].split()) if flags else set()
    known = {"AVX2": "avx2", "AVX-512-IFMA": "avx512ifma", "AVX-512": "avx512f"}
    return " and ".join(name for name, flag in known.items() if flag in flags) or "no AVX2"


def wire(state):
    """What QUIC makes of the messages. Of a few epochs, so that what is still in a buffer at the end shows."""
    factors = [row["wire_bytes"] / row["bytes"] for row in state.rows if row.get("wire_bytes")]
    return f"; QUIC's packets came to {min(factors):.1%} to {max(factors):.1%} of them" if factors else ""


def costs(state, shape, rounds):
    rows = [cost_row(state, shape, rounds, PYTORCH.name, PYTORCH.label)]
    for system in SYSTEMS:
        rows.append(cost_row(state, shape, rounds, system.name, system.label))
    at = next(i for i, s in enumerate(SYSTEMS) if s.name.startswith("spnn-")) + 1
    rows[at:at] = [cost_row(state, shape, rounds, name, f"*{label}*") for name, label, _, _ in COMPOSED]
    lines = table(1, ["system", "wall s/epoch", "× PyTorch", "CPU s/epoch", "× PyTorch", "bytes/epoch"], rows)
    return lines + first_epochs(state, shape, rounds) + dealers(state, shape, rounds)


def cost_row(state, shape, rounds, name, label):
    got = [(figures(state, r, shape, name), base(state, r, shape)) for r in range(1, rounds + 1)]
    got = [(f, b) for f, b in got if f]
    if not got:
        return [label, brief(why_not(state, shape, name)), "–", "–", "–", "–"]
    sent = [f["bytes"] for f, _ in got if f["bytes"] is not None]
    if name == TORCH:
        sent = []
    row = [label]
    for field in ("wall", "cpu"):
        row += [spread([f[field] for f, _ in got]), times([f[field] / b[field] for f, b in got if b])]
    return [*row, size(statistics.median(sent)) if sent else "–"]


def figures(state, r, shape, name):
    """Of one round: measured, composed, or None."""
    if name == TORCH:
        return base(state, r, shape)
    for composed, _, product, _ in COMPOSED:
        if name == composed:
            part, split = state.done(r, ONCE, product), state.done(r, shape, "grpc")
            if not part or not split:
                return None
            one, batches = part["shapes"][PRODUCT_SHAPES[shape]], ROWS[shape] / BATCH[shape]
            return {field: one[field] * batches + split[field] for field in ("wall", "cpu", "bytes")}
    return state.done(r, shape, name)


def base(state, r, shape):
    runs = [run for run in (state.done(r, shape, name) for name in (TORCH, AGAIN)) if run]
    return {f: min(run[f] for run in runs) for f in ("wall", "cpu")} | {"bytes": 0} if runs else None


def why_not(state, shape, name):
    for composed, _, product, _ in COMPOSED:
        if name == composed:
            missing = [(ONCE, product), (shape, "grpc")]
            return next((state.why_not(*m) for m in missing if state.why_not(*m) != "not run"), "not run")
    return state.why_not(shape, name)


def first_epochs(state, shape, rounds):
    """What an epoch after the first does not show."""
    notes = []
    for system in SYSTEMS:
        for r in range(rounds, 0, -1):
            row = state.done(r, shape, system.name) or {}
            if "bytes_first_epoch" in row and row["bytes_first_epoch"] > row["bytes"] * 1.01:
                more = size(row["bytes_first_epoch"] - row["bytes"])
                notes.append(f"{system.label} sends {more} more in its first epoch.")
                break
    return ["", *notes] if notes else []


def dealers(state, shape, rounds):
    rows = [state.done(r, shape, "spnn-beaver") for r in range(1, rounds + 1)]
    dealt = [row["cpu_by_process"].get("coordinator", 0) for row in rows if row]
    if not dealt:
        return []
    return ["", f"Of the processor time of spnn, beaver, the dealer has {spread(dealt)} s."]


def products(state, rounds):
    lines = [
        "One multiplication of shared matrices between two parties; the processor time is that of both. Wall time is"
        " the fastest. `error` is the largest difference from the product of the same numbers in the clear.",
        "spnn, beaver: what the parties of a trained session take for a batch when it predicts, real processes over QUIC"
        " with mutual TLS, their share of H1 sent to the server; the opening of X, once a run, is not in it, as in"
        " training. Peers open both factors each time, over connections without TLS. `exact` means the product of the"
        " encoded numbers, which `tests/equivalence.rs` checks to the bit.",
    ]
    for shape in PRODUCT_SHAPES.values():
        rows = []
        for system in PRODUCTS:
            got = [
                run["shapes"][shape]
                for run in map(lambda r: state.done(r, ONCE, system.name), range(1, rounds + 1))
                if run
            ]
            if not got:
                rows.append([system.label, system.protects, brief(state.why_not(ONCE, system.name)), *["–"] * 5])
                continue
            dealer = [1e3 * g["dealer_cpu"] for g in got if "dealer_cpu" in g]
            rows.append(
                [system.label, system.protects]
                + [spread([1e3 * g[f] for g in got]) for f in ("wall", "cpu")]
                + [spread(dealer) if dealer else "not counted" if system.protects == "dealer" else "–"]
                + [size(statistics.median(g["bytes"] for g in got)), error_of(got)]
                + [times(ahead(state, rounds, shape, system.name))]
            )
        a, b, c = shape.split("x")
        header = ["system", "triples", "wall ms", "CPU ms, both", "CPU ms, dealer", "bytes", "error", "× spnn's CPU"]
        lines += ["", f"{a} × {b} by {b} × {c}:", "", *table(2, header, rows)]
    return lines + product_notes(state, rounds)


def error_of(runs):
    errors = [run["error"] for run in runs]
    return "exact" if None in errors else f"{max(errors):.2g}"


def product_notes(state, rounds):
    runs = [
        state.done(r, ONCE, name)
        for r in range(1, rounds + 1)
        for name in ("product-crypten-tfp", "product-crypten-ttp")
    ]
    runs = [run["shapes"] for run in runs if run]
    if not runs:
        return []
    clear = [
        f"{1e3 * statistics.median(run[s]['clear'] for run in runs):.3g} ms ({s})" for s in PRODUCT_SHAPES.values()
    ]
    here = "here" if "AVX-512" in vectors() else "on this processor; with AVX-512, PyTorch is faster"
    notes = [
        "CrypTen multiplies 64-bit integers by PyTorch, where one such product, unprotected and alone, takes"
        f" {' and '.join(clear)} {here}."
    ]
    if max(run[s]["error"] for run in runs for s in run) > 0.5:
        notes.append("CrypTen's error of 1 is its decoder's, which rounds some negative values to the wrong integer.")
    return ["", *notes]


def ahead(state, rounds, shape, name):
    """By how much ours takes less processor time, round by round."""
    pairs = [(state.done(r, ONCE, name), state.done(r, ONCE, OUR_PRODUCT)) for r in range(1, rounds + 1)]
    return [a["shapes"][shape]["cpu"] / b["shapes"][shape]["cpu"] for a, b in pairs if a and b]


def goal(state, options):
    lines = [
        f"The aim is that each mode is ahead of every peer that protects comparably by {GOAL} times or more. Below, a"
        " factor is the peer's seconds over those of spnn in the same round; protection is the peer's, compared with"
        " the mode's.",
        "",
    ]
    rows, reached, short, missing = [], [], [], {}
    for mode, peer_label, kind, shape, pairs in compared(state, options):
        which = f"{mode} against {peer_label.strip('*')}"
        pairs = [(a, b) for a, b in pairs if a and b]
        if not pairs:
            missing.setdefault(which, []).append(shape)
            continue
        wall, cpu = ([a[f] / b[f] for a, b in pairs] for f in ("wall", "cpu"))
        both = [statistics.median(factors) >= GOAL for factors in (wall, cpu)]
        factors = f"{number(statistics.median(wall))} by wall time, {number(statistics.median(cpu))} by processor time"
        (reached if all(both) else short).append(f"{which} ({shape}): {factors}")
        verdict = ["no", "by CPU only", "by wall time only", "yes"][2 * both[0] + both[1]]
        rows.append([mode, peer_label, kind, shape, verdict, times(wall), times(cpu)])
    if rows:
        header = ["mode", "peer", "its protection", "shape", f"{GOAL} times?", "wall factor", "CPU factor"]
        lines += [*table(5, header, rows), ""]
    lines.append(f"Pairs measured: {len(rows)}. {GOAL} times or more by wall and by processor time: {len(reached)}.")
    if short:
        lines += ["", "Not so:", "", *(f"- {text}." for text in short)]
    if missing:
        lines += [
            "",
            "Not measured, because one side has no figures:",
            "",
            *(f"- {pair} ({', '.join(shapes)})." for pair, shapes in missing.items()),
        ]
    return lines


def compared(state, options):
    """Mode, peer, the peer's protection, shape, and the figures of both, round by round."""
    labels = {s.name: s.label for s in SYSTEMS} | {name: f"*{label}*" for name, label, _, _ in COMPOSED}
    rounds = range(1, options.rounds + 1)
    for mode, peers in COMPARABLE.items():
        for name, kind in peers:
            for shape in options.shapes:
                pairs = [(figures(state, r, shape, name), figures(state, r, shape, mode)) for r in rounds]
                yield labels[mode], labels[name], kind, shape, pairs
    for system in PRODUCTS:
        for shape in (PRODUCT_SHAPES[s] for s in options.shapes if system.name != OUR_PRODUCT):
            runs = [(state.done(r, ONCE, system.name), state.done(r, ONCE, OUR_PRODUCT)) for r in rounds]
            pairs = [(a["shapes"][shape], b["shapes"][shape]) for a, b in runs if a and b]
            yield "spnn, beaver, product alone", system.label, f"triples: {system.protects}", shape, pairs


def protections():
    rows = [[s.label, s.protects, s.how] for s in (PYTORCH, *SYSTEMS)]
    at = next(i for i, row in enumerate(rows) if row[0].startswith("spnn"))
    rows[at:at] = [[f"*{label}*", protects, "composed, see above"] for _, label, _, protects in COMPOSED]
    return table(3, ["system", "what it protects", "what was run"], rows)


def absent(state, options):
    reasons = {}
    for shape in [*options.shapes, ONCE]:
        for system in PRODUCTS if shape == ONCE else [PYTORCH, *SYSTEMS]:
            if not any(state.done(r, shape, system.name) for r in range(1, options.rounds + 1)):
                what = "first-layer product" if shape == ONCE else shape
                reasons.setdefault((system.label, state.why_not(shape, system.name)), []).append(what)
    lines = [f"- {label} ({', '.join(shapes)}): {why}." for (label, why), shapes in reasons.items()]
    lines = lines or ["Everything above has figures."]
    return [
        *lines,
        "",
        "Never run by this script; what is said of them was noted earlier, not checked in this run:",
        "",
        *(f"- {text}" for text in NOT_RUN),
    ]


def brief(reason):
    return reason.split(":")[0]


def table(words, header, rows):
    """The first columns are words, the others figures."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def spread(values):
    return ranged(values, lambda v: f"{v:,.0f}" if v >= 1000 else f"{v:.3g}", "")


def times(factors):
    return ranged(factors, number, "**") if factors else "–"


def ranged(values, text, mark):
    """The median, and the range where it differs from it."""
    middle, low, high = (text(v) for v in (statistics.median(values), min(values), max(values)))
    return f"{mark}{middle}{mark}" + (f" ({low}–{high})" if low != high else "")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    main()
