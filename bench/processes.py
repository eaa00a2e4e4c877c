"""Envoy and the rig as processes, and what the kernel says of them."""

import json
import os
import select
import socket
import subprocess
import time
import urllib.request

TICKS = os.sysconf("SC_CLK_TCK")
ENVOY_CORE, RIG_CORE = 0, 1
START_SECONDS = 30

# What is measured may come before others that want the same core.
NICE = -10
first = []


def before_others():
    """From now on processes start with a priority that keeps neighbours out of delays, where the system allows it."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        first[:] = ["nice", "-n", str(NICE)]
    except PermissionError:
        pass
    return bool(first)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid):
    """User and system time of a process with all its threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def rss_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def core_seconds(core):
    """What processes used of a core; interrupts belong to nobody."""
    with open("/proc/stat") as file:
        fields = next(line.split() for line in file if line.startswith(f"cpu{core} "))
    user, nice, system, steal = (int(fields[index]) for index in (1, 2, 3, 8))
    return (user + nice + system + steal) / TICKS


class Envoy:
    def __init__(self, name, config, listener, admin, directory, under=(), patience=START_SECONDS):
        self.name, self.port, self.admin, self.patience = name, listener, admin, patience
        self.ledger = os.path.join(directory, f"{name}.access.jsonl")
        for log in config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"].get(
                "access_log", []):
            log["typed_config"]["path"] = self.ledger
        path = os.path.join(directory, f"{name}.json")
        with open(path, "w") as file:
            json.dump(config, file)
        self.output = os.path.join(directory, f"{name}.log")
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [*first, "taskset", "-c", str(ENVOY_CORE), *under, os.environ["ENVOY_BIN"], "-c", path, "--concurrency", "1",
                 "--disable-hot-restart", "--log-level", "error"], stdout=output, stderr=output)
        self.pid = self.process.pid
        self._await_ready()

    def _await_ready(self):
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.05)
        self.stop()
        with open(self.output) as file:
            raise SystemExit(f"bench: error: Envoy ({self.name}) did not start; {self.output} says:\n{file.read()[-2000:]}")

    def stat(self, name):
        """A counter's sum over all names that end so."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/stats?filter={name}", timeout=5) as answer:
            return sum(int(line.split(": ")[1]) for line in answer.read().decode().splitlines() if ": " in line)

    def empty_ledger(self):
        if os.path.exists(self.ledger):
            os.truncate(self.ledger, 0)

    def ledger_lines(self, most=1):
        if not os.path.exists(self.ledger):
            return []
        with open(self.ledger) as file:
            return [line for _, line in zip(range(most), file)]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


class Rig:
    def __init__(self, binary):
        self.process = subprocess.Popen(
            [*first, "taskset", "-c", str(RIG_CORE), binary, "rig"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.port = self._read(START_SECONDS)["port"]

    def _read(self, seconds):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            raise SystemExit("bench: error: the rig does not answer")
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: error: the rig ended with status {self.process.wait()}")
        report = json.loads(line)
        if "error" in report:
            raise SystemExit(f"bench: error: the rig says: {report['error']}")
        return report

    def begin(self, **plan):
        self.process.stdin.write(json.dumps(plan) + "\n")
        self.process.stdin.flush()
        self.patience = plan.get("seconds", 1) + START_SECONDS

    def end(self):
        return self._read(self.patience)

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
