"""What the sidecar makes of a log: how fast it reads one, how fast LangSmith gets it, and what memory that takes.

The sidecar has one core, the simulated LangSmith and this script the other. Called by bench/run upload."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import processes
from processes import ENVOY_CORE, RIG_CORE, START_SECONDS, core_seconds, cpu_seconds, free_port, rss_kib

# The records: five runs each, and of the size that a short chat with both guards has.
RUNS = 5
TARGETS = {"tailed": 20_000, "uploaded": 5_000}
LENGTHS = {"tail": 400_000, "upload": 100_000}


def line(number):
    start = 1_795_423_306_535_477 + number * 50
    guard = {"mode": "parallel", "verdict": "safe", "action": "pass", "score": 0.01, "model": "llama-guard", "calls": 1,
             "start_us": start + 1_000, "end_us": start + 21_000}
    record = {
        "v": 1, "id": f"01a20791-8327-7764-a3ea-{number:012x}", "start_us": start, "end_us": start + 400_000,
        "api": "chat_completions", "status": 200, "tenant": f"tenant-{number % 20}", "user": f"user-{number % 500}",
        "policy": "standard", "session": f"session-{number // 8}", "model": "llama-3-8b-instruct", "stream": True,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant of a bank. " * 8},
            {"role": "user", "content": f"Question {number}: what does a parapet protect, and from whom? " * 4}],
        "params": {"temperature": 0.7, "max_tokens": 400},
        "answers": [{"content": f"Answer {number}: it protects those who stand behind it. " * 10, "finish_reason": "stop"}],
        "first_token_us": start + 90_000, "usage": {"prompt": 180, "completion": 140}, "cost_nanousd": 61_000,
        "input_guard": guard, "output_guard": {**guard, "mode": "hold", "calls": 4},
        "cache": {"outcome": "miss", "key": f"{number:064x}"},
        "attempts": [{"provider": "vllm", "model": "llama-3-8b-instruct", "start_us": start + 2_000,
                      "first_token_us": start + 89_000, "end_us": start + 399_000, "status": 200, "outcome": "ok"}],
    }
    text = json.dumps(record, separators=(",", ":"))
    return f'{{"v":1,"code":200,"flags":"-","details":"via_upstream","ms":400,"record":{text}}}\n'


class Process:
    def __init__(self, core, directory, name, arguments, environment):
        self.output = os.path.join(directory, f"{name}.log")
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [*processes.first, "taskset", "-c", str(core), os.environ["PARAPET_BIN"], *arguments], stdout=output, stderr=output,
                env={**environment, "RUST_LOG": "warn"})
        self.pid = self.process.pid

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def simulator(directory, name="langsmith"):
    port = free_port()
    process = Process(RIG_CORE, directory, name, ["sim", "langsmith", "--port", str(port), "--zstd"], {})
    until(lambda: fetch(port, "/info"), "the simulator answers")
    return process, port


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.read().decode()
    except OSError:
        return None


def until(what, name, seconds=START_SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise SystemExit(f"bench: error: never: {name}")


def metric(text, name):
    """The sum of its series; the name may be a regular expression that ends in the middle of the labels."""
    return sum(map(int, re.findall(rf"^{name}.*? (\d+)$", text or "", re.MULTILINE)))


def measure(directory, records, counter, wanted, environment):
    """From an empty data directory to the counter's value: the rate, the sidecar's CPU and memory."""
    data = os.path.join(directory, "data")
    shutil.rmtree(data, ignore_errors=True)
    port = free_port()
    before = core_seconds(ENVOY_CORE)
    begun = time.monotonic()
    sidecar = Process(ENVOY_CORE, directory, "sidecar", ["sidecar"], {
        "PARAPET_DATA_DIR": data, "PARAPET_ACCESS_LOG": os.path.join(directory, "access.jsonl"), "PARAPET_ROTATE_BYTES": "0",
        "PARAPET_SIDECAR_PORT": str(port), **environment})
    memory = []
    seen = None
    try:
        until(lambda: fetch(port, "/healthz"), "the sidecar answers")
        while seen is None or seen < wanted:
            time.sleep(0.1)
            if sidecar.process.poll() is not None or time.monotonic() - begun > 600:
                raise SystemExit(f"bench: error: the sidecar ended, or takes too long; see {sidecar.output}")
            seen = metric(fetch(port, "/metrics"), counter)
            memory.append(rss_kib(sidecar.pid))
        elapsed = time.monotonic() - begun
        used = sum(cpu_seconds(sidecar.pid))
    finally:
        sidecar.stop()
        shutil.rmtree(data, ignore_errors=True)
    quarter = memory[:max(1, len(memory) // 4)]
    return {"per_second": wanted / elapsed, "cpu_us": used * 1e6 / wanted, "seconds": elapsed, "records": records,
            "rss_mib": {"first_quarter": max(quarter) / 1024, "whole": max(memory) / 1024},
            "foreign": max(0.0, core_seconds(ENVOY_CORE) - before - used) / elapsed}


def write_log(directory, records):
    with open(os.path.join(directory, "access.jsonl"), "w") as file:
        file.writelines(line(number) for number in range(records))
    return os.path.getsize(file.name) / records


def run(directory):
    figures = {"bytes_per_record": write_log(directory, LENGTHS["tail"])}
    print("bench: reading", file=sys.stderr)
    figures["tailed"] = measure(
        directory, LENGTHS["tail"], "parapet_accesslog_records_total", LENGTHS["tail"], {})
    accepted = 'parapet_upload_runs_total\\{.*outcome="accepted"'
    write_log(directory, LENGTHS["upload"])
    for name, compressed in (("uploaded", True), ("plain", False)):
        print(f"bench: {name}", file=sys.stderr)
        langsmith, port = simulator(directory)
        environment = {"LANGSMITH_ENDPOINT": f"http://127.0.0.1:{port}"}
        if not compressed:
            environment["LANGSMITH_DISABLE_RUN_COMPRESSION"] = "true"
        try:
            figures[name] = measure(directory, LENGTHS["upload"], accepted, LENGTHS["upload"] * RUNS, environment)
            figures[name]["simulator_cpu_share"] = sum(cpu_seconds(langsmith.pid)) / figures[name]["seconds"]
        finally:
            langsmith.stop()
    return figures


def table(figures):
    print(f"{figures['bytes_per_record']:.0f} bytes a record, {RUNS} runs each; the sidecar on one core\n")
    print(f"{'':34}{'a second':>10}{'goal':>9}{'CPU each':>11}{'memory, most':>22}")
    rows = (("records tailed into the spool", "tailed"), ("runs uploaded, zstd", "uploaded"), ("runs uploaded, uncompressed", "plain"))
    for title, name in rows:
        row, goal = figures[name], TARGETS.get(name)
        memory = f"{row['rss_mib']['first_quarter']:.0f} → {row['rss_mib']['whole']:.0f} MiB"
        print(f"{title:34}{row['per_second']:>10.0f}{goal or '':>9}{row['cpu_us']:>8.1f} µs{memory:>22}")
    others = max(figures[name]["foreign"] for _, name in rows)
    print(f"\nmemory: the most in the first quarter and in all; others took up to {others:.0%} of the sidecar's core")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    directory = os.path.join(arguments.out, "upload")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, mode=0o700)
    processes.before_others()
    try:
        figures = run(directory)
    finally:
        log = os.path.join(directory, "access.jsonl")
        if os.path.exists(log):
            os.remove(log)
    with open(os.path.join(arguments.out, "upload.json"), "w") as file:
        json.dump(figures, file, indent=1)
    table(figures)


if __name__ == "__main__":
    main()
