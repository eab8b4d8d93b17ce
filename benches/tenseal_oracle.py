#!/usr/bin/env python3
"""The same network on the same samples, encrypted by another library: `spnn encrypted` beside TenSEAL.

usage: python3 benches/tenseal_oracle.py

Evaluates examples/digits/network.safetensors on examples/digits/test.csv with TenSEAL, one sample per slot, and compares every output
with what `spnn encrypted simulate` writes, for both packings. Ends with 1 if an output differs by more than 0.01, or a
prediction at all; with 77 if TenSEAL is not installed (`pip install tenseal`). Build first: cargo build --release.
"""

import csv
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORK = ROOT / "examples/digits/network.safetensors"
SAMPLES = ROOT / "examples/digits/test.csv"
TOLERANCE = 0.01
INTEGERS = {"I8": "b", "I16": "h", "I32": "i"}


def read_network():
    content = NETWORK.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    description = json.loads(header["__metadata__"]["spnn.network"])

    def tensor(name):
        entry = header[name]
        start, end = entry["data_offsets"]
        kind = INTEGERS.get(entry["dtype"], "d")
        size = struct.calcsize(kind)
        return list(struct.unpack(f"<{(end - start) // size}{kind}", data[start:end]))

    width = description["input"]["width"]
    wide = lambda values: values * width if len(values) == 1 else values
    offset, factor = wide(tensor("input.offset")), wide(tensor("input.factor"))
    layers = []
    for number, layer in enumerate(description["layers"]):
        if "linear" in layer:
            linear = layer["linear"]
            unit = 2.0 ** linear["fraction_bits"]
            flat = tensor(f"{number}.weight")
            rows = [flat[o * linear["inputs"] : (o + 1) * linear["inputs"]] for o in range(linear["outputs"])]
            layers.append(([[w / unit for w in row] for row in rows], tensor(f"{number}.bias")))
    return offset, factor, description["input"]["max"], description["classes"], layers


def by_tenseal(ts, rows, offset, factor, largest, layers):
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[50, 40, 40, 40, 44])
    context.global_scale = 2**40
    context.generate_relin_keys()
    scaled = lambda x, i: max(-largest, min(largest, (x - offset[i]) * factor[i]))
    columns = [[scaled(row[i], i) for row in rows] for i in range(len(offset))]
    values = [ts.ckks_vector(context, column) for column in columns]
    for number, (weights, bias) in enumerate(layers):
        if number > 0:
            values = [x * x for x in values]
        outputs = []
        for row, b in zip(weights, bias):
            products = [x * w for x, w in zip(values, row) if w != 0]
            total = products[0]
            for product in products[1:]:
                total += product
            outputs.append(total + b)
        values = outputs
    return list(zip(*(x.decrypt() for x in values)))


def by_spnn(*more):
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = [ROOT / "target/release/spnn", "encrypted", "simulate", NETWORK, "--data", SAMPLES, "--id", "id"]
        subprocess.run([*command, "--run-dir", run_dir, *more], check=True, stdout=subprocess.DEVNULL)
        with open(run_dir / "party-0/scores.csv") as file:
            return list(csv.DictReader(file))


def main():
    try:
        import tenseal as ts
    except ModuleNotFoundError:
        print("skipped: TenSEAL is not installed", file=sys.stderr)
        return 77
    offset, factor, largest, classes, layers = read_network()
    with open(SAMPLES) as file:
        rows = [[float(row[f"p{i}"]) for i in range(len(offset))] for row in csv.DictReader(file)]
    theirs = by_tenseal(ts, rows, offset, factor, largest, layers)
    failed = False
    for packing, more in (("a sample per slot", []), ("one sample", ["--one-sample"])):
        ours = by_spnn(*more)
        difference = max(abs(float(o[c]) - t[i]) for o, t in zip(ours, theirs) for i, c in enumerate(classes))
        differ = sum(o["predicted"] != classes[max(range(len(t)), key=t.__getitem__)] for o, t in zip(ours, theirs))
        print(f"{packing}: {len(ours)} samples, largest difference {difference:.1e}, {differ} predictions differ")
        failed |= difference > TOLERANCE or differ > 0 or len(ours) != len(theirs)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
