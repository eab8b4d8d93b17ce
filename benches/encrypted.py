#!/usr/bin/env python3
"""CryptoNets on MNIST: `spnn encrypted`, two processes over QUIC, beside TenSEAL and `fhe` in the same layout, in one run.

usage: python3 benches/encrypted.py --data DIR [--rounds R] [--seconds S] [--python P] [--output docs/encrypted-figures.md]

DIR has MNIST's t10k files. Build first: cargo build --release. Each round asks about all 10,000 test images, encrypted, and
compares every answer with the network in the clear; then the peers take their turn. The peers do not run the whole network, which
would take hours: they are timed on its two steps (add a ciphertext times a weight; square and relinearise), on one thread, and
that times the number of steps is what stands in the table. P is a Python with TenSEAL (`pip install tenseal`); `fhe` is
benches/fhe_peer, a workspace of its own. What is missing gets a row that says so.
"""

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORK = ROOT / "examples/mnist/network.safetensors"
SAMPLES = 10_000
FEW = 200
ROLES = {"server": "server", "client": "party-0"}

# Products of a weight and a ciphertext: 13 x 13 windows of up to 5 x 5 pixels (64 rows and columns of taps lie within the image)
# for 5 maps, 845 x 100, 100 x 10. Squares: 845 and 100.
WEIGHTED = {"first": 64 * 64 * 5, "second": 84_500, "third": 1_000}
SQUARES = {"first": 845, "second": 100}


def fastest(seconds, work):
    start, best = time.process_time(), float("inf")
    while time.process_time() - start < seconds:
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return best


def measure_tenseal(seconds):
    import tenseal as ts

    # Five steps of depth: three weights, two squares. 210 bits, 128-bit security at n = 8,192.
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[40, 26, 26, 26, 26, 26, 40])
    context.global_scale = 2**26
    context.generate_relin_keys()
    x = ts.ckks_vector(context, [0.5] * 4096)
    total = 0.0
    for layer in ("first", "second", "third"):
        sum_ = x * 0.3

        def weighted():
            nonlocal sum_
            sum_ += x * 0.3

        total += fastest(seconds, weighted) * WEIGHTED[layer]
        x = x * 0.3
        if layer in SQUARES:
            total += fastest(seconds, lambda: x * x) * SQUARES[layer]
            x = x * x
    return {"version": f"TenSEAL {ts.__version__}", "seconds": total, "batch": 4096}


def fhe(seconds):
    cargo = ["cargo", "run", "-q", "--release", "--manifest-path", str(ROOT / "benches/fhe_peer/Cargo.toml"), "--"]
    got = run([*cargo, "layers", str(seconds), "54,54,54,54"])
    if isinstance(got, str):
        return got
    total = got["weighted"] * sum(WEIGHTED.values()) + got["square"] * sum(SQUARES.values())
    return {"version": "fhe 0.1.1", "seconds": total / 1e3, "batch": got["batch"]}


