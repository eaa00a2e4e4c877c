"""Runs the slices and hands the figures to the report; see bench/run."""

import argparse
import os
import shutil
import statistics
import sys
import time

import configs
import guards
import guards_report
import hedging
import instructions
import report
from processes import ENVOY_CORE, RIG_CORE, Envoy, Rig, before_others, core_seconds, cpu_seconds, free_port, rss_kib

# A slice in which others took more than this share of either core is taken again, if there is time.
QUIET = 0.05

LENGTHS = {
    "full": {"rounds": 5, "more": 3, "json": 3.0, "single": 2.0, "chunks": 2.0, "paced_rounds": 3},
    "quick": {"rounds": 3, "more": 0, "json": 1.0, "single": 0.7, "chunks": 1.0, "paced_rounds": 1},
}

MAKERS = {"bare": configs.bare, "gateway": configs.gateway}


class Bench:
    def __init__(self, rig, out, lengths):
        self.binary, self.out, self.lengths = rig, out, lengths
        self.rig = Rig(rig)
        self.envoys = {}
        self.broken = []

    def start(self, *names):
        self.stop_envoys()
        for name in names:
            make, listener, admin = MAKERS[name], free_port(), free_port()
            config = configs.rendered(self.binary, self.rig.port, listener, admin, self.out)
            self.envoys[name] = Envoy(name, make(config), listener, admin, self.out)

    def stop_envoys(self):
        for envoy in self.envoys.values():
            envoy.stop()
        self.envoys.clear()

    def load(self, envoy, key, during=None, **plan):
        """One load on one Envoy: the rig's report, with what others took of the cores and what Envoy used."""
        cores = [core_seconds(core) for core in (ENVOY_CORE, RIG_CORE)]
        pids = [each.pid for each in self.envoys.values()]
        before = {pid: cpu_seconds(pid) for pid in (*pids, self.rig.pid)}
        begun = time.monotonic()
        self.rig.begin(port=envoy.port, key=key, **plan)
        noted = during() if during else None
        result = self.rig.end()
        elapsed = time.monotonic() - begun
        used = {pid: [b - a for a, b in zip(before[pid], cpu_seconds(pid))] for pid in before}
        seconds = [sum(sum(used[pid]) for pid in pids), sum(used[self.rig.pid])]
        foreign = [
            max(0.0, core_seconds(core) - core_before - own) / elapsed
            for core, core_before, own in zip((ENVOY_CORE, RIG_CORE), cores, seconds)]
        envoy.empty_ledger()
        return {**result, "foreign": max(foreign), "noted": noted, "cpu_seconds": used[envoy.pid]}

    def slice(self, envoy, key, during=None, **plan):
        """A load's figures by request or chunk."""
        result = self.load(envoy, key, during, **plan)
        bad = result["failed"] + sum(count for status, count in result["statuses"].items() if status != "200")
        if bad or result["lost"]:
            self.broken.append(f"{envoy.name}, {plan}: {bad} bad answers, {result['lost']} chunks lost")
        # A request answered from the cache is no miss; the last one of a connection may have been left unanswered.
        if result["served"] < result["requests"]:
            self.broken.append(f"{envoy.name}, {plan}: {result['requests']} answers of which the model gave {result['served']}")
        units = result["chunks"] if plan.get("stream") else result["requests"]
        user, system = result["cpu_seconds"]
        return {
            "per_second": units / (result["elapsed_us"] / 1e6), "cpu_us": (user + system) * 1e6 / max(units, 1),
            "user_us": user * 1e6 / max(units, 1), "p50_us": result["latency_us"]["p50"] or 0,
            "p99_us": result["latency_us"]["p99"] or 0, "chunk_p99_us": result["chunk_us"]["p99"] or 0, "late": result["late"],
            "lost": result["lost"], "bad": bad, "verdicts": result["verdicts"], "foreign": result["foreign"], "noted": result["noted"]}

    def series(self, title, subjects, rounds, **plan):
        """Alternating slices. Figures are medians over the quiet rounds; those that compare are medians of each round's
        comparison with its own bare slice."""
        print(f"bench: {title}", file=sys.stderr)
        taken = []
        quiet = []
        for _ in range(rounds + self.lengths["more"]):
            taken.append({name: self.slice(self.envoys[which], key, **plan) for name, which, key in subjects})
            quiet = [each for each in taken if max(slice["foreign"] for slice in each.values()) <= QUIET]
            if len(quiet) >= rounds:
                break
        used = quiet if len(quiet) >= min(2, rounds) else taken
        figures = {}
        for name, _, _ in subjects:
            median = {field: statistics.median(each[name][field] for each in used) for field in (
                "per_second", "cpu_us", "user_us", "p50_us", "p99_us", "chunk_p99_us")}
            for field in ("late", "lost", "bad", "verdicts"):
                median[field] = sum(each[name][field] for each in taken)
            pairs = [(each[name], each["bare"]) for each in used]
            median["of_bare"] = statistics.median(one["per_second"] / bare["per_second"] for one, bare in pairs)
            for field in ("cpu_us", "p50_us", "p99_us"):
                median["added_" + field] = statistics.median(one[field] - bare[field] for one, bare in pairs)
            ratios = [one["per_second"] / bare["per_second"] for one, bare in pairs]
            median["of_bare_range"] = [min(ratios), max(ratios)]
            added = [one["cpu_us"] - bare["cpu_us"] for one, bare in pairs]
            median["added_cpu_range"] = [min(added), max(added)]
            figures[name] = median
        figures["rounds"] = len(used)
        figures["quiet"] = used is quiet
        figures["foreign"] = max(slice["foreign"] for each in used for slice in each.values())
        figures["slices"] = taken
        return figures

    def alone(self):
        """What the rig reaches against itself."""
        figures = {}
        for name, plan in {
                "json": {"connections": 16, "seconds": self.lengths["json"]},
                "chunks": {"connections": 64, "stream": True, "pace": "lockstep", "seconds": 1.0}}.items():
            best = 0
            for _ in range(3):
                self.rig.begin(port=0, **plan)
                result = self.rig.end()
                units = result["chunks"] if plan.get("stream") else result["requests"]
                best = max(best, units / (result["elapsed_us"] / 1e6))
            figures[name] = best
        return figures

    def memory(self, key, name, streams=512):
        """What an open stream takes, of an Envoy that has seen few before; and whether so many arrive in time."""
        envoy = self.envoys[name]
        self.slice(envoy, key, connections=16, stream=True, once=True, chunks=20, interval_us=10_000, seconds=1)
        before = rss_kib(envoy.pid)

        def halfway():
            time.sleep(2.0)
            return rss_kib(envoy.pid)

        taken = self.slice(envoy, key, during=halfway, connections=streams, stream=True, once=True, chunks=60,
                           interval_us=50_000, seconds=1)
        return {"kib_per_stream": (taken["noted"] - before) / streams, "rss_kib": taken["noted"], "late": taken["late"],
                "lost": taken["lost"], "chunks": streams * 60, "chunk_p99_us": taken["chunk_p99_us"],
                "foreign": taken["foreign"]}


