#!/usr/bin/env python3
"""What checkpoints cost: epochs of the fraud shape with few, many and no checkpoints, in one run.

    cargo build --release
    python3 benches/checkpoints.py [--before BINARY]        # writes docs/checkpoints.md, about a minute

BINARY is an spnn from before there were checkpoints, for example of commit a42c064; without it that row is left out.
An epoch's time is the slope between a short and a long run, so that starting and joining are not in it and everything
else is: evaluation, checkpoints, reports.
"""

import argparse
import csv
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHORT, LONG = 10, 110


def write_rows(file):
    """Synthetic rows of the paper's fraud shape: what a step costs depends on the sizes, not on the values."""
    numbers = random.Random(7)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["y"] + [f"x{i}" for i in range(28)])
        for _ in range(227_845):
            rows.writerow([numbers.randrange(2)] + [f"{numbers.gauss(0, 1):.4f}" for _ in range(28)])


def session(data):
    return (ROOT / "benches/sessions/fraud_shape.toml").read_text().replace("../../target/speed/fraud.csv", str(data))


def run(binary, data, every, epochs, directory):
    """Wall and processor seconds of a whole session."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    file = directory / "asked.toml"
    file.write_text(session(data))
    run_dir = directory / "run"
    command = [binary, "simulate", file, "--epochs", str(epochs), "--run-dir", run_dir]
    command += [] if every is None else ["--checkpoint-every-s", str(every)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((run_dir / "report.json").read_text())
    return report["wall_seconds"], sum(report["cpu_seconds"].values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target/release/spnn")
    parser.add_argument("--before", help="an spnn without checkpoints")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/checkpoints.md")
    args = parser.parse_args()

    data = ROOT / "target/speed/fraud.csv"
    if not data.exists():
        write_rows(data)
    variants = [("every 10 s, the default", args.binary, 10), ("every second", args.binary, 1),
                ("after every second batch, 23 an epoch", args.binary, 0)]
    if args.before:
        variants.insert(0, ("none: spnn before it had checkpoints", args.before, None))
    scratch = Path(tempfile.mkdtemp(dir=ROOT / "target"))
    seen = {name: [] for name, _, _ in variants}
    try:
        for turn in range(args.rounds):
            # Everyone is first in turn, so that a busy machine is busy for all.
            for i in range(len(variants)):
                name, binary, every = variants[(turn + i) % len(variants)]
                short, long = (run(binary, data, every, n, scratch / "session") for n in (SHORT, LONG))
                seen[name].append([(b - a) / (LONG - SHORT) for a, b in zip(short, long)])
                print(f"round {turn + 1}  {name}: {seen[name][-1][0] * 1e3:.1f} ms an epoch", flush=True)
    finally:
        shutil.rmtree(scratch)

    first = variants[0][0]
    lines = []
    for name, _, _ in variants:
        wall, cpu = ([x[i] for x in seen[name]] for i in (0, 1))
        pairs = list(zip(seen[name], seen[first]))
        ratios = [sorted(a[i] / b[i] for a, b in pairs) for i in (0, 1)]
        cells = [f"{statistics.median(r):.3f} ({r[0]:.2f}–{r[-1]:.2f})" for r in ratios]
        lines.append(f"| {name} | {statistics.median(wall) * 1e3:.1f} | {min(wall) * 1e3:.1f} | {cells[0]} "
                     f"| {statistics.median(cpu) * 1e3:.1f} | {cells[1]} |")
    table = "\n".join(lines)
    load = os.getloadavg()[1]
    args.out.write_text(f"""# What checkpoints cost

Written by `python3 benches/checkpoints.py{" --before BINARY" if args.before else ""}`; {args.rounds} rounds, {SHORT} and
{LONG} epochs each. The fraud shape: 227,845 rows, 28 → 8 → 8 → 1, batches of 5,000, two parties, `sharing`, four
processes on one machine. An epoch is the slope between a short and a long run. Ratios are to the first row in the same
round: the median, and in brackets the lowest and the highest. The load of the machine at the end was {load:.1f}.

| checkpoints | ms an epoch, median | lowest | wall, ratio | processor ms an epoch, all roles | processor, ratio |
| --- | ---: | ---: | ---: | ---: | ---: |
{table}

Server and parties write theirs in the background while the next batch is trained; a role waits for its disk only before
the batch after that. The last row waits every time: it is the price of two `fsync`s at three roles. There is no outbox
to pay for
([decision 10](decisions/0010-one-way-back-into-a-session.md)).
""")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