def run(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    except FileNotFoundError:
        return "not installed"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return "not installed" if "ModuleNotFoundError" in last else "failed: " + last.rsplit("/", 1)[-1]


def ours(data):
    images, labels = data / "t10k-images-idx3-ubyte.gz", data / "t10k-labels-idx1-ubyte.gz"
    many = simulate(images, labels)
    assert many["client"]["samples"] == many["server"]["samples"] == SAMPLES
    with tempfile.TemporaryDirectory() as directory:
        few = Path(directory) / "few-idx3-ubyte", Path(directory) / "few-idx1-ubyte"
        for source, target, header in ((images, few[0], 16), (labels, few[1], 8)):
            content = gzip.decompress(source.read_bytes())
            size = (len(content) - header) // SAMPLES
            target.write_bytes(content[:4] + FEW.to_bytes(4, "big") + content[8 : header + FEW * size])
        one = [simulate(*few, "--one-sample")]
        # The same with half as many: what a sample takes is the difference, without start, keys and preparation.
        for target, header in zip(few, (16, 8)):
            content = target.read_bytes()
            size = (len(content) - header) // FEW
            target.write_bytes(content[:4] + (FEW // 2).to_bytes(4, "big") + content[8 : header + FEW // 2 * size])
        one.append(simulate(*few, "--one-sample"))
    return many | {"one": one}


def simulate(images, labels, *more):
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = [ROOT / "target/release/spnn", "encrypted", "simulate", NETWORK, "--data", images, "--labels", labels]
        command += ["--compare", NETWORK, "--run-dir", run_dir, *more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {name: json.loads((run_dir / role / "report.json").read_text()) for name, role in ROLES.items()}


def main():
    if sys.argv[1:2] == ["--measure-tenseal"]:
        return print(json.dumps(measure_tenseal(float(sys.argv[2]))))
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each step of a peer in each round")
    parser.add_argument("--python", default=sys.executable, help="a Python with TenSEAL")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/encrypted-figures.md")
    options = parser.parse_args()
    started, loads, rounds = date(), [os.getloadavg()[0]], []
    for number in range(options.rounds):
        rounds.append({
            "spnn": ours(options.data),
            "TenSEAL": run([options.python, __file__, "--measure-tenseal", str(options.seconds)]),
            "fhe (BFV)": fhe(options.seconds),
        })
        print(number, json.dumps(rounds[-1]), file=sys.stderr, flush=True)
        loads.append(os.getloadavg()[0])
    options.output.write_text(page(rounds, options, started, loads))
    print(options.output.read_text())


def date():
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def page(rounds, options, started, loads):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX2 nor AVX-512"
    mine = [r["spnn"] for r in rounds]
    hour = lambda seconds, samples=SAMPLES: samples / seconds * 3600 / 1e6
    server = min(r["server"]["cpu_seconds"] for r in mine)
    client = min(r["client"]["cpu_seconds"] for r in mine)
    wall = min(r["client"]["seconds"] for r in mine)
    last = mine[-1]["client"]
    mib = lambda role: max(r[role]["peak_rss_bytes"] for r in mine) / 2**20
    ahead = lambda r, role, key: (r["one"][0][role][key] - r["one"][1][role][key]) / (FEW - FEW // 2)
    each = lambda role, key: min(ahead(r, role, key) for r in mine) * (1e-3 if key.startswith("bytes") else 1e3)
    whole = mine[-1]["one"][0]["client"]
    keys = whole["bytes_up"] - FEW * ahead(mine[-1], "client", "bytes_up")
    peers = {name: [r[name] for r in rounds] for name in ("TenSEAL", "fhe (BFV)")}
    good = {name: [g for g in got if isinstance(g, dict)] for name, got in peers.items()}
    versions = ", ".join([f"Python {platform.python_version()}"] + [g[0]["version"] for g in good.values() if g])
    lines = [
        "# Encrypted queries: figures",
        "",
        f"Made by `python3 benches/encrypted.py --data DIR --rounds {options.rounds} --seconds {options.seconds}` from {started}",
        f"to {date()}; that file says what is measured. {os.cpu_count()} cores, {vectors}, load {min(loads):.1f} to"
        f" {max(loads):.1f}; {versions}.",
        "",
        f"CryptoNets' network, examples/mnist/network.safetensors, on the {SAMPLES:,} test images of MNIST; server and client are two"
        " processes",
        "over QUIC on one machine. Processor time is that of the whole process: start, reading of files, TLS and ciphertexts"
        " included.",
        "Best of all rounds.",
        "",
        "| what | figure |",
        "| --- | ---: |",
        f"| encrypted | {max(r['client']['score'] for r in mine)} |",
        f"| predictions that differ from the network in the clear, all rounds | {sum(r['client']['different'] for r in mine)} |",
        f"| largest difference of an output | {max(r['client']['difference_max'] for r in mine):.1e} |",
        f"| predictions an hour, end to end | {hour(wall):.1f} million |",
        f"| predictions an hour and core, server | {hour(server):.1f} million |",
        f"| predictions an hour and core, client | {hour(client):.1f} million |",
        f"| an image up, down | {last['bytes_up'] / SAMPLES / 1e3:.1f} kB, {last['bytes_down'] / SAMPLES / 1e3:.2f} kB |",
        f"| peak memory, server, client | {mib('server'):.0f} MiB, {mib('client'):.0f} MiB |",
        "",
        "## One image at a time",
        "",
        f"`packing = \"one-sample\"`, the first {FEW} test images. What an image takes is what {FEW} take beyond what {FEW // 2} take: without"
        " start, keys and",
        "preparation of the weights.",
        "",
        "| what | figure |",
        "| --- | ---: |",
        f"| server, processor time an image | {each('server', 'cpu_seconds'):.0f} ms |",
        f"| client, processor time an image | {each('client', 'cpu_seconds'):.0f} ms |",
        f"| from an image to its answer, one after the other as fast as they come | {each('client', 'seconds'):.0f} ms |",
        f"| predictions that differ from the network in the clear | {sum(r['one'][0]['client']['different'] for r in mine)} |",
        f"| largest difference of an output | {max(r['one'][0]['client']['difference_max'] for r in mine):.1e} |",
        f"| an image up, down | {each('client', 'bytes_up'):.0f} kB, {each('client', 'bytes_down'):.0f} kB |",
        f"| keys, once | {keys / 1e6:.1f} MB |",
        "",
        "## Beside others in the same layout",
        "",
        "One sample per slot, server only, one core. The peers' steps are timed, and multiplied by how many there are; nothing that"
        " they",
        "do besides is counted. Ratios are of the same round: lowest to highest.",
        "",
        "| implementation | batch | server s a batch | predictions an hour and core | spnn is faster by |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| spnn | 2,048 | {server / SAMPLES * 2048:.2f} | {hour(server):.2f} million | |",
    ]
    for name, got in peers.items():
        if not good[name]:
            lines.append(f"| {name} | {got[0]} | | | |")
            continue
        batch, seconds = good[name][0]["batch"], min(g["seconds"] for g in good[name])
        ratios = [
            r[name]["seconds"] / r[name]["batch"] / (r["spnn"]["server"]["cpu_seconds"] / SAMPLES)
            for r in rounds
            if isinstance(r[name], dict)
        ]
        lines.append(
            f"| {name} | {batch:,} | {seconds:.0f} | {hour(seconds, batch) * 1e3:.0f} thousand"
            f" | {min(ratios):.0f} to {max(ratios):.0f} × |"
        )
    lines += ["", "CryptoNets reported 59,000 predictions an hour on a PC of 2016 (ICML 2016, section 5).", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
