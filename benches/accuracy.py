#!/usr/bin/env python3
"""Accuracy on real data: sharing, plain and pooled with the same initial weights and batches, and each party alone.

usage: python3 benches/accuracy.py [--seeds 1,2,3] [--out docs/accuracy.md]

Needs the data sets in ../shared/data beside the repository; without them it says what it skipped and exits with 1.
Every session runs as separate processes over QUIC (`spnn simulate`); `spnn pooled` is the one process it is compared
with.
"""
import argparse, json, pathlib, statistics, struct, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPNN = ROOT / "target/release/spnn"
SESSIONS = ["default_credit", "fraud", "distress"]


def simulate(session, seed, directory, *options):
    subprocess.run(
        [SPNN, "simulate", ROOT / f"benches/sessions/{session}.toml", "--seed", str(seed), "--run-dir", directory,
         "--log", "error", *options], check=True, stdout=subprocess.DEVNULL)
    return json.loads((directory / "report.json").read_text())["test"]["auc"]


def pooled(session, seed, *options):
    out = subprocess.run(
        [SPNN, "pooled", ROOT / f"benches/sessions/{session}.toml", "--seed", str(seed), "--json", *options],
        check=True, capture_output=True, text=True).stdout
    return json.loads(out)["test"]["auc"]


def weights(directory):
    """All tensors of a run, as lists of floats (safetensors: length, JSON header, raw little-endian data)."""
    tensors = {}
    for file in sorted(directory.glob("*/model.safetensors")):
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        for name, t in json.loads(raw[8:8 + length]).items():
            if name != "__metadata__":
                a, b = t["data_offsets"]
                tensors[file.parent.name, name] = struct.unpack(f"<{(b - a) // 4}f", raw[8 + length + a:8 + length + b])
    return tensors


def largest_difference(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(abs(x - y) for k in a for x, y in zip(a[k], b[k]))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seeds", default="1,2,3")
    args.add_argument("--out", default=ROOT / "docs/accuracy.md", type=pathlib.Path)
    args = args.parse_args()
    if not SPNN.exists():
        sys.exit("build first: cargo build --release")
    if not (ROOT / "../shared/data").exists():
        print("skipped: ../shared/data is not there, nothing was measured", file=sys.stderr)
        sys.exit(1)
    seeds = [int(s) for s in args.seeds.split(",")]
    lines = [
        "# Accuracy on real data", "",
        f"Made by `python3 benches/accuracy.py --seeds {args.seeds}`. Test AUC on 20 % of the rows; the split, the initial",
        "weights and the batches follow from the seed, so a column compares like with like and rows differ by their split.",
        "", "`sharing` and `plain` ran as separate processes over QUIC; `pooled` is the same network in one process on all",
        "columns. The last column is the largest difference of any trained weight between `sharing` and `plain`.", "",
        "| data set | seed | sharing | sharing, small ring | plain | pooled | party-0 alone | party-1 alone | max Δweight |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    worst = 0.0
    for session in SESSIONS:
        rows = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as tmp:
                tmp = pathlib.Path(tmp)
                sharing = simulate(session, seed, tmp / "sharing", "--first-layer", "sharing")
                small = simulate(session, seed, tmp / "small", "--first-layer", "sharing", "--ring-bits", "32")
                plain = simulate(session, seed, tmp / "plain", "--first-layer", "plain")
                delta = largest_difference(tmp / "sharing", tmp / "plain")
            whole = pooled(session, seed)
            alone = [pooled(session, seed, "--party", str(i)) for i in (0, 1)]
            worst = max(worst, abs(sharing - whole), abs(small - whole))
            row = [sharing, small, plain, whole, *alone]
            rows.append(row)
            lines.append(f"| {session} | {seed} | " + " | ".join(f"{v:.4f}" for v in row) + f" | {delta:.1e} |")
            print(lines[-1], flush=True)
        mean = [statistics.mean(c) for c in zip(*rows)]
        lines.append(f"| **{session}** | mean | " + " | ".join(f"**{v:.4f}**" for v in mean) + " | |")
        print(lines[-1], flush=True)
    lines += ["", f"Largest |AUC(sharing) − AUC(pooled)| over all runs and both rings: {worst:.5f}.", ""]
    args.out.write_text("\n".join(lines))


main()
