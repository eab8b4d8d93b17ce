#!/usr/bin/env python3
"""Predictions over HTTP: throughput and latency at three sizes of requests, and a party that is killed meanwhile.

    cargo build --release
    python3 benches/serve.py [--out docs/serve-figures.md] [--data ../shared/data]        # about four minutes

Trains one epoch on the 113,922 rows of the truncated fraud data, split over two parties, has the label holder score all
rows (`--task predict`), and serves the same model by four processes over QUIC. wrk (Debian's package) then asks for the
first 100,000 ids again and again, in requests of 1, 100 and 10,000 ids, and compares every answer with what predict
wrote, byte for byte. Once undisturbed, for throughput and latency; once while a party is killed and started again, for
wrong scores, errors and recovery. Without wrk or the data, it says so and writes nothing.
"""

import argparse
import gzip
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IDS = 100_000
SIZES = [1, 100, 10_000]
CONNECTIONS = {1: 32, 100: 16, 10_000: 4}

SESSION = """
name = "serve"
first_layer = "sharing"
seed = 1
[data]
row_numbers_as_ids = true
label = "Class"
test_fraction = 0.2
standardize = true
clip = 5.0
parties = [
  {{ file = "{data}", columns = ["V1..V14"], label_holder = true }},
  {{ file = "{data}", columns = ["V15..Amount"] }},
]
[model]
hidden_width = 8
server = [{{ activation = "sigmoid" }}, {{ linear = 8 }}, {{ activation = "sigmoid" }}]
head = {{ linear = 1, loss = "binary-cross-entropy" }}
[train]
epochs = 1
batch_size = 1024
optimizer = {{ kind = "adam", learning_rate = 0.01 }}
"""

