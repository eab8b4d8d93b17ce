#!/usr/bin/env python3
"""What organisations meet before and around training: files that do not match, raw tables, large ones, changed bytes.

usage: python3 benches/organisations.py [--only PARTS] [--quick] [--seeds 1,2,3,4,5]
           [--spnn FILE] [--python-spu P] [--python-psi P] [--python-arrow P] [--out docs/organisations.md]

PARTS, separated by commas: unaligned, inspect, tampering, alignment, psi, audit, twenty-million. Every part goes at once to
a JSON file beside the page, which is written anew from all that is there; without a part of that name, only the page is.
Needs the data sets in ../shared/data; SPU, openmined-psi and pyarrow are optional, and the page says what was not there.
"""
import argparse, csv, hashlib, json, os, platform, random, re, resource, shlex, shutil, signal, socket, statistics, subprocess
import sys, tempfile, time, traceback, unicodedata
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
PARTS = ["unaligned", "inspect", "tampering", "alignment", "psi", "audit", "twenty-million"]
LIMIT_S = 1500
LABEL = "default.payment.next.month"


class Failed(Exception):
    """Why a part has no figures."""


# Processes.


class Ended:
    """How a process ended: exit code, what it said, seconds, processor seconds, largest resident set in bytes."""

    def __init__(self, code, said, seconds, usage, rss):
        self.code, self.said, self.seconds, self.rss = code, said, seconds, rss
        self.cpu = usage.ru_utime + usage.ru_stime


def peak_rss(pid):
    """Largest resident set so far. What wait4 says of it starts with that of this script, which a child is a copy of."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def wait_all(started, limit_s=LIMIT_S):
    """Waits for processes (name -> (Popen, log file, start)); what is left at the end of the limit is killed."""
    ended, left, deadline = {}, dict(started), time.monotonic() + limit_s
    rss, looked = dict.fromkeys(started, 0), 0.0
    while left:
        look = time.monotonic() - looked > 0.1
        looked = time.monotonic() if look else looked
        for name, (child, log, begun) in list(left.items()):
            if look:
                rss[name] = max(rss[name], peak_rss(child.pid))
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                ended[name] = Ended(child.returncode, log.read_text(errors="replace"), time.monotonic() - begun, usage,
                                    rss[name])
                del left[name]
            elif time.monotonic() > deadline:
                child.kill()
        time.sleep(0.01)
    return ended


def start(command, log):
    with open(log, "w") as out:
        child = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    return child, Path(log), time.monotonic()


def run(command, limit_s=LIMIT_S):
    with tempfile.TemporaryDirectory() as tmp:
        return wait_all({"": start(command, Path(tmp) / "log")}, limit_s)[""]


def must(command, limit_s=LIMIT_S):
    ended = run(command, limit_s)
    if ended.code != 0:
        raise Failed(f"{' '.join(Path(str(c)).name for c in command[:3])} ended with {ended.code}: {ended.said[-600:]}")
    return ended


def error_of(said):
    """The error in what a role said, without the names of this machine's directories."""
    at = said.rfind("error: ")
    text = said[at:] if at >= 0 else said[-300:]
    return plain(text.split("\n  log:")[0].strip())


def plain(text):
    """Without directories: a message names whole paths, of which the page keeps the last parts."""
    text = re.sub(r"/(?:[\w.+-]+/)*?((?:[\w.+-]+/)?[\w.+-]+)(?=[\s:,;'\"]|$)", r"\1", text.replace("/./", "/"))
    return re.sub(r"spnn-organisations-\w+/", "", text)


def telling(said):
    """Of several complaints, the first that names a file and what is wrong in it, and how many more there are."""
    lines = [line.removeprefix("error: ") for line in said.splitlines() if re.match(r"(wrong|error|[a-z]+-?\d*): ", line)]
    wrong = [line for line in lines if line.startswith("wrong: ")]
    named = wrong or [line for line in lines if re.search(r"/[\w.-]+\.(safetensors|json|jsonl|toml|sig)\b", line)]
    if not named:
        return error_of(said).removeprefix("error: ")
    more = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
    rest = said[said.index(named[0]) + len(named[0]):].split("\nwrong: ")[0].split("\nerror: ")[0].split("\n  log:")[0]
    rest = "" if wrong else " " + " ".join(line.strip() for line in rest.splitlines() if not line.startswith("hint"))
    return plain(named[0] + rest.rstrip()) + more


class Roles:
    """A session's roles as processes of their own, with certificates, as organisations start them."""

    def __init__(self, spnn, directory, session, parties, audit=None, contract=None):
        """`parties`: a [data] table of each, as TOML. `session`: the text, or one for each role by name."""
        self.spnn, self.directory = spnn, directory
        self.names = ["coordinator", "server", *(f"party-{i}" for i in range(len(parties)))]
        must([spnn, "pki", "init", "--dir", directory / "pki"])
        pins = {}
        for name in self.names:
            said = must([spnn, "pki", "issue", "--role", name, "--dir", directory / "pki", "--out", directory / name]).said
            pins[name] = said.split()[-1]
        self.configs = {}
        for name in self.names:
            own = session[name] if isinstance(session, dict) else session
            (directory / name / "session.toml").write_text(own)
            lines = [f'session = "{contract or "session.toml"}"', f'certificate = "{name}.pem"', f'key = "{name}.key"',
                     'authority = "../pki/ca.pem"', "rejoin_timeout_s = 0.0", "join_timeout_s = 60.0",
                     "transport = { mtu_max = 60000 }"]
            if audit is not None:
                lines.append(f"audit = {str(audit).lower()}")
            if name.startswith("party-"):
                lines.append("data = " + parties[int(name[6:])])
                peers = ", ".join(f'{p} = "{pin}"' for p, pin in pins.items() if p.startswith("party-") and p != name)
                lines.append(f"peers = {{ {peers} }}")
            else:
                lines.append('listen = "127.0.0.1:0"')
            self.configs[name] = lines

    def address(self, name, child):
        file = self.directory / name / "address"
        while not file.exists() or not file.read_text():
            # Left for wait_all to reap: only that gives its usage.
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise Failed(f"{name} ended before it listened")
            time.sleep(0.01)
        return file.read_text()

    def run(self, task="train", limit_s=LIMIT_S):
        started, at = {}, {}
        for name in self.names:
            lines = [*self.configs[name]]
            lines += [f'{listener} = "{address}"' for listener, address in at.items()]
            config = self.directory / name / "config.toml"
            config.write_text("\n".join(lines) + "\n")
            (self.directory / name / "address").unlink(missing_ok=True)
            role = name.split("-")[0]
            command = [self.spnn, role, "--config", config, "--task", task, "--log", "info"]
            started[name] = start(command, self.directory / name / f"{task}.log")
            if name in ("coordinator", "server"):
                try:
                    at[name] = self.address(name, started[name][0])
                except Failed:
                    break
        return wait_all(started, limit_s)

    def report(self):
        return json.loads((self.directory / "coordinator" / "report.json").read_text())


def must_end(ended):
    for name, e in ended.items():
        if e.code != 0:
            raise Failed(f"{name} ended with {e.code}: {error_of(e.said)}")
    return ended


def moments(log):
    """Seconds since the epoch and text of a role's log lines."""
    for line in log.splitlines():
        found = re.match(r"(\d{4}-\d\d-\d\dT[\d:.]+)Z\s+\w+ (.*)", line)
        if found:
            yield datetime.fromisoformat(found[1]).replace(tzinfo=timezone.utc).timestamp(), found[2]


def between(log, first, last):
    times = list(moments(log))
    begin = next(t for t, text in times if first in text)
    return next(t for t, text in times if last in text and t >= begin) - begin


# Sessions.


def session(name, parties, *, alignment="", data="", train="epochs = 1\nbatch_size = 4096", seed=1, width=4, layers=None):
    layers = layers or '[{ activation = "sigmoid" }]'
    parts = "\n".join(f"  {p}," for p in parties)
    return f"""name = "{name}"
first_layer = "sharing"
seed = {seed}
{alignment}
[data]
{data}
parties = [
{parts}
]

[model]
hidden_width = {width}
server = {layers}
head = {{ linear = 1, loss = "binary-cross-entropy" }}

[train]
{train}
optimizer = {{ kind = "adam", learning_rate = 0.01 }}
"""


