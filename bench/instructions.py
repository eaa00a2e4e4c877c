"""Instructions of Envoy's whole process for a request and for a chunk, counted by valgrind: what no neighbour changes.
The kernel's are not in it. Envoy runs some fifty times slower meanwhile, so nothing here says how long anything takes."""

import glob
import json
import os
import re
import subprocess
import sys

import configs
from processes import Envoy, free_port

ROWS = (("bare", "bare", configs.OPEN), ("open", "gateway", configs.OPEN), ("whole", "gateway", configs.WHOLE))
LOADS = {
    "request": {"connections": 4, "seconds": 10},
    # A stream's beginning is spread over its chunks.
    "chunk": {"connections": 4, "stream": True, "chunks": 200, "pace": "lockstep", "seconds": 10},
}
WARM = {"connections": 4, "seconds": 2}


def count(bench, which, key, plan):
    listener, admin = free_port(), free_port()
    config = configs.rendered(bench.binary, bench.rig.port, listener, admin, bench.out)
    out = os.path.join(bench.out, "callgrind.out")
    for old in glob.glob(out + "*"):
        os.remove(old)
    under = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--instr-atstart=no"]
    envoy = Envoy(which, getattr(configs, which)(config), listener, admin, bench.out, under=under, patience=240)
    try:
        switch = lambda state: subprocess.run(
            ["callgrind_control", "-i", state, str(envoy.pid)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bench.rig.begin(port=envoy.port, key=key, **WARM)
        bench.rig.end()
        switch("on")
        bench.rig.begin(port=envoy.port, key=key, **plan)
        result = bench.rig.end()
        switch("off")
    finally:
        envoy.stop()
    bad = result["failed"] + sum(count for status, count in result["statuses"].items() if status != "200")
    units = result["chunks"] if plan.get("stream") else result["requests"]
    if bad or not units:
        bench.broken.append(f"{which}, {key}: {bad} bad answers of {units}")
    with open(out, errors="replace") as file:
        total = sum(int(found[1]) for found in re.finditer(r"^totals: (\d+)$", file.read(), re.M))
    return total / max(units, 1)


def run(bench):
    figures = {}
    for unit, plan in LOADS.items():
        for name, which, key in ROWS:
            print(f"bench: {name}, by {unit}", file=sys.stderr)
            figures.setdefault(unit, {})[name] = count(bench, which, key, plan)
    return {"instructions": figures, "broken": bench.broken}


def write(figures, out):
    with open(os.path.join(out, "instructions.json"), "w") as file:
        json.dump(figures, file, indent=1)
    print("\nInstructions of Envoy, without the kernel's\n")
    print(f"{'':10}{'by request':>12}{'added':>12}{'by chunk':>12}{'added':>12}")
    counted = figures["instructions"]
    for name, _, _ in ROWS:
        cells = "".join(
            f"{counted[unit][name]:12,.0f}{counted[unit][name] - counted[unit]['bare']:12,.0f}" for unit in LOADS)
        print(f"{name:10}{cells}")
    for broken in figures["broken"]:
        print(f"!! {broken}")