# Requests walk through all ids; the first id of an answer says which request it belongs to.
SCRIPT = """
local size, ids = {size}, {ids}
local expected, starts, at = {{}}, {{}}, 0
local threads = {{}}
right, wrong, refused, late, other = 0, 0, 0, 0, 0
reasons = ""
local function read(name)
  local file = io.open(name, "rb")
  local text = file:read("*a")
  file:close()
  return text
end
function setup(thread) table.insert(threads, thread) end
function init(args)
  local lines = {{}}
  for line in read("{scores}"):gmatch("[^\\n]+") do table.insert(lines, line) end
  for start = 1, ids, size do
    local body, answer = {{"id"}}, {{"id,score,status"}}
    for row = start, math.min(start + size - 1, ids) do
      local line = lines[row + 1]
      table.insert(body, line:match("^[^,]+"))
      table.insert(answer, line .. ",scored")
    end
    expected[lines[start + 1]:match("^[^,]+")] = table.concat(answer, "\\n") .. "\\n"
    table.insert(starts, wrk.format("POST", "/v1/scores", {{["Content-Type"] = "text/csv"}}, table.concat(body, "\\n") .. "\\n"))
  end
  math.randomseed(os.time())
  at = math.random(#starts)
end
function request()
  at = at % #starts + 1
  return starts[at]
end
function response(status, headers, body)
  if status == 200 then
    local first = body:match("\\n([^,]+),")
    if expected[first] == body then right = right + 1 else wrong = wrong + 1 end
  elseif status == 503 then
    refused = refused + 1
    local reason = body:match('"error":"(.-)"}}') or body
    if not reasons:find(reason, 1, true) then reasons = reasons .. reason .. "|" end
  elseif status == 504 then late = late + 1
  else other = other + 1 end
end
function done(summary, latency, requests)
  local sum = {{right = 0, wrong = 0, refused = 0, late = 0, other = 0}}
  local said = ""
  for _, thread in ipairs(threads) do
    for name in pairs(sum) do sum[name] = sum[name] + thread:get(name) end
    said = said .. thread:get("reasons")
  end
  io.write(string.format("RESULT right=%d wrong=%d refused=%d late=%d other=%d p50_us=%d p99_us=%d max_us=%d us=%d sockets=%d\\n",
    sum.right, sum.wrong, sum.refused, sum.late, sum.other, latency:percentile(50), latency:percentile(99), latency.max,
    summary.duration, summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
  io.write("REASONS " .. said .. "\\n")
end
"""


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Service:
    """Every role as a process from its own configuration, so that one of them can be killed."""

    def __init__(self, spnn, run):
        self.spnn, self.run, self.processes = spnn, run, {}
        coordinator, server = (free_port(socket.SOCK_DGRAM) for _ in range(2))
        self.address = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
        for role in ["coordinator", "server", "party-0", "party-1"]:
            file = run / role / "config.toml"
            text = file.read_text()
            text = re.sub(r'^coordinator = .*$', f'coordinator = "127.0.0.1:{coordinator}"', text, flags=re.M)
            text = re.sub(r'^server = .*$', f'server = "127.0.0.1:{server}"', text, flags=re.M)
            port = coordinator if role == "coordinator" else server
            text = re.sub(r'^listen = .*$', f'listen = "127.0.0.1:{port}"', text, flags=re.M)
            text = re.sub(r'^rejoin_timeout_s = .*$', 'rejoin_timeout_s = 300.0', text, flags=re.M)
            text = re.sub(r'^(join|peer)_timeout_s = .*$', r'\1_timeout_s = 60.0', text, flags=re.M)
            if role == "party-0":
                text += f'\n[service]\nlisten = "{self.address}"\n'
            (run / role / "serve.toml").write_text(text)
            self.start(role)

    def start(self, role):
        log = open(self.run / role / "serve.log", "a")
        command = [self.spnn, "serve", "--config", self.run / role / "serve.toml"]
        self.processes[role] = subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self):
        """Seconds until it is healthy."""
        began = time.monotonic()
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/healthz", timeout=5).read()
                return time.monotonic() - began
            except (urllib.error.URLError, OSError):
                for role, process in self.processes.items():
                    if process.poll() is not None:
                        log = (self.run / role / "serve.log").read_text()
                        sys.exit(f"{role} has ended with {process.returncode}:\n{log[-2000:]}")
                if time.monotonic() - began > 120:
                    sys.exit("the service did not come up")
                time.sleep(0.05)

    def cpu_seconds(self):
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [Path(f"/proc/{p.pid}/stat").read_text().rsplit(") ", 1)[1].split() for p in self.processes.values()]
        return sum(int(f[11]) + int(f[12]) for f in fields) / ticks

    def stop(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait()


def load(service, scores, size, seconds, directory, meanwhile=None):
    script = directory / f"load-{size}.lua"
    script.write_text(SCRIPT.format(size=size, ids=IDS, scores=scores))
    command = ["wrk", "-t1", f"-c{CONNECTIONS[size]}", f"-d{seconds}s", "--timeout", "15s", "--latency", "-s", script,
               f"http://{service.address}"]
    before = service.cpu_seconds()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    extra = meanwhile() if meanwhile else {}
    out = process.communicate()[0]
    line = re.search(r"^RESULT (.*)$", out, re.M)
    if not line:
        sys.exit(f"wrk said:\n{out}")
    result = {k: int(v) for k, v in (pair.split("=") for pair in line[1].split())}
    reasons = re.search(r"^REASONS (.*)$", out, re.M)[1].split("|")
    cpu = None if meanwhile else service.cpu_seconds() - before
    return {"size": size, "connections": CONNECTIONS[size], **result, **extra, "cpu": cpu,
            "reasons": sorted({r.replace('\\"', '"') for r in reasons if r})}


def killing(service, after, down):
    """Kills party 1, starts it again, and says how long it took from then until the service was healthy."""
    def act():
        time.sleep(after)
        service.processes["party-1"].kill()
        service.processes["party-1"].wait()
        time.sleep(down)
        service.start("party-1")
        # The others may not even have noticed yet: wait for the start that the new process takes part in.
        began = time.monotonic()
        log = service.run / "party-1" / "serve.log"
        starts = log.read_text().count("session starts")
        while log.read_text().count("session starts") == starts:
            if service.processes["party-1"].poll() is not None:
                sys.exit(f"party-1 has ended:\n{log.read_text()[-2000:]}")
            if time.monotonic() - began > 120:
                sys.exit("the service did not come back")
            time.sleep(0.02)
        service.wait()
        return {"back_s": time.monotonic() - began}
    return act


def page(record):
    lines = ["# Predictions over HTTP: figures", "",
             f"Written by `python3 benches/serve.py` on {record['machine']}, {record['cores']} cores, which four roles and "
             "wrk share.", "",
             f"The first {IDS:,} rows of the truncated fraud data, 14 + 15 columns, 29 → 8 → 8 → 1 under `sharing`; "
             "requests and answers in CSV. Every answer was compared with what `--task predict` wrote, byte for byte.", "",
             "## Undisturbed", "",
             "| ids a request | connections | requests/s | predictions/s | predictions | p50 ms | p99 ms | CPU µs a prediction | wrong | refused |",
             "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for r in record["calm"]:
        seconds, n = r["us"] / 1e6, r["right"] * r["size"]
        lines.append(f"| {r['size']:,} | {r['connections']} | {r['right'] / seconds:,.0f} | {n / seconds:,.0f} | {n:,} | "
                     f"{r['p50_us'] / 1000:,.1f} | {r['p99_us'] / 1000:,.1f} | {r['cpu'] * 1e6 / n:,.1f} | {r['wrong']} | "
                     f"{r['refused'] + r['late'] + r['other'] + r['sockets']} |")
    lines += ["", "CPU is that of all four roles. Latency is wrk's, with all connections asking all the time.", "",
              "## While a party is killed", "",
              f"Party 1 is killed by signal 9 in the middle and started again after {record['down']} s.", "",
              "| ids a request | answered | wrong | refused (503) | too late (504) | other | healthy again after its start, s |",
              "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for r in record["killed"]:
        lines.append(f"| {r['size']:,} | {r['right']:,} | {r['wrong']} | {r['refused']:,} | {r['late']} | "
                     f"{r['other'] + r['sockets']} | {r['back_s']:.1f} |")
    reasons = sorted({reason for r in record["killed"] for reason in r["reasons"]})
    lines += ["", "What the refused were told:", ""] + [f"- `{reason}`" for reason in reasons] + [""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spnn", type=Path, default=ROOT / "target/release/spnn")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/serve-figures.md")
    parser.add_argument("--seconds", type=int, default=20, help="of each load")
    parser.add_argument("--down", type=float, default=2, help="seconds before the party is started again")
    options = parser.parse_args()
    packed = options.data / "fraud/creditcard_truncated_113922.csv.gz"
    if not packed.exists() or not shutil.which("wrk"):
        sys.exit(f"SKIPPED: this needs {packed.name} (--data) and wrk")
    machine = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            machine = line.split(":")[1].strip()
            break
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp / "rows.csv").write_bytes(gzip.decompress(packed.read_bytes()))
        (tmp / "session.toml").write_text(SESSION.format(data=tmp / "rows.csv"))
        run = tmp / "run"
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([options.spnn, "simulate", tmp / "session.toml", "--run-dir", run, "--log", "error"], **quiet)
        scores = tmp / "scores.csv"
        subprocess.run([options.spnn, "predict", run, "--scores", scores, "--log", "error"], **quiet)
        service = Service(options.spnn, run)
        try:
            print(f"up after {service.wait():.1f} s", flush=True)
            record = {"machine": machine, "cores": os.cpu_count(), "down": options.down, "calm": [], "killed": []}
            for size in SIZES:
                record["calm"].append(load(service, scores, size, options.seconds, tmp))
                print(json.dumps(record["calm"][-1]), flush=True)
            for size in SIZES:
                act = killing(service, options.seconds / 4, options.down)
                record["killed"].append(load(service, scores, size, options.seconds + 25, tmp, act))
                print(json.dumps(record["killed"][-1]), flush=True)
        finally:
            service.stop()
    options.out.write_text(page(record))
    print(f"wrote {options.out}")
    if any(r["wrong"] for r in record["calm"] + record["killed"]):
        sys.exit("WRONG SCORES")


if __name__ == "__main__":
    main()