def holder_first(n):
    return ["{ label_holder = true }", *["{ }"] * (n - 1)]


def deeper(epochs):
    return {"width": 16, "layers": '[{ activation = "sigmoid" }, { linear = 8 }, { activation = "sigmoid" }]',
            "train": f"epochs = {epochs}\nbatch_size = 512"}


def auc(scores, labels):
    """The share of pairs in order, ties as a half."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    ranks, at = [0.0] * len(scores), 0
    while at < len(order):
        end = at
        while end < len(order) and scores[order[end]] == scores[order[at]]:
            end += 1
        for place in order[at:end]:
            ranks[place] = (at + end + 1) / 2
        at = end
    positive = [r for r, y in zip(ranks, labels) if y]
    n = len(positive)
    return (sum(positive) - n * (n + 1) / 2) / (n * (len(labels) - n))


def read_csv(file):
    with open(file, newline="") as text:
        rows = list(csv.reader(text))
    return rows[0], rows[1:]


def write_csv(file, header, rows):
    with open(file, "w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)


def first_column(file):
    return [row[0] for row in read_csv(file)[1]]


# Part: unaligned.


def unaligned(options, tmp):
    guest_header, guest = read_csv(DATA / "fate/default_credit_hetero_guest.csv")
    host_header, host = read_csv(DATA / "fate/default_credit_hetero_host.csv")
    hosts, labels = {r[0]: r for r in host}, {r[0]: int(r[1]) for r in guest}
    results = []
    for epochs, seed in [(e, s) for e in ([3] if options.quick else [30, 60, 100]) for s in options.seeds]:
        rng, directory = random.Random(seed), tmp / f"{epochs}-{seed}"
        directory.mkdir()
        ids = [r[0] for r in guest]
        test = set(rng.sample(ids, len(ids) // 5))
        at_guest, at_host = (set(rng.sample(ids, len(ids) * 4 // 5)) for _ in range(2))
        both = at_guest & at_host

        def tables(name, keep_guest, keep_host, text, shuffled):
            """The two parties' training rows, and their test rows, the guest's without labels."""
            files = []
            for part, chosen in (("train", lambda i: i not in test), ("test", lambda i: i in test)):
                ours = [r for r in guest if r[0] in keep_guest and chosen(r[0])]
                theirs = [hosts[r[0]] for r in guest if r[0] in keep_host and chosen(r[0])]
                if shuffled:
                    rng.shuffle(theirs)
                if text:
                    ours, theirs = ([[f"customer {r[0]}", *r[1:]] for r in rows] for rows in (ours, theirs))
                header = guest_header
                if part == "test":
                    write_csv(directory / f"{name}-labelled.csv", guest_header, ours)
                    header, ours = [h for h in guest_header if h != "y"], [[r[0], *r[2:]] for r in ours]
                files += [directory / f"{name}-{part}-{i}.csv" for i in range(2)]
                write_csv(files[-2], header, ours)
                write_csv(files[-1], host_header, theirs)
            return files

        row = {"epochs": epochs, "seed": seed, "test_rows": len(both & test), "common": len(both)}
        runs = [("aligned", (ids, ids), False), ("aligned, common rows", (both, both), False),
                ("unaligned", (at_guest, at_host), True)]
        for name, (keep_guest, keep_host), messy in runs:
            short = name.replace(", ", "-").replace(" ", "-")
            files = tables(short, set(keep_guest), set(keep_host), messy, messy)
            text = session("default-credit", [f'{{ file = "{files[0]}", label_holder = true }}', f'{{ file = "{files[1]}" }}'],
                           alignment="\n[alignment]\n" if messy else "", seed=seed, **deeper(epochs),
                           data='id = "id"\nlabel = "y"\nstandardize = true\nclip = 5.0')
            (directory / f"{short}.toml").write_text(text)
            out = directory / f"run-{short}"
            trained = must([options.spnn, "simulate", directory / f"{short}.toml", "--run-dir", out, "--log", "info"])
            scores = directory / f"{short}-scores.csv"
            must([options.spnn, "predict", out, "--data", files[2], "--data", files[3], "--scores", scores, "--log", "info"])
            scored = {i.removeprefix("customer "): float(s) for i, s in read_csv(scores)[1]}
            if set(scored) != (test if name == "aligned" else both & test):
                raise Failed(f"{name}, seed {seed}: other rows were scored than all parties have")
            rows = sorted(both & test)
            row[name] = auc([scored[i] for i in rows], [labels[i] for i in rows])
            record = json.loads((out / "report.json").read_text())
            row[f"{name}: rows"] = record["rows"]["train"]
            row[f"{name}: seconds"] = trained.seconds
            if name == "aligned":
                every = sorted(test)
                row["aligned, all test rows"] = auc([scored[i] for i in every], [labels[i] for i in every])
            if messy:
                evaluated = must([options.spnn, "evaluate", out, "--data", directory / f"{short}-labelled.csv", "--data",
                                  files[3], "--scores", directory / "evaluate.csv", "--log", "error"])
                row["spnn evaluate"] = float(re.search(r"AUC ([\d.]+)", evaluated.said)[1])
                row["align seconds"] = between((out / "party-0/train.log").read_text(), "brings", "are common")
                expected = len(both - test)
                if record["rows"]["train"] != expected:
                    raise Failed(f"{record['rows']['train']} common training rows, and {expected} are")
            shutil.rmtree(out)
        print(f"  {epochs} epochs, seed {seed}: " + ", ".join(f"{n} {row[n]:.4f}" for n, *_ in runs), flush=True)
        results.append(row)
    return {"runs": results}


def show_unaligned(r):
    names = ["aligned", "aligned, common rows", "unaligned"]
    lines = [
        "`default_credit` of FATE, batches of 512. A fifth of the customers is held out for testing. *Aligned* trains on the two",
        "files as they are, row by row the same customers. For *unaligned* each side loses another random fifth of its customers,",
        "the second party's rows are shuffled, ids become text (`customer 17`), and the session has an empty `[alignment]`",
        "section. *Common rows* is the aligned run on just the customers that unaligned found. All three are scored by",
        "`spnn predict` (aligned where training was; that file has no labels) on the same test rows: held out, and known to both",
        "sides after the losses. A seed stands for the rows that are held out and lost, and for the initial weights.",
    ]
    verdicts = []
    for epochs in dict.fromkeys(s["epochs"] for s in r["runs"]):
        seeds = [s for s in r["runs"] if s["epochs"] == epochs]
        rows = [[str(s["seed"]), *(f"{s[n]:.4f}" for n in names), f"{s['unaligned'] - s['aligned']:+.4f}",
                 f"{s['unaligned'] - s['aligned, common rows']:+.4f}", f"{s['aligned: rows']:,}", f"{s['unaligned: rows']:,}",
                 f"{s['test_rows']:,}", f"{s['align seconds']:.1f}"] for s in seeds]
        mean = {n: statistics.mean(s[n] for s in seeds) for n in names}
        off, same = mean["unaligned"] - mean["aligned"], mean["unaligned"] - mean["aligned, common rows"]
        rows.append(["**mean**", *(f"**{mean[n]:.4f}**" for n in names), f"**{off:+.4f}**", f"**{same:+.4f}**", "", "", "", ""])
        header = ["seed", *names, "unaligned − aligned", "unaligned − common", "rows, aligned", "rows, unaligned", "test rows", "align s"]
        lines += ["", f"{epochs} epochs:", "", *table(1, header, rows)]
        worst = max(abs(s["unaligned"] - s["aligned"]) for s in seeds)
        apart = max(abs(s["unaligned"] - s["aligned, common rows"]) for s in seeds)
        verdicts.append(
            f"- {epochs} epochs: unaligned is {off:+.4f} from aligned in the mean ({worst:.4f} at most); goal 0.01:"
            f" {'reached' if abs(off) <= 0.01 else '**not reached**'}. On the same rows the mean difference is {same:+.4f}"
            f" ({apart:.4f} at most).")
    evaluated = max(abs(s["spnn evaluate"] - s["unaligned"]) for s in r["runs"])
    return lines + ["", *verdicts, "",
        "On the same rows the two differ in the order of the rows alone, which alignment draws anew each time, so that another run"
        " gives other figures for unaligned. An epoch of fewer rows has fewer steps: this network's AUC rests near 0.74,"
        " then rises to 0.77 within a few epochs, and where there are fewer rows, or by bad luck of the order, that comes later. At 30"
        " epochs many runs are not there yet, aligned or not.",
        "",
        "The scored ids were exactly the common ones in every run, and so was the number of training rows. `spnn evaluate`, on the"
        f" test files with labels, gave the AUC computed here from the scores, within {max(evaluated, 1e-4):.1g} (it prints four digits).",
    ]


# Part: inspect.


def inspect(options, tmp):
    raw = DATA / "uci/UCI_Credit_Card.csv"
    parquet = tmp / "UCI_Credit_Card.parquet"
    epochs = 3 if options.quick else 30
    out = {"epochs": epochs, "runs": {}, "rows": len(read_csv(raw)[1])}
    code = f"""
