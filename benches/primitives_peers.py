#!/usr/bin/env python3
"""CKKS primitives beside SEAL (as TenSEAL has it), OpenFHE and `fhe` (BFV), in one run.

usage: python3 benches/primitives_peers.py [--rounds R] [--seconds S] [--python P] [--python-openfhe P]
                                           [--output docs/ckks-figures.md]

The peers are optional: what is missing gets a row that says so. P is a Python with TenSEAL (`pip install tenseal`) or OpenFHE
(`pip install openfhe`, for CPython 3.10). `fhe` is benches/fhe_peer, a workspace of its own. Systems take turns, one thread
each; a figure is the fastest of all rounds, in milliseconds of processor time of the process.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Dimension: bits of the primes of a ciphertext; of P here, in SEAL (which has one) and digits of a key here and in OpenFHE.
SHAPES = {
    8192: ([48] + [40] * 3, [46], [46], 4),
    16384: ([50] + [40] * 7, [50, 50], [50], 4),
    32768: ([50] + [40] * 16, [44, 44, 44, 46], [50], 5),
}
OPERATIONS = ["product", "relinearize", "rescale", "rotate"]


# The peers in Python: `--measure NAME N SECONDS` in a process of their own prints a line of JSON.


def fastest(seconds, work):
    start, best = time.process_time(), float("inf")
    while time.process_time() - start < seconds:
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return best * 1e3


def measure_seal(n, seconds):
    import tenseal
    from tenseal import sealapi as seal

    limbs, _, special, _ = SHAPES[n]
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(n)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(n, limbs + special))
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    generator = seal.KeyGenerator(context)
    public, key, rotations = seal.PublicKey(), seal.RelinKeys(), seal.GaloisKeys()
    generator.create_public_key(public)
    generator.create_relin_keys(key)
    generator.create_galois_keys([3], rotations)  # X -> X^3 turns by one
    plain, x, square = seal.Plaintext(), seal.Ciphertext(), seal.Ciphertext()
    seal.CKKSEncoder(context).encode([0.1] * (n // 2), 2.0**40, plain)
    seal.Encryptor(context, public, generator.secret_key()).encrypt(plain, x)
    evaluator = seal.Evaluator(context)
    evaluator.multiply(x, x, square)
    evaluator.relinearize_inplace(square, key)

    def relinearized():
        y = seal.Ciphertext()
        evaluator.multiply(x, x, y)
        evaluator.relinearize_inplace(y, key)

    return {
        "version": f"TenSEAL {tenseal.__version__}",
        "product": fastest(seconds, lambda: evaluator.multiply(x, x, seal.Ciphertext())),
        "relinearize": fastest(seconds, relinearized),
        "rescale": fastest(seconds, lambda: evaluator.rescale_to_next(square, seal.Ciphertext())),
        "rotate": fastest(seconds, lambda: evaluator.rotate_vector(x, 1, rotations, seal.Ciphertext())),
    }


def measure_openfhe(n, seconds):
    import openfhe
    from importlib.metadata import version

    limbs, _, _, digits = SHAPES[n]
    parameters = openfhe.CCParamsCKKSRNS()
    parameters.SetMultiplicativeDepth(len(limbs) - 1)
    parameters.SetFirstModSize(limbs[0])
    parameters.SetScalingModSize(limbs[1])
    parameters.SetRingDim(n)
    parameters.SetBatchSize(n // 2)
    parameters.SetScalingTechnique(openfhe.ScalingTechnique.FIXEDMANUAL)
    parameters.SetKeySwitchTechnique(openfhe.KeySwitchTechnique.HYBRID)
    parameters.SetNumLargeDigits(digits)
    # It chooses the primes of P, and may choose more of them than 128 bits of security allow.
    parameters.SetSecurityLevel(openfhe.SecurityLevel.HEStd_NotSet)
    context = openfhe.GenCryptoContext(parameters)
    for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE"):
        context.Enable(getattr(openfhe.PKESchemeFeature, feature))
    keys = context.KeyGen()
    context.EvalMultKeyGen(keys.secretKey)
    context.EvalRotateKeyGen(keys.secretKey, [1])
    x = context.Encrypt(keys.publicKey, context.MakeCKKSPackedPlaintext([0.1] * (n // 2)))
    square = context.EvalMult(x, x)
    return {
        "version": f"openfhe {version('openfhe')}",
        "product": fastest(seconds, lambda: context.EvalMultNoRelin(x, x)),
        "relinearize": fastest(seconds, lambda: context.EvalMult(x, x)),
        "rescale": fastest(seconds, lambda: context.Rescale(square)),
        "rotate": fastest(seconds, lambda: context.EvalRotate(x, 1)),
    }


MEASURES = {"seal": measure_seal, "openfhe": measure_openfhe}


# The run.


def by_python(name, python):
    return lambda n, seconds: [python, __file__, "--measure", name, str(n), str(seconds)]


def ours(n, seconds):
    cargo = ["cargo", "bench", "-q", "--manifest-path", str(ROOT / "Cargo.toml"), "-p", "spnn-ckks"]
    return [*cargo, "--bench", "primitives", "--", f"n{n}", str(seconds)]


def fhe(n, seconds):
    cargo = ["cargo", "run", "-q", "--release", "--manifest-path", str(ROOT / "benches/fhe_peer/Cargo.toml"), "--"]
    return [*cargo, str(n), str(seconds), ",".join(map(str, SHAPES[n][0]))]


def run(command):
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    except FileNotFoundError:
        return "not installed"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return "not installed" if "ModuleNotFoundError" in last else "failed: " + last.rsplit("/", 1)[-1]


def main():
    if sys.argv[1:2] == ["--measure"]:
        name, n, seconds = sys.argv[2:]
        return print(json.dumps(MEASURES[name](int(n), float(seconds))))
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each operation in each round")
    parser.add_argument("--python", default=sys.executable, help="a Python with TenSEAL")
    parser.add_argument("--python-openfhe", default=sys.executable, help="a Python with OpenFHE")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/ckks-figures.md")
    options = parser.parse_args()
    systems = {
        "spnn-ckks": ours,
        "SEAL": by_python("seal", options.python),
        "OpenFHE": by_python("openfhe", options.python_openfhe),
        "fhe (BFV)": fhe,
    }
    started, loads = date(), [os.getloadavg()[0]]
    results = {}
    for number in range(options.rounds):
        for n in SHAPES:
            for name, command in systems.items():
                got = run(command(n, options.seconds))
                print(number, n, name, got, file=sys.stderr, flush=True)
                results.setdefault((n, name), []).append(got)
        loads.append(os.getloadavg()[0])
    options.output.write_text(page(results, list(systems), options, started, loads))
    print(options.output.read_text())


def date():
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def page(results, names, options, started, loads):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX2 nor AVX-512"
    compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.split()[1]
    versions = sorted({r["version"] for runs in results.values() for r in runs if isinstance(r, dict) and "version" in r})
    versions = ", ".join([f"rustc {compiler}", f"Python {platform.python_version()}", *versions, "fhe 0.1.1"])
    lines = [
        "# CKKS: figures",
        "",
        f"Made by `python3 benches/primitives_peers.py --rounds {options.rounds} --seconds {options.seconds}` from {started} to"
        f" {date()}; that file says what is measured",
        f"and how to install the peers. {os.cpu_count()} cores, {vectors}, load {min(loads):.1f} to {max(loads):.1f};"
        f" {versions}.",
        "",
        "Milliseconds of processor time, one thread, fastest of all rounds, systems in turn; in brackets, how many times ours that"
        " is. Ciphertexts have all their primes.",
        "",
    ]
    for n, (limbs, special, seal_special, digits) in SHAPES.items():
        lines += [
            f"## n = {n:,}",
            "",
            f"A ciphertext has {len(limbs)} primes, {sum(limbs)} bits. For key switching: ours {len(special)} more and {digits}"
            f" digits; SEAL {len(seal_special)} and {len(limbs)} digits; OpenFHE {digits} digits, its own choice of primes.",
            "",
            "| library | product | product + relinearise | rescale | rotate |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        best = {name: fastest_of(results[n, name]) for name in names}
        for name, figures in best.items():
            if isinstance(figures, str):
                lines.append(f"| {name} | {figures} | | | |")
                continue
            own = best[names[0]]
            ratio = lambda key: "" if figures is own or isinstance(own, str) else f" ({figures[key] / own[key]:.1f}×)"
            cells = [f"{figures[key]:.2f}{ratio(key)}" if key in figures else "–" for key in OPERATIONS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "- SEAL is the one inside TenSEAL, called through its `sealapi`, without TenSEAL's own work around it.",
        "- `fhe` computes exactly, on integers: its product is more work than one of CKKS, its rotation the same kind.",
        "",
    ]
    return "\n".join(lines)


def fastest_of(runs):
    """Of each operation; or why there is none."""
    good = [r for r in runs if isinstance(r, dict)]
    if not good:
        return runs[0]
    return {key: min(r[key] for r in good) for key in OPERATIONS if key in good[0]}


if __name__ == "__main__":
    main()
