"""What hedging does to the time to the first token, with a primary that now and then is slow, and what it costs."""

import json
import os
import sys

import configs

# The primary's first token takes so long, and for so many of a hundred streams so much longer.
USUAL_MS, SLOW_MS, SLOW_PERCENT = 50, 3000, 5

STREAMS = {"stream": True, "connections": 32, "chunks": 4, "interval_us": 1000, "pace": "paced"}


class Hedging:
    def __init__(self, bench, seconds):
        self.bench, self.seconds = bench, seconds

    def load(self, key, percent, slow_ms=SLOW_MS, seconds=None):
        plan = {**STREAMS, "seconds": seconds or self.seconds, "model_us": USUAL_MS * 1000, "slow": (percent * 10, slow_ms * 1000)}
        result = self.bench.load(self.bench.envoys["gateway"], key, **plan)
        bad = result["failed"] + sum(count for status, count in result["statuses"].items() if status != "200")
        if bad or result["lost"]:
            self.bench.broken.append(f"{key}: {bad} bad answers, {result['lost']} chunks lost")
        ttft = {at: result["latency_us"][at] / 1000 for at in ("p50", "p90", "p95", "p99", "p999", "max")}
        return {
            "ttft_ms": ttft, "streams": result["requests"], "hedges": result["second"],
            "share": 100 * result["second"] / max(result["requests"], 1), "foreign": result["foreign"]}

    def rows(self):
        yield "no hedging", self.load(configs.OPEN, SLOW_PERCENT)
        yield f"hedging after {configs.HEDGE_AFTER_MS} ms", self.load(configs.HEDGED, SLOW_PERCENT)
        # Every stream is slow: the budget has to hold, or the second provider gets all of the load.
        yield "no hedging, all slow", self.load(configs.OPEN, 100, slow_ms=400)
        yield "hedging, all slow", self.load(configs.HEDGED, 100, slow_ms=400)


def run(bench, seconds=15):
    bench.start("gateway")
    hedging = Hedging(bench, seconds)
    hedging.load(configs.OPEN, 0, seconds=1)
    figures = {}
    for name, row in hedging.rows():
        print(f"bench: {name}", file=sys.stderr)
        figures[name] = row
    reloads = bench.envoys["gateway"].stat("vm_reload")
    if reloads:
        bench.broken.append(f"{reloads} reloads of a Wasm VM")
    return {"rows": figures, "broken": bench.broken}


def write(figures, out):
    with open(os.path.join(out, "hedging.json"), "w") as file:
        json.dump(figures, file, indent=1)
    print(f"\nTime to first token in ms: {USUAL_MS}, but {SLOW_MS} for {SLOW_PERCENT} % of the primary's streams")
    print(f"(all slow: 400 for all of them). Budget: {configs.HEDGE_PERCENT} hedges for 100 requests.\n")
    names = ("p50", "p90", "p95", "p99", "p999", "max")
    print(f"{'':24}{''.join(f'{name:>9}' for name in names)}{'streams':>10}{'hedges':>9}{'share':>8}")
    for name, row in figures["rows"].items():
        times = "".join(f"{row['ttft_ms'][at]:9.1f}" for at in names)
        print(f"{name:24}{times}{row['streams']:10}{row['hedges']:9}{row['share']:7.1f}%")
    print(f"\nOthers took at most {100 * max(row['foreign'] for row in figures['rows'].values()):.0f} % of a core.")
    for each in figures["broken"]:
        print(f"BROKEN: {each}")