import pyarrow, pyarrow.csv as c, pyarrow.parquet as p
t = c.read_csv({str(raw)!r}); p.write_table(t, {str(parquet)!r})
print(pyarrow.__version__, ",".join(sorted({{str(f.type) for f in t.schema}})))"""
    arrow = run([options.python_arrow, "-c", code])
    sources = [("CSV", raw)]
    if arrow.code == 0:
        out["pyarrow"], out["types"] = arrow.said.split()
        sources.append(("Parquet", parquet))
    else:
        out["no_parquet"] = "pyarrow is not there"
    split = 'columns = ["LIMIT_BAL..PAY_6"], label_holder = true', 'columns = ["BILL_AMT1..PAY_AMT6"]'
    sections = {}
    for kind, file in sources:
        looked = must([options.spnn, "inspect", file, "--label", LABEL])
        section = "[data]\n" + looked.said.split("[data]\n", 1)[1]
        lines = section.splitlines()
        (at,) = [i for i, line in enumerate(lines) if line.startswith("file = ")]
        sections[kind] = "\n".join(lines[:at] + lines[at + 1:])
        lines[at] = "parties = [" + ", ".join(f'{{ file = "{file}", {s} }}' for s in split) + "]"
        lines.insert(at, "test_fraction = 0.2\nstandardize = true\nclip = 5.0")
        model = session("credit", [], **deeper(epochs)).split("[data]")[0], session("credit", [], **deeper(epochs))
        text = model[0] + "\n".join(lines) + "\n\n[model]" + model[1].split("[model]")[1]
        toml = tmp / f"{kind}.toml"
        toml.write_text(text)
        directory = tmp / f"run-{kind}"
        trained = must([options.spnn, "simulate", toml, "--run-dir", directory, "--log", "info"])
        record = json.loads((directory / "report.json").read_text())
        files = sorted(p for n in ("model.safetensors", "model.json", "predictions.csv") for p in directory.glob(f"*/{n}"))
        out["runs"][kind] = {
            "auc": record["test"]["auc"], "features": record["features"], "seconds": trained.seconds,
            "inspect_seconds": looked.seconds, "bytes": file.stat().st_size,
            "sha256": {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        }
        print(f"  {kind}: test AUC {record['test']['auc']:.4f}, features {record['features']}", flush=True)
    out["section"] = sections["CSV"]
    out["same_section"] = len(set(sections.values())) == 1
    return out


def show_inspect(r):
    csv_run, parquet = r["runs"]["CSV"], r["runs"].get("Parquet")
    lines = [
        f"`spnn inspect UCI_Credit_Card.csv --label {LABEL}` on the raw table, {r['rows']:,} rows, wrote this section"
        f" in {csv_run['inspect_seconds']:.2f} s:",
        "", "```toml", re.sub(r"(\[data\]\n)", r'\1file = "UCI_Credit_Card.csv"\n', r["section"].strip(), count=1), "```", "",
        "Edited by hand: one line. A session names files by party, so `file` became",
        "", "```toml",
        'parties = [{ file = "…", columns = ["LIMIT_BAL..PAY_6"], label_holder = true }, { file = "…", columns = ["BILL_AMT1..PAY_AMT6"] }]',
        "```", "",
        "and three lines were added that are the session's and nothing that a table could tell: `test_fraction = 0.2`,",
        "`standardize = true`, `clip = 5.0`. Everything else is as `inspect` wrote it: all types, the id and the label.",
        "",
        f"Trained for {r['epochs']} epochs: {csv_run['features'][0]} features at the party with the categories,"
        f" {csv_run['features'][1]} at the other; test AUC **{csv_run['auc']:.4f}**.", ""]
    if not parquet:
        return lines + [f"Parquet was not compared: {r['no_parquet']}."]
    same = csv_run["sha256"] == parquet["sha256"]
    rows = [[f"`{f}`", f"`{csv_run['sha256'][f][:16]}…`", f"`{parquet['sha256'].get(f, '')[:16]}…`",
             "yes" if csv_run["sha256"][f] == parquet["sha256"].get(f) else "**no**"] for f in csv_run["sha256"]]
    return lines + [
        f"The same table as Parquet (pyarrow {r['pyarrow']}: columns of {r['types'].replace(',', ' and ')};"
        f" {size(parquet['bytes'])} beside {size(csv_run['bytes'])}): `inspect` wrote"
        f" {'the same section' if r['same_section'] else '**another section**'}, the test AUC is {parquet['auc']:.4f}, and what the"
        f" roles saved is {'the same, byte for byte' if same else '**not the same**'}:", "",
        *table(3, ["file", "SHA-256 from CSV", "from Parquet", "same"], rows)]


# Part: tampering.


def flip(data, at):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def tampering(options, tmp):
    source = ROOT / "examples/breast_cancer"
    text = (source / "session.toml").read_text().replace("epochs = 30", "epochs = 3")
    parties = [f'{{ file = "{source / "clinic.csv"}", id = "id", label = "malignant" }}',
               f'{{ file = "{source / "laboratory.csv"}", id = "id" }}']
    roles = Roles(options.spnn, tmp / "roles", text, parties, contract="../contract.toml")
    contract, authority = roles.directory / "contract.toml", roles.directory / "pki/ca.pem"
    (tmp / "session.toml").write_text(text)
    command = [options.spnn, "contract", "new", tmp / "session.toml", "--out", contract, "--purpose", "Triage of mammographies",
               "--expires", "2999-12-31"]
    for i, file in enumerate(("clinic.csv", "laboratory.csv")):
        features = [c for c in read_csv(source / file)[0] if c not in ("id", "malignant")]
        command += ["--columns", f"party-{i}={','.join(features)}"]
    for name in roles.names:
        command += ["--certificate", roles.directory / name / f"{name}.pem", "--organisation", f"{name}=House of {name}"]
    must(command)
    # As an organisation does: reads each leak and accepts it by removing the comment sign.
    contract.write_text(contract.read_text().replace('  # "', '  "'))
    for name in roles.names:
        of = roles.directory / name / name
        must([options.spnn, "contract", "sign", contract, "--certificate", f"{of}.pem", "--key", f"{of}.key", "--authority",
              authority])
    verify = [options.spnn, "contract", "verify", contract, "--authority", authority]
    must(verify)
    must_end(roles.run())
    out = {"places": [], "sweeps": []}

    def place(what, where, said, code):
        text = telling(said) if code else ""
        out["places"].append({"what": what, "where": where, "code": code, "said": text})
        print(f"  {what}, {where}: {code} {text}", flush=True)

    def sweep(what, file, command, step, harmless):
        """Flips the lowest bit of every `step`-th byte; bytes that go unnoticed are told apart by `harmless`."""
        data, missed, tried = file.read_bytes(), {}, 0
        for at in range(0, len(data), step):
            file.write_bytes(flip(data, at))
            tried += 1
            if run(command, 60).code == 0:
                missed.setdefault(harmless(data, at), []).append(at)
        file.write_bytes(data)
        out["sweeps"].append({"what": what, "bytes": len(data), "tried": tried,
                              "missed": {why: len(places) for why, places in missed.items()}})
        print(f"  {what}: {tried} bytes, unnoticed {({w: len(p) for w, p in missed.items()})}", flush=True)

    # Contract.
    data = contract.read_bytes()
    spots = [("a letter of the purpose", data.index(b"Triage of mam") + 4), ("the number of epochs", data.index(b"epochs = 3") + 9),
             ("the key of party-1", data.index(b"sha256:", data.index(b'role = "party-1"')) + 20)]
    for where, at in spots:
        contract.write_bytes(flip(data, at))
        ended = run(verify)
        place("contract", where, ended.said, ended.code)
    contract.write_bytes(flip(data, spots[1][1]))
    ended = roles.run(limit_s=30)
    first = ended["coordinator"]
    place("contract", "the number of epochs; a role that starts", first.said, first.code)
    contract.write_bytes(data)

    def comment_or_simulation(data, at):
        begin = data.rfind(b"\n", 0, at) + 1
        end = data.find(b"\n", at)
        line = data[begin: end if end >= 0 else len(data)]
        hash_at, quotes = -1, False
        for i, byte in enumerate(line):
            if byte == 0x22:
                quotes = not quotes
            elif byte == 0x23 and not quotes:
                hash_at = i
                break
        if hash_at >= 0 and at - begin >= hash_at:
            return "in a comment"
        section = data.rfind(b"\n[", 0, at)
        if data[section:section + 7] == b"\n[data]" and line.split(b"=")[0].strip() in (b"id", b"label", b"parties") \
                or b"file = " in line:
            return "in what only a simulation reads"
        return "elsewhere: " + repr(line.decode(errors="replace"))

    step = 7 if options.quick else 1
    sweep("contract", contract, verify, step, comment_or_simulation)
    signature = contract.parent / "signatures/party-1.sig"
    sweep("signature of party-1", signature, verify, step, lambda data, at: f"in line {data.count(10, 0, at) + 1}: "
          + repr(data.splitlines()[data.count(10, 0, at)].decode())[:60])

    # Audit log.
    log = roles.directory / "server/audit.jsonl"
    audit = [options.spnn, "audit", "verify", log, "--authority", authority]
    must(audit)
    data, lines = log.read_bytes(), log.read_bytes().splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    which = next(i for i, line in enumerate(lines) if b'"bytes"' in line and i > 2)
    spots = [("the time in line 1", data.index(b'"time":"') + 11),
             (f"a count of bytes in line {which + 1}", starts[which] + re.search(rb'"bytes":\d', lines[which]).end() - 1),
             (f"the last line, {len(lines)}", starts[-1] + len(lines[-1]) // 2)]
    for where, at in spots:
        log.write_bytes(flip(data, at))
        ended = run(audit)
        place("audit log", where, ended.said, ended.code)
    log.write_bytes(data)
    sweep("audit log of the server", log, audit, 97 * step, lambda data, at: "elsewhere")

    # Saved model.
    simulated = tmp / "run"
    must([options.spnn, "simulate", tmp_session(tmp, text, source), "--run-dir", simulated, "--log", "error"])
    predict = [options.spnn, "predict", simulated, "--log", "error"]
    must(predict)
    for role, name, spots in [
        ("party-0", "model.safetensors", [("the length of the header", 0), ("the header", 30), ("the weights", -3)]),
        ("server", "model.safetensors", [("the length of the header", 0), ("the header", 30), ("the weights", -3)]),
        ("party-1", "model.json", [("the seed", b'"seed": '), ("a digit of a mean", b'"mean": '), ("the digest", b'sha256": "'),
                                   ("the version of spnn that wrote it", b'"spnn": "')]),
    ]:
        file = simulated / role / name
        data = file.read_bytes()
        for where, at in spots:
            if isinstance(at, bytes):
                at = data.index(at) + len(at) + (2 if b"mean" in at else 0)
            file.write_bytes(flip(data, at % len(data)))
            ended = run(predict, 120)
            place(f"{role}/{name}", where, ended.said, ended.code)
        file.write_bytes(data)
    must(predict)
    return out


def tmp_session(tmp, text, source):
    file = tmp / "simulated.toml"
    file.write_text(text.replace('"clinic.csv"', f'"{source / "clinic.csv"}"').replace('"laboratory.csv"', f'"{source / "laboratory.csv"}"'))
    return file


def show_tampering(r):
    found = sum(p["code"] != 0 for p in r["places"])
    lines = [f"The lowest bit of one byte is changed, and the program asked. Found: {found} of {len(r['places'])}.", ""]
    rows = [[p["what"], p["where"], str(p["code"]) if p["code"] else "**0, not found**", said(p["said"]) if p["code"] else "nothing"] for p in r["places"]]
    lines += table(2, ["file", "changed", "exit code", "what is said"], rows, right=1)
    lines += ["", "The audit log's errors name file and line. A model's name the file and, for `model.json`, what is wrong in it; for"
              " `model.safetensors` there is one digest, and so no place. A contract's name the signatures and both digests, not the value"
              " that was changed: whoever has another copy finds it by comparing. No digest covers the version in `model.json`,"
              " which nothing is computed from."]
    lines += ["", "Many places, by `spnn contract verify` and `spnn audit verify`:", ""]
    rows = []
    for s in r["sweeps"]:
        missed = sum(s["missed"].values())
        why = "; ".join(f"{n:,} {w}" for w, n in s["missed"].items()) or "–"
        rows.append([s["what"], f"{s['bytes']:,}", f"{s['tried']:,}", f"{s['tried'] - missed:,}", cell(why)])
    lines += table(1, ["file", "bytes", "tried", "found", "not found"], rows)
    return lines + ["", "A comment is not signed, nor is what only a simulation reads (docs/contract.md); a changed byte there means nothing to",
                    "the roles. The first line of a signature is a comment, too."]


def said(text):
    first = text.splitlines()
    keep = [line.strip() for line in first if line.strip() and not line.strip().startswith("log:")]
    text = " ".join(keep).removeprefix("error: ")
    return cell(text if len(text) <= 420 else text[:420] + " …")


def cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


# Part: alignment.


def customers(n, offset, seed):
    ids = [f"C{i:010d}" for i in range(offset, offset + n)]
    random.Random(seed).shuffle(ids)
    return ids


def party_file(file, ids, party, seed, header=None, ids_are_rows=False):
    rng = random.Random(seed)
    with open(file, "w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow([*(header or ["id"]), *(["y"] if party == 0 else []), "x"])
        for i in ids:
            parts = i if ids_are_rows else [i]
            writer.writerow([*parts, *([rng.randrange(2)] if party == 0 else []), f"{rng.random():.3f}"])


def align(options, directory, files, alignment="[alignment]", id_columns=None, limit_s=LIMIT_S, texts=None):
    """`spnn align` at every role. How all ended, and the roles."""
    directory.mkdir(parents=True, exist_ok=True)
    n = len(files)
    text = session("customers", holder_first(n), alignment=alignment + "\n")
    id_columns = id_columns or ['"id"'] * n
    data = [f'{{ file = "{f}", id = {c}{", label = " + chr(34) + "y" + chr(34) if i == 0 else ""} }}'
            for i, (f, c) in enumerate(zip(files, id_columns))]
    roles = Roles(options.spnn, directory / "roles", texts(text) if texts else text, data)
    begun = time.monotonic()
    ended = roles.run("align", limit_s)
    return roles, ended, time.monotonic() - begun


def aligned(options, tmp, name, sets):
    """One intersection: exactness and cost."""
    files = []
    for party, ids in enumerate(sets):
        files.append(tmp / f"{name}-{party}.csv")
        party_file(files[-1], ids, party, party)
    truth = set.intersection(*map(set, sets))
    roles, ended, wall = align(options, tmp / name, files)
    must_end(ended)
    found = [first_column(roles.directory / f"party-{i}/common_ids.csv") for i in range(len(sets))]
    parties = [ended[f"party-{i}"] for i in range(len(sets))]
    result = {
        "parties": len(sets), "ids": len(sets[0]), "common": len(truth), "found": [len(f) for f in found],
        "exact": all(len(f) == len(truth) and set(f) == truth for f in found), "same_order": all(f == found[0] for f in found),
        "seconds": max(between(p.said, "brings", "are common") for p in parties),
        "from_read": max(between(p.said, "read ", "are common") for p in parties), "wall": wall,
        "cpu": {n: e.cpu for n, e in ended.items()}, "rss": {n: e.rss for n, e in ended.items()},
    }
    report = roles.directory / "coordinator/report.json"
    if report.exists():
        by_kind = json.loads(report.read_text())["bytes_sent_by_kind"]
        result["sent"] = {n: sum(kinds.values()) for n, kinds in by_kind.items()}
    print(f"  {name}: {len(truth)} common, exact {result['exact']}, {result['seconds']:.1f} s,"
          f" {sum(result['cpu'].values()):.1f} CPU s", flush=True)
    shutil.rmtree(tmp / name)
    return result


def two_sets(options, n):
    del options
    return [customers(n, 0, 1), customers(n, n * 2 // 5, 2)]


def big(options):
    return 20_000 if options.quick else 1_000_000


def small(options):
    return 5_000 if options.quick else 50_000


def alignment(options, tmp):
    n, some = big(options), small(options)
    out = {"runs": [], "variants": [], "refused": []}
    for k in (3, 5):
        out["runs"].append(aligned(options, tmp, f"{k} parties", [customers(some, p * some // 10, p) for p in range(k)]))
    out["runs"].insert(0, aligned(options, tmp, "2 parties, small", two_sets(options, some)))
    out["runs"].insert(0, aligned(options, tmp, "2 parties, big", two_sets(options, n)))

    # Ids that are written in different ways.
    names = ["Zoë Müller", "Ångström Øst", "José Nuñez", "Łukasz Żak", "Ελένη Ώρα", "Đặng Văn Bình", "Chloé Brontë", "İpek Çağ"]
    ids = [f"{name} {i}" for i in range(40) for name in names]
    nfd = [unicodedata.normalize("NFD", i) for i in ids]
    mixed = [f"  {t.upper()}\t" if i % 3 == 0 else f"\u00a0{t.swapcase()} " if i % 3 == 1 else t for i, t in enumerate(nfd)]
    random.Random(3).shuffle(mixed)
    # Upper case of what has no capital of its own (İ turned small) may not come back; such ids are no variants by case.
    simple = [i for i in ids if i.upper().lower() == i.lower() and i.swapcase().lower() == i.lower()]
    kept = {unicodedata.normalize("NFC", i.lower()) for i in simple}
    mixed = [m for m in mixed if unicodedata.normalize("NFC", m.strip().lower()) in kept]
    for label, options_text, second, expected in [
        ("NFC and NFD", "unicode_nfc = true", nfd, len(ids)),
        ("NFC and NFD, compared byte by byte", "unicode_nfc = false", nfd, None),
        ("NFC and NFD, upper and lower case, white space around", "ignore_case = true", mixed, len(mixed)),
        ("the same, case kept", "ignore_case = false", mixed, None),
        ("the same, white space kept", "ignore_case = true\ntrim = false", mixed, None),
    ]:
        name = f"text-{len(out['variants'])}"
        files = [tmp / f"{name}-{p}.csv" for p in range(2)]
        first = ids if second is nfd else simple
        party_file(files[0], first, 0, 0)
        party_file(files[1], second, 1, 1)
        roles, ended, _ = align(options, tmp / name, files, f"[alignment]\n{options_text}")
        ok = all(e.code == 0 for e in ended.values())
        count = len(first_column(roles.directory / "party-0/common_ids.csv")) if ok else 0
        if expected is not None and count != expected:
            print(f"  ! {label}: {count} common, {expected} expected: {error_of(ended['party-0'].said)}", flush=True)
        out["variants"].append({"what": label, "options": options_text.replace("\n", ", "), "ids": len(first), "common": count,
                                "expected": expected, "said": "" if ok else error_of(ended["party-0"].said)})
        print(f"  {label}: {count} of {len(first)}", flush=True)

    # Keys of two columns. ("1", "12") and ("11", "2") are the same text when put together, and different keys.
    first = [(str(a), str(b)) for a in range(1, 112) for b in (1, 2, 12, 21)]
    second = [k for k in first if k not in {("1", "12"), ("2", "21"), ("22", "1")} and int(k[0]) % 5] + [("9999", "1")]
    truth = set(first) & set(second)
    random.Random(4).shuffle(second)
    files = [tmp / "keys-0.csv", tmp / "keys-1.csv"]
    party_file(files[0], first, 0, 0, ["Company", "Year"], True)
    party_file(files[1], second, 1, 1, ["firm", "period"], True)
    roles, ended, _ = align(options, tmp / "keys", files, id_columns=['["Company", "Year"]', '["firm", "period"]'])
    must_end(ended)
    found = [[tuple(r) for r in read_csv(roles.directory / f"party-{p}/common_ids.csv")[1]] for p in range(2)]
    # A key is written as one text, its parts joined by "+".
    found = [[tuple(r[0].split("+")) for r in f] for f in found]
    out["keys"] = {"first": len(first), "second": len(second), "common": len(truth), "exact": all(set(f) == truth for f in found),
                   "sample": (roles.directory / "party-0/common_ids.csv").read_text().splitlines()[:2]}
    print(f"  two columns: {len(truth)} common, exact {out['keys']['exact']} {out['keys']['sample']}", flush=True)

    # What is refused.
    def refused(what, files, alignment_text="[alignment]", texts=None):
        roles, ended, _ = align(options, tmp / f"refused-{len(out['refused'])}", files, alignment_text, limit_s=120, texts=texts)
        ended = {n: ended[n] for n in roles.names if n in ended}
        out["refused"].append({"what": what, "codes": {n: e.code for n, e in ended.items()},
                               "said": {n: error_of(e.said) for n, e in ended.items() if e.code != 0}})
        print(f"  {what}: {({n: e.code for n, e in ended.items()})}", flush=True)

    good = [tmp / f"good-{p}.csv" for p in range(2)]
    for p, file in enumerate(good):
        party_file(file, customers(1000, 300 * p, p), p, p)
    twice = customers(1000, 300, 5)
    twice[700] = f" {twice[41].lower()} "
    party_file(tmp / "twice.csv", twice, 1, 1)
    refused("an id twice, once in other case and with spaces", [good[0], tmp / "twice.csv"], "[alignment]\nignore_case = true")
    empty = customers(1000, 300, 5)
    empty[17] = "  "
    party_file(tmp / "empty.csv", empty, 1, 1)
    refused("an id that is white space only", [good[0], tmp / "empty.csv"])
    party_file(tmp / "none.csv", customers(1000, 5_000_000, 5), 1, 1)
    refused("nothing in common", [good[0], tmp / "none.csv"])
    refused("more ids than ids_max", good, "[alignment]\nids_max = 999")

    def other(old, new):
        def texts(text):
            if old not in text:
                raise Failed(f"no {old} in the session")
            every = {n: text for n in ("coordinator", "server", "party-0", "party-1")}
            return every | {"party-1": text.replace(old, new)}
        return texts

    refused("party-1 has ignore_case = true, the others false", good, "[alignment]\nignore_case = false",
            other("ignore_case = false", "ignore_case = true"))
    refused("party-1 has batch_size = 4095, the others 4096", good, texts=other("batch_size = 4096", "batch_size = 4095"))
    refused("party-1 has no [alignment] section", good, texts=other("[alignment]\n", ""))
    return out


def show_alignment(r):
    lines = [
        "`spnn align` at every role, each a process of its own, over QUIC with mutual TLS on loopback. Ids are text of eleven"
        " characters, files are shuffled, and `common_ids.csv` of every party is compared with the truth: same ids, same order"
        " at all. *align s* is from the parties' logs, from the exchange of sizes to the stored result; *wall* is everything,"
        " from starting the processes to the last one's end, reading included.",
        ""]
    rows = []
    for a in r["runs"]:
        parties = sorted(n for n in a["cpu"] if n.startswith("party"))
        rows.append([f"{a['parties']} × {a['ids']:,}", f"{a['common']:,}", " / ".join(f"{f:,}" for f in dict.fromkeys(a["found"])),
                     "yes" if a["exact"] and a["same_order"] else "**no**", f"{a['seconds']:.1f}", f"{a['wall']:.1f}",
                     f"{sum(a['cpu'].values()):.1f}", " / ".join(f"{a['cpu'][p]:.1f}" for p in parties),
                     " / ".join(f"{a['rss'][p] / 2**20:.0f}" for p in parties),
                     " / ".join(f"{a['sent'][p] / 1e6:.1f}" for p in parties) if "sent" in a else "–"])
    lines += table(1, ["parties × ids", "common", "found", "exact", "align s", "wall s", "CPU s, all", "CPU s, parties",
                       "peak RSS MiB, parties", "MB sent, parties"], rows)
    lines += ["", "### Ids written in different ways", "",
              "The first party's file is in form C with the names as people write them; the second one's is what the row says.", ""]
    rows = []
    for v in r["variants"]:
        outcome = f"{v['common']:,} of {v['ids']:,} match" if v["common"] else "refused: " + said(v["said"])
        if v["expected"] is not None and v["common"] != v["expected"]:
            outcome = f"**{outcome}, {v['expected']:,} expected**"
        rows.append([v["what"], f"`{v['options']}`", outcome])
    lines += table(3, ["second file", "`[alignment]`", "result"], rows)
    kept = next(v for v in r["variants"] if "trim = false" in v["options"])
    if kept["common"] == kept["ids"]:
        lines += ["", "`trim = false` makes no difference to ids from files: reading them trims them (docs/data.md)."]
    k = r["keys"]
    lines += ["", f"Keys of two columns, under other names at each party (`[\"Company\", \"Year\"]`, `[\"firm\", \"period\"]`): {k['first']}"
              f" and {k['second']} keys, {k['common']} common, {'exactly those found' if k['exact'] else '**others found**'}; among them"
              " pairs such as `1, 12` and `11, 2`, which are the same text when put together and are not the same key.",
              "", "### What is refused", "",
              "Exit codes are those of coordinator, server and the two parties, in this order. The words are those of the roles that"
              " found it; the others say who ended the session and whether for its data or its configuration. None had an empty"
              " result.", ""]
    rows = []
    for x in r["refused"]:
        texts = {}
        for name, text in x["said"].items():
            if "ended the session in" in text:
                continue
            texts.setdefault(said(text), []).append(name)
        words = "<br>".join(f"{', '.join(names)}: {text}" for text, names in
                            sorted(texts.items(), key=lambda t: "party-1" not in t[1]))
        rows.append([x["what"], " ".join(str(c) for c in x["codes"].values()), words])
    return lines + table(3, ["case", "exit codes", "what is said"], rows)


# Part: psi. Other systems on the same files.


PSI = [
    ("SPU, ECDH, FourQ", "spu", ("ECDH", "CURVE_FOURQ"), True),
    ("SPU, ECDH, Curve25519", "spu", ("ECDH", "CURVE_25519"), False),
    ("SPU, RR22", "spu", ("RR22", "-"), True),
    ("openmined-psi, ECDH, P-256", "openmined", ("-", "-"), True),
]


def psi(options, tmp):
    out = {"runs": [], "absent": [], "versions": {}}
    for name, module, python in [("spu", "spu", options.python_spu), ("openmined", "private_set_intersection.python", options.python_psi)]:
        package = {"spu": "spu", "openmined": "openmined_psi"}[name]
        found = run([python, "-c", f"import {module}; import importlib.metadata as m; print(m.version('{package}'))"])
        if found.code == 0:
            out["versions"][name] = found.said.split()[-1]
        else:
            out["absent"].append([package, f"`import {module}` fails in the Python given for it"])
    for n in (small(options), big(options)):
        sets = two_sets(options, n)
        truth = set(sets[0]) & set(sets[1])
        files = [tmp / f"{n}-{p}.csv" for p in range(2)]
        for p, file in enumerate(files):
            party_file(file, sets[p], p, p)
        ours = aligned(options, tmp, f"ours-{n}", sets)
        out["runs"].append({"system": "spnn, ECDH, ristretto255", "ids": n, "common": ours["found"][0], "exact": ours["exact"],
                            "seconds": ours["seconds"], "wall": ours["wall"], "cpu": sum(ours["cpu"].values())})
        for label, name, (protocol, curve), at_big in PSI:
            if name not in out["versions"]:
                continue
            if n == big(options) and not at_big:
                out["runs"].append({"system": label, "ids": n, "why": "left out for its time"})
                continue
            python = {"spu": options.python_spu, "openmined": options.python_psi}[name]
            ports, results, started = [], [tmp / f"result-{p}.csv" for p in range(2)], {}
            for _ in range(2):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", 0))
                    ports.append(str(s.getsockname()[1]))
            begun = time.monotonic()
            for rank in range(2):
                command = [python, __file__, "--psi-peer", name, rank, ",".join(ports), protocol, curve, files[rank], results[rank]]
                started[str(rank)] = start(command, tmp / f"psi-{rank}.log")
            ended = wait_all(started, 1200)
            wall = time.monotonic() - begun
            row = {"system": label, "ids": n}
            if any(e.code for e in ended.values()):
                row["why"] = "failed: " + plain(next(e.said for e in ended.values() if e.code)[-200:])
            else:
                own = [float(re.search(r"SECONDS ([\d.]+)", e.said)[1]) for e in ended.values()]
                sets_found = [set(first_column(f)) for f in results if f.exists()]
                row |= {"common": len(sets_found[0]), "exact": all(f == truth for f in sets_found), "learn": len(sets_found),
                        "seconds": max(own), "wall": wall, "cpu": sum(e.cpu for e in ended.values())}
            for f in results:
                f.unlink(missing_ok=True)
            print(f"  {n}: {row}", flush=True)
            out["runs"].append(row)
    return out


def psi_peer(name, rank, ports, protocol, curve, source, result):
    """One of the two processes of another system, run by that system's Python."""
    rank, ports = int(rank), ports.split(",")
    if name == "spu":
        import spu.psi as library
        from spu import libspu

        description = libspu.link.Desc()
        for i, port in enumerate(ports):
            description.add_party(f"party-{i}", f"127.0.0.1:{port}")
        link = libspu.link.create_brpc(description, rank)
        more = {}
        if protocol == "ECDH":
            more["ecdh_params"] = library.EcdhParams(curve=getattr(library.EllipticCurveType, curve))
        config = library.PsiExecuteConfig(
            protocol_conf=library.PsiProtocolConfig(protocol=getattr(library.PsiProtocol, f"PROTOCOL_{protocol}"), receiver_rank=0,
                                                    broadcast_result=True, **more),
            input_params=library.InputParams(path=source, selected_keys=["id"], keys_unique=True),
            output_params=library.OutputParams(path=result))
        begun = time.monotonic()
        library.psi_execute(config, link)
        print(f"SECONDS {time.monotonic() - begun:.3f}", flush=True)
        link.stop_link()
        return
    import private_set_intersection.python as library

    def send(to, message):
        data = message.SerializeToString()
        to.sendall(len(data).to_bytes(8, "little") + data)

    def recv(of, message):
        def exactly(n):
            data = bytearray()
            while len(data) < n:
                piece = of.recv(min(1 << 20, n - len(data)))
                if not piece:
                    raise EOFError
                data += piece
            return bytes(data)
        message.ParseFromString(exactly(int.from_bytes(exactly(8), "little")))
        return message

    ids = first_column(source)
    listener = socket.create_server(("127.0.0.1", int(ports[1]))) if rank == 1 else None
    if listener:
        peer = listener.accept()[0]
    else:
        for _ in range(600):
            try:
                peer = socket.create_connection(("127.0.0.1", int(ports[1])))
                break
            except OSError:
                time.sleep(0.05)
    begun = time.monotonic()
    # Rank 0 is the client, which alone learns the result; both compute at once where the protocol lets them.
    if rank == 1:
        server = library.server.CreateWithNewKey(True)
        setup = server.CreateSetupMessage(0.001, len(ids), ids, library.DataStructure.RAW)
        request = recv(peer, library.Request())
        send(peer, setup)
        send(peer, server.ProcessRequest(request))
        recv_end = peer.recv(1)
        del recv_end
    else:
        client = library.client.CreateWithNewKey(True)
        send(peer, client.CreateRequest(ids))
        setup, response = recv(peer, library.ServerSetup()), recv(peer, library.Response())
        places = client.GetIntersection(setup, response)
        write_csv(result, ["id"], [[ids[p]] for p in places])
        peer.sendall(b".")
    print(f"SECONDS {time.monotonic() - begun:.3f}", flush=True)