def warm(bench):
    for which, key in (("bare", configs.OPEN), ("gateway", configs.OPEN), ("gateway", configs.WHOLE)):
        if bench.slice(bench.envoys[which], key, connections=16, seconds=1.0)["bad"]:
            raise SystemExit(f"bench: error: {which} does not serve, so nothing can be compared: {bench.broken[-1]}")
    verdicts = bench.slice(bench.envoys["gateway"], configs.WHOLE, connections=16, seconds=0.3)["verdicts"]
    if verdicts:
        bench.broken.append(f"the guard was asked {verdicts} times: its verdict is not remembered")


def run(bench):
    lengths = bench.lengths
    figures = {"alone": bench.alone()}
    bench.start("bare", "gateway")
    figures["memory"] = {
        "bare": bench.memory(configs.OPEN, "bare"), "open": bench.memory(configs.OPEN, "gateway")}
    warm(bench)
    bare, opened = ("bare", "bare", configs.OPEN), ("open", "gateway", configs.OPEN)
    whole, hold = ("whole", "gateway", configs.WHOLE), ("hold", "gateway", configs.HOLD)
    rounds = lengths["rounds"]
    figures["json16"] = bench.series(
        "JSON, 16 connections", (bare, opened, whole), rounds, connections=16, seconds=lengths["json"])
    figures["json1"] = bench.series(
        "JSON, one connection", (bare, opened, whole), rounds, connections=1, seconds=lengths["single"])
    streams = {"stream": True, "connections": 64, "chunks": 200}
    figures["paced"] = bench.series(
        "64 streams of 200 chunks, each 10 ms apart", (bare, opened, whole, hold), lengths["paced_rounds"], seconds=1,
        once=True, pace="paced", interval_us=10_000, **streams)
    figures["lockstep"] = bench.series(
        "64 streams, each chunk after the one before", (bare, opened, whole), rounds, seconds=lengths["chunks"],
        pace="lockstep", **streams)
    figures["burst"] = bench.series(
        "64 streams as fast as they go", (bare, opened, whole, hold), lengths["paced_rounds"], seconds=lengths["chunks"],
        pace="burst", **streams)
    reloads = bench.envoys["gateway"].stat("vm_reload")
    if reloads:
        bench.broken.append(f"{reloads} reloads of a Wasm VM")
    figures["broken"] = bench.broken
    return figures


# How it is run, and who writes what came of it.
OTHERS = {
    "guards": (guards.run, guards_report), "hedging": (hedging.run, hedging), "instructions": (instructions.run, instructions)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=[*LENGTHS, *OTHERS])
    parser.add_argument("--rig", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    directory = os.path.join(arguments.out, "run")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, mode=0o700)
    first = arguments.mode in ("guards", "hedging") and before_others()
    bench = Bench(arguments.rig, directory, LENGTHS.get(arguments.mode))
    begun = time.monotonic()
    try:
        with open("/proc/loadavg") as file:
            load = file.read().split()[0]
        figures = OTHERS[arguments.mode][0](bench) if arguments.mode in OTHERS else run(bench)
    finally:
        bench.stop_envoys()
        bench.rig.stop()
        for name in os.listdir(directory):
            if name.endswith(".access.jsonl"):
                os.remove(os.path.join(directory, name))
    figures.update(mode=arguments.mode, first=first, load_at_start=float(load), seconds=time.monotonic() - begun)
    (OTHERS[arguments.mode][1] if arguments.mode in OTHERS else report).write(figures, arguments.out)


if __name__ == "__main__":
    main()
