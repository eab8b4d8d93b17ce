#!/usr/bin/env python3
"""Paillier: the engine beside naive paillier-common, phe and HEU in one run, and whole epochs beside sharing and plain.

usage: python3 benches/paillier.py [--out docs/paillier.md] [--quick]

The engine's own figures come from `cargo bench -p spnn-crypto --bench paillier`, which also measures paillier-common
used plainly. phe (with gmpy2) and HEU are measured here if this Python has them (`pip install phe gmpy2 sf-heu`); what is
not there is named as skipped. Epochs are `spnn simulate` on the synthetic shapes that benches/speed.py writes.
"""
import argparse, json, os, pathlib, platform, random, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPNN = ROOT / "target/release/spnn"


def per_second(work, n, repetitions=3):
    best = float("inf")
    for _ in range(repetitions):
        started = time.process_time()
        work()
        best = min(best, (time.process_time() - started) / n)
    return 1 / best


def phe_rows():
    from phe import paillier
    import phe
    for bits in (2048, 3072):
        public, secret = paillier.generate_paillier_keypair(n_length=bits)
        values = [random.uniform(-100, 100) for _ in range(10)]
        boxes = [public.encrypt(v) for v in values]
        sums = [a + b for a, b in zip(boxes, boxes)]
        assert all(abs(secret.decrypt(s) - 2 * v) < 1e-9 for s, v in zip(sums, values))
        yield (f"phe {phe.__version__}, {bits}", per_second(lambda: [public.encrypt(v) for v in values], 10),
               per_second(lambda: [a + b for a, b in zip(boxes, boxes)], 10),
               per_second(lambda: [secret.decrypt(s) for s in sums], 10), 2 * bits // 8)


def heu_rows():
    import numpy as np
    from heu import numpy as hnp, phe
    for scheme in ("ZPaillier", "OU"):
        for bits in (2048, 3072):
            kit = hnp.setup(getattr(phe.SchemaType, scheme), bits)
            n = 200
            plain = kit.array(np.random.randint(-2**31, 2**31, size=(n,)), phe.IntegerEncoderParams())
            boxes = kit.encryptor().encrypt(plain)
            sums = kit.evaluator().add(boxes, boxes)
            yield (f"HEU {scheme}, {bits}", per_second(lambda: kit.encryptor().encrypt(plain), n),
                   per_second(lambda: kit.evaluator().add(boxes, boxes), n),
                   per_second(lambda: kit.decryptor().decrypt(sums), n), len(sums.serialize()) / n)


def peers():
    lines = ["| system, key bits | encrypted/s | added/s | decrypted/s | bytes/value |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, rows in (("phe", phe_rows), ("HEU", heu_rows)):
        try:
            for label, e, a, d, size in rows():
                lines.append(f"| {label} | {e:,.0f} | {a:,.0f} | {d:,.0f} | {size:,.0f} |")
                print(lines[-1], flush=True)
        except Exception as why:  # a missing or broken peer must not hide the others
            lines.append(f"| {name}: skipped, {type(why).__name__}: {str(why)[:80]} | | | | |")
            print(lines[-1], flush=True)
    return lines


def epoch(shape, first_layer):
    with tempfile.TemporaryDirectory() as tmp:
        run = pathlib.Path(tmp) / "run"
        epochs = "1" if first_layer == "paillier" else "3"
        subprocess.run([SPNN, "simulate", ROOT / f"benches/sessions/{shape}_shape.toml", "--first-layer", first_layer,
                        "--epochs", epochs, "--run-dir", run, "--log", "error"], check=True, stdout=subprocess.DEVNULL)
        record = json.loads((run / "report.json").read_text())
    last = record["epochs"][-1]
    return last["seconds"], last["cpu_seconds"], last["bytes_sent"]


def epochs():
    lines = ["| shape | first layer | s/epoch | CPU s: server | party-0 | party-1 | MB sent: server | party-0 | party-1 |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for shape in ("fraud", "distress"):
        if not (ROOT / f"target/speed/{shape}.csv").exists():
            lines.append(f"| {shape} | skipped: run benches/speed.py first, it writes target/speed/{shape}.csv | | | | | | | |")
            continue
        for first_layer in ("plain", "sharing", "paillier"):
            seconds, cpu, sent = epoch(shape, first_layer)
            roles = ("server", "party-0", "party-1")
            lines.append(f"| {shape} | {first_layer} | {seconds:.3g} | " + " | ".join(f"{cpu[r]:.3g}" for r in roles)
                         + " | " + " | ".join(f"{sent[r] / 1e6:.1f}" for r in roles) + " |")
            print(lines[-1], flush=True)
    return lines


def auc(session, first_layer, epochs, directory):
    subprocess.run([SPNN, "simulate", ROOT / f"benches/sessions/{session}.toml", "--first-layer", first_layer, "--epochs",
                    str(epochs), "--run-dir", directory, "--log", "error"], check=True, stdout=subprocess.DEVNULL)
    models = [file.read_bytes() for file in sorted(directory.glob("*/model.safetensors"))]
    return json.loads((directory / "report.json").read_text())["test"]["auc"], models


def accuracy():
    lines = ["| data set | epochs | sharing: AUC | paillier: AUC | all weights |", "| --- | ---: | ---: | ---: | --- |"]
    if not (ROOT / "../shared/data").exists():
        return ["Skipped: ../shared/data is not there."]
    for session, n in (("fraud", 10), ("default_credit", 20), ("distress", 6)):
        with tempfile.TemporaryDirectory() as tmp:
            (a, ours), (b, theirs) = (auc(session, f, n, pathlib.Path(tmp) / f) for f in ("sharing", "paillier"))
        same = "the same bits" if ours == theirs else "differ"
        lines.append(f"| {session} | {n} | {a:.5f} | {b:.5f} | {same} |")
        print(lines[-1], flush=True)
    return lines


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", default=ROOT / "docs/paillier.md", type=pathlib.Path)
    args.add_argument("--quick", action="store_true", help="fewer sizes of the engine's own bench")
    args = args.parse_args()
    if not SPNN.exists():
        sys.exit("build first: cargo build --release")
    engine = subprocess.run(["cargo", "bench", "-q", "-p", "spnn-crypto", "--bench", "paillier"]
                            + (["--", "quick"] if args.quick else []), cwd=ROOT, check=True, capture_output=True, text=True)
    print(engine.stdout, flush=True)
    lines = ["# Paillier: speed", "", "Made by `python3 benches/paillier.py" + (" --quick" if args.quick else "") + "`, all in one run.",
             f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}.", "",
             "## The engine", "", "Values per second of process CPU time (two threads: by the clock); `direct` look-ups are not the default.", "",
             "```", engine.stdout.strip(), "```", "", "## Peers, one value per ciphertext as they are used", "", *peers(), "",
             "## One epoch, all roles on one machine", "",
             "3072-bit key, 48-bit values, constant-time look-ups.", "", *epochs(), "",
             "## Accuracy beside sharing", "", "Same seed, few epochs; both protocols open the same integers.", "", *accuracy(), ""]
    args.out.write_text("\n".join(lines))


main()