def show_psi(r):
    versions = {"spu": "SPU (`spu`)", "openmined": "`openmined-psi` (Google's Private Join and Compute in C++)"}
    lines = [
        "The same two files, one system after the other, two processes each on the same cores, over loopback (of the others"
        " without TLS). *own s* is what the system itself takes, its start left out; *wall* and *CPU* are of whole processes,"
        " Python's start and the reading of files included. Coordinator and server of spnn, which have nothing to do here, count.",
        "Versions: " + ", ".join(f"{versions[n]} {v}" for n, v in r["versions"].items()) + ".",
        ""]
    by = {}
    for x in r["runs"]:
        by.setdefault(x["ids"], []).append(x)
    for n, runs in sorted(by.items()):
        ours = next(x for x in runs if x["system"].startswith("spnn"))
        rows = []
        for x in runs:
            if "why" in x:
                rows.append([x["system"], cell(x["why"]), *["–"] * 5])
                continue
            learn = "both" if x.get("learn", 2) == 2 else "one"
            rows.append([x["system"], "yes" if x["exact"] else "**no**", learn, f"{x['seconds']:.1f}", f"{x['wall']:.1f}",
                         f"{x['cpu']:.1f}", f"{x['cpu'] / ours['cpu']:.2f}"])
        lines += [f"2 × {n:,} ids, {n * 3 // 5:,} common:", "",
                  *table(3, ["system", "exact", "who learns it", "own s", "wall s", "CPU s", "× spnn's CPU"], rows), ""]
    lines += [
        "Not quite the same: ECDH of SPU and of openmined-psi is the same idea as spnn's over other curves. RR22 is another"
        " protocol, by oblivious transfer and sparse linear codes, for two parties: far less arithmetic, and what to take where"
        " arithmetic is what holds you up. spnn's keeps on disk what it received, to go on after an interruption, takes any number"
        " of parties, and runs under TLS.",
        "",
        "Not run: SecretFlow's own PSI is SPU's, under Ray; the packages `secretflow-psi` and `private-set-intersection` are"
        " not in the registry." + "".join(f" {p}: {why}." for p, why in r["absent"])]
    return lines


# Part: audit.


def audit(options, tmp):
    rows, epochs, rounds = (20_000, 20, 1) if options.quick else (227_845, 60, 3)
    rng = random.Random(1)
    files = [tmp / "fraud-0.csv", tmp / "fraud-1.csv"]
    with open(files[0], "w") as a, open(files[1], "w") as b:
        a.write("y," + ",".join(f"x{i}" for i in range(14)) + "\n")
        b.write(",".join(f"x{i}" for i in range(14, 28)) + "\n")
        for _ in range(rows):
            values = [f"{rng.random() - 0.5:.4f}" for _ in range(28)]
            a.write(f"{rng.randrange(2)}," + ",".join(values[:14]) + "\n")
            b.write(",".join(values[14:]) + "\n")
    text = session("fraud-shape", holder_first(2), width=8, train=f"epochs = {epochs}\nbatch_size = 5000",
                   layers='[{ activation = "sigmoid" }, { linear = 8 }, { activation = "sigmoid" }]')
    data = [f'{{ file = "{files[0]}", row_numbers_as_ids = true, label = "y" }}', f'{{ file = "{files[1]}", row_numbers_as_ids = true }}']
    out = {"rows": rows, "epochs": epochs, "rounds": []}
    for r in range(rounds):
        got = {}
        for on in ((False, True) if r % 2 == 0 else (True, False)):
            roles = Roles(options.spnn, tmp / f"audit-{r}-{on}", text, data, audit=on)
            must_end(roles.run())
            seconds = [e["seconds"] for e in roles.report()["epochs"][1:]]
            cpu = [sum(e["cpu_seconds"].values()) for e in roles.report()["epochs"][1:]]
            logs = [roles.directory / n / "audit.jsonl" for n in roles.names]
            got["with" if on else "without"] = {
                "epoch": statistics.median(seconds), "fastest": min(seconds), "cpu": statistics.median(cpu),
                "log": sum(f.stat().st_size for f in logs if f.exists()),
                "models": [hashlib.sha256((roles.directory / n / "model.safetensors").read_bytes()).hexdigest() for n in roles.names[1:]]}
            if on:
                checked = must([options.spnn, "audit", "verify", *logs, "--authority", roles.directory / "pki/ca.pem"])
                got["verify"] = checked.seconds
            shutil.rmtree(roles.directory)
        got["same"] = got["with"].pop("models") == got["without"].pop("models")
        print(f"  round {r + 1}: {got}", flush=True)
        out["rounds"].append(got)
    return out


def show_audit(r):
    rows = []
    for kind in ("without", "with"):
        x = [g[kind] for g in r["rounds"]]
        rows.append([kind, f"{1e3 * statistics.median(g['epoch'] for g in x):.1f}", f"{1e3 * min(g['fastest'] for g in x):.1f}",
                     f"{1e3 * statistics.median(g['cpu'] for g in x):.1f}", size(x[0]["log"]) if kind == "with" else "–"])
    ratio = [g["with"]["cpu"] / g["without"]["cpu"] for g in r["rounds"]]
    wall = [g["with"]["epoch"] / g["without"]["epoch"] for g in r["rounds"]]
    return [
        f"The fraud shape ({r['rows']:,} rows, 28 → 8 → 8 → 1, batches of 5,000, `sharing`) for {r['epochs']} epochs with"
        f" `audit = true` and `false` at all four roles, in turns, {len(r['rounds'])} rounds.", "",
        *table(1, ["audit log", "ms an epoch, median", "fastest", "CPU ms an epoch, server and parties", "logs, all roles"], rows), "",
        f"With over without, by round: wall {', '.join(f'{w:.3f}' for w in wall)}; CPU {', '.join(f'{c:.3f}' for c in ratio)}."
        f" The trained weights are {'the same bits' if all(g['same'] for g in r['rounds']) else '**not the same**'}. `spnn audit verify`"
        f" of the four logs together takes {statistics.median(g['verify'] for g in r['rounds']):.2f} s. With a log each role hashes"
        " every message that it sends or receives; on this shape there is next to nothing else to compute."]


# Part: twenty million rows.


def twenty_million(options, tmp):
    rows = 200_000 if options.quick else 20_000_000
    example = next((p for p in (options.spnn.parent / "examples/parquet_tables", options.spnn.parent / "parquet_tables") if p.exists()), None)
    if example is None:
        raise Failed("the example parquet_tables is not built: cargo build --release --examples")
    made = must([example, tmp / "tables", rows, 20])
    print(f"  written in {made.seconds:.0f} s", flush=True)
    files = {p.name: p.stat().st_size for p in sorted((tmp / "tables").glob("*.parquet"))}
    directory = tmp / "run"
    log = tmp / "simulate.log"
    child = start([options.spnn, "simulate", tmp / "tables/session.toml", "--run-dir", directory, "--log", "info"], log)
    peaks, begun = {}, time.monotonic()
    while child[0].poll() is None and time.monotonic() - begun < LIMIT_S:
        time.sleep(1)
        if not peaks.get("said") and log.exists() and "all roles are ready" in log.read_text():
            peaks["said"] = time.monotonic() - begun
        used = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) if directory.exists() else 0
        peaks["disk"] = max(peaks.get("disk", 0), used)
        peaks["free"] = min(peaks.get("free", 1 << 60), shutil.disk_usage(tmp).free)
    out = {"rows": rows, "made": made.seconds, "files": files}
    if child[0].poll() is None:
        child[0].send_signal(signal.SIGTERM)
        try:
            child[0].wait(60)
        except subprocess.TimeoutExpired:
            child[0].kill()
        return out | {"gave_up": LIMIT_S, "said": plain(log.read_text()[-500:])}
    if child[0].returncode != 0:
        raise Failed(f"simulate ended with {child[0].returncode}: {error_of(log.read_text())}")
    record = json.loads((directory / "report.json").read_text())
    logs = {n: (directory / n / "train.log").read_text() for n in ("party-0", "party-1")}
    ready = {n: between(log, "read ", "session starts") if "session starts" in log else None for n, log in logs.items()}
    return out | {
        "wall": time.monotonic() - begun, "epoch": record["epochs"][0]["seconds"], "train": record["rows"]["train"],
        "test": record["rows"]["test"], "auc": record["test"]["auc"], "rss": record["peak_rss_bytes"], "cpu": record["cpu_seconds"],
        "until_ready": peaks.get("said"), "join": ready, "epoch_cpu": record["epochs"][0]["cpu_seconds"],
        "sent": {n: sum(k.values()) for n, k in record["bytes_sent_by_kind"].items()},
        "logs": {n: [[t, plain(text)] for t, text in moments(log)] for n, log in logs.items()},
    }


def show_twenty_million(r):
    lines = [f"`parquet_tables tables {r['rows']} 20`, then `spnn simulate tables/session.toml`: two parties of 20 columns, one epoch,"
             f" batches of 1,024, the memory limit of 256 MiB that the example writes. The two files have"
             f" {' and '.join(size(s) for s in r['files'].values())} and were written in {r['made']:.0f} s.", ""]
    if "gave_up" in r:
        return lines + [f"**Given up after {r['gave_up']} s.** Last said: {cell(r['said'])}"]
    limit = 2 << 30
    parties = {n: b for n, b in r["rss"].items() if n.startswith("party")}
    table_ = [[n, f"{b / 2**20:,.0f}", "yes" if b < limit else "**no**", f"{r['cpu'][n]:.0f}", f"{r['epoch_cpu'].get(n, 0):.0f}",
               size(r["sent"].get(n, 0))] for n, b in r["rss"].items()]
    return lines + [
        *table(1, ["role", "peak RSS MiB", "under 2 GiB", "CPU s, whole run", "CPU s, epoch", "sent"], table_), "",
        f"- Parties under 2 GiB: {'yes' if all(b < limit for b in parties.values()) else '**no**'}.",
        f"- Reading and preparing, until all roles were ready: {r['until_ready']:.0f} s. Each table, uncompressed at four bytes a cell,"
        f" is {size(r['rows'] * 80)}; it lies in an unnamed file in the party's directory.",
        f"- The epoch over {r['train']:,} rows: {r['epoch']:.0f} s, {r['train'] / r['epoch']:,.0f} rows/s, the test on"
        f" {r['test']:,} rows not included. Whole run {r['wall']:.0f} s. Test AUC {r['auc']:.4f}."]


# The page.


def table(words, header, rows, right=0):
    """The first columns are words, the others figures."""
    marks = ["---"] * words + ["---:"] * (len(header) - words)
    if right:
        marks[words + right:] = ["---"] * (len(header) - words - right)
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in [header, marks, *rows]]


def size(count):
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


TITLES = {
    "alignment": ("Alignment", show_alignment), "psi": ("Alignment beside other systems", show_psi),
    "unaligned": ("Training on files that do not match", show_unaligned), "inspect": ("From a raw table to a session", show_inspect),
    "twenty-million": ("Twenty million rows", show_twenty_million), "tampering": ("One changed byte", show_tampering),
    "audit": ("What an audit log costs", show_audit),
}


def page(state, options):
    dates = sorted(p["date"] for p in state["parts"].values())
    commands = {p["command"] for p in state["parts"].values()}
    versions = list(dict.fromkeys(p["spnn"] for p in state["parts"].values()))
    readme = os.path.relpath(ROOT / "benches/README.md", options.out.parent)
    lines = ["# What organisations meet", "",
             f"Made by `python3 benches/organisations.py` from {dates[0]} to {dates[-1]}; [benches/README.md]({readme}) says how to run it.", "",
             f"- Machine: {state['machine']}, all processes on it, over loopback.",
             f"- spnn: {'; '.join(versions)}.",
             f"- {'Each part' if len(commands) > 1 else 'The part'} was run by `--only` and its name, in {len(commands)} turns.",
             "- CPU seconds are user and system time of all processes. Where others used the machine meanwhile, the part says how"
             " much, and wall times are then longer than they need be.", ""]
    if any(p.get("quick") for p in state["parts"].values()):
        lines += ["**Parts of this page were made with `--quick`, on small tables.**", ""]
    for name in [n for n in TITLES if n in state["parts"]]:
        part, (heading, show) = state["parts"][name], TITLES[name]
        lines += [f"## {heading}", ""]
        if "failed" in part:
            lines += [f"**Failed:** {cell(part['failed'])}", ""]
            continue
        try:
            shown = show(part["result"])
        except KeyError:
            shown = ["Measured by an earlier version of the script: to be run again."]
        lines += [*shown, "", f"*{part['date']}; {part['wall']:.0f} s; others had {part['others']:.0%} of the cores' time.*", ""]
    left = [n for n in PARTS if n not in state["parts"]]
    if left:
        lines += ["## Not run", "", ", ".join(left) + ".", ""]
    return "\n".join(lines)


def busy_seconds():
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def now():
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas; - for none: only the page")
    parser.add_argument("--quick", action="store_true", help="small tables and few epochs: does everything work?")
    parser.add_argument("--seeds", default="1,2,3,4,5", type=lambda t: [int(s) for s in t.split(",")])
    parser.add_argument("--spnn", type=Path, default=ROOT / "target/release/spnn", help="default: target/release/spnn")
    for name, what in (("spu", "spu"), ("psi", "openmined-psi"), ("arrow", "pyarrow")):
        parser.add_argument(f"--python-{name}", default=sys.executable, help=f"a Python that has {what}; default: this one")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/organisations.md", help="the page; its JSON goes beside it")
    options = parser.parse_args()
    options.spnn, options.out = options.spnn.absolute(), options.out.absolute()
    options.parts = [p for p in options.only.split(",") if p in PARTS]
    if unknown := [p for p in options.only.split(",") if p not in [*PARTS, "-"]]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    return options


def main():
    if sys.argv[1:2] == ["--psi-peer"]:
        return psi_peer(*sys.argv[2:])
    options = arguments()
    if not options.spnn.exists():
        sys.exit("build first: cargo build --release --examples")
    if not DATA.exists():
        sys.exit("../shared/data is not there: nothing was measured")
    file = options.out.with_suffix(".json")
    state = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    state["machine"] = (f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB memory,"
                        f" {platform.system()}, Python {platform.python_version()}")
    digest = hashlib.sha256(options.spnn.read_bytes()).hexdigest()[:12]
    version = must([options.spnn, "--version"]).said.split()[-1]
    built = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(options.spnn.stat().st_mtime))
    work = {"unaligned": unaligned, "inspect": inspect, "tampering": tampering, "alignment": alignment, "psi": psi, "audit": audit,
            "twenty-million": twenty_million}
    for name in options.parts:
        print(f"{name}: {now()}", flush=True)
        begun, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        part = {"quick": options.quick, "spnn": f"{version}, SHA-256 {digest}…, built {built}"}
        command = ["python3", "benches/organisations.py", "--only", name] + ["--quick"] * options.quick
        with tempfile.TemporaryDirectory(prefix="spnn-organisations-") as tmp:
            try:
                part["result"] = work[name](options, Path(tmp))
            except Failed as why:
                part["failed"] = plain(str(why))
            except Exception as why:  # one part must not hide the others
                traceback.print_exc()
                part["failed"] = plain(f"{type(why).__name__}: {why}")
        wall = time.monotonic() - begun
        others = (busy_seconds() - busy) - (own_seconds() - own)
        part |= {"date": now(), "wall": wall, "others": max(0.0, others / wall / os.cpu_count()), "command": shlex.join(command)}
        if "failed" in part:
            print(f"  failed: {part['failed']}", flush=True)
        state["parts"][name] = part
        options.out.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n")
        options.out.write_text(page(state, options))
    if state["parts"]:
        options.out.write_text(page(state, options))
        print(f"written: {options.out.name}")


main()
