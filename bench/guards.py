"""What the guards do to time to first token and to streams, what an asynchronous guard lets out, and what guards read.

All through the same gateway: the model's own figures are those of a key without guards. Times in milliseconds."""

import sys
import time

import configs

GUARDS_MS, MODELS_MS = (20, 50, 200, 400), (20, 100, 400)

# Streams in a cell: at so many connections, whose first requests are spread over the cell's own time.
CELL = {"streams": 40, "connections": 4}

# A load during which others took more than this share of either core is taken again, once; the quieter one counts.
QUIET = 0.05

# All that may be spent on second loads.
MORE_SECONDS = 20

# Windows as they are shipped (configs.py).
FIRST_WINDOW, LAST_WINDOW, ASYNC_WINDOW = 8, 32, 32
SENTENCE_TOKENS = 20


class Guards:
    def __init__(self, bench):
        self.bench = bench
        self.more_seconds = MORE_SECONDS

    def load(self, key, ends="whole", **plan):
        """The quieter of at most two loads. `ends`: whether streams are to end whole or cut."""
        gateway = self.bench.envoys["gateway"]
        plan = {"stream": True, "precise": True, "fresh": True, "pace": "paced", **plan}
        taken = []
        while not taken or (len(taken) < 2 and taken[0]["foreign"] > QUIET and self.more_seconds > 0):
            begun = time.monotonic()
            taken.append(self.bench.load(gateway, key, **plan))
            if len(taken) == 2:
                self.more_seconds -= time.monotonic() - begun
            self.check(taken[-1], ends, key, plan)
        return min(taken, key=lambda each: each["foreign"])

    def check(self, result, ends, key, plan):
        bad = result["failed"] + sum(count for status, count in result["statuses"].items() if status != "200")
        faults = {"bad answers": bad, "chunks lost": result["lost"]}
        if ends == "cut":
            faults["offences missed"] = result["missed"]
        else:
            faults["refusals of what is well"] = result["cut"]
        if key != configs.OPEN and result["verdicts"] < result["requests"]:
            faults["answers without a verdict"] = result["requests"] - result["verdicts"]
        told = ", ".join(f"{count} {what}" for what, count in faults.items() if count)
        if told:
            self.bench.broken.append(f"{key}, {plan}: {told}")

    def first_token(self, key, model_ms, guard_ms=0, streams=CELL["streams"], connections=CELL["connections"], **plan):
        """One cell of the grid; `plan` has the streams behind the first token."""
        slowest = max(model_ms, guard_ms)
        plan = {"chunks": 4, "interval_us": 1000, **plan}
        took = slowest + plan["chunks"] * plan["interval_us"] / 1000
        result = self.load(
            key, model_us=model_ms * 1000, guard_us=guard_ms * 1000, connections=connections,
            stagger_us=int(took * 1000 / connections), seconds=took * streams / connections / 1000, **plan)
        ttft = {name: value / 1000 for name, value in result["latency_us"].items() if name != "n"}
        return {"ttft": ttft, "n": result["latency_us"]["n"], "foreign": result["foreign"]}

    def added(self, off, model_ms, guard_ms, **plan):
        """A cell beside the same load with the guard off."""
        on = self.first_token(configs.PARALLEL, model_ms, guard_ms, **plan)
        own, expected = off["ttft"]["p50"], max(0, guard_ms - model_ms)
        return {
            "guard_ms": guard_ms, "model_ms": model_ms, "expected": expected, "n": on["n"],
            **{f"added_{at}": on["ttft"][at] - own for at in ("p50", "p99")},
            **{f"e_{at}": on["ttft"][at] - own - expected for at in ("p50", "p90", "p99")},
            # How far the same load strays from its median without a guard.
            "off_stray_p99": off["ttft"]["p99"] - own, "foreign": max(on["foreign"], off["foreign"])}

    def grid(self):
        rows = []
        for model_ms in MODELS_MS:
            off = self.first_token(configs.OPEN, model_ms)
            rows += [self.added(off, model_ms, guard_ms) for guard_ms in GUARDS_MS]
        return rows

    def hundred(self):
        # So many timers leave no rest: to the millisecond, as it is on both sides.
        plan = {"streams": 400, "connections": 100, "chunks": 50, "interval_us": 20_000, "precise": False}
        off = self.first_token(configs.OPEN, 100, **plan)
        return [self.added(off, 100, guard_ms, **plan) for guard_ms in (50, 200)]

    def held(self, interval_ms=20, model_ms=100, tokens=200):
        """Streams under each output guard beside the same streams without one."""
        plan = {
            "reads": True, "connections": 10, "once": True, "stagger_us": 97_000, "seconds": 2, "chunks": tokens,
            "interval_us": interval_ms * 1000, "model_us": model_ms * 1000}
        rows = {}
        for name, key, guard_ms, sentence in (
                ("off", configs.OPEN, 0, 0), ("hold", configs.HOLD, 50, 0), ("hold, sentences", configs.HOLD, 50, SENTENCE_TOKENS),
                ("hold, slow guard", configs.HOLD, 200, 0), ("hold, slower guard", configs.HOLD, 800, 0),
                ("async", configs.ASYNC, 50, 0)):
            result = self.load(key, guard_us=guard_ms * 1000, sentence=sentence, **plan)
            times = {
                field: {at: result[source][at] / 1000 for at in ("min", "p50", "p99", "max")}
                for field, source in (("first", "latency_us"), ("stall", "stall_us"), ("total", "total_us"))}
            times["token"] = {at: result["chunk_us"][at] / 1000 for at in ("p50", "p99", "max")}
            rows[name] = {
                **times, "guard_ms": guard_ms, "n": result["latency_us"]["n"], "calls": result["verdicts"] / result["requests"],
                "foreign": result["foreign"]}
            rows[name].update(self.promises(rows[name], rows["off"], interval_ms, holds=key == configs.HOLD))
        return {"interval_ms": interval_ms, "model_ms": model_ms, "tokens": tokens, "rows": rows}

    @staticmethod
    def promises(row, off, interval_ms, holds):
        """What the windows let expect: the first one's tokens and a call; then, as calls and windows overlap, the longer of
        the two (to the token); at the end one call more, and what the call before it let pass waits with it: what leaves a
        stream whose provider is done ends it."""
        guard_ms = row["guard_ms"]
        first = off["first"]["p50"] + ((FIRST_WINDOW - 1) * interval_ms + guard_ms if holds else 0)
        stall = max(LAST_WINDOW * interval_ms, 2 * guard_ms) + interval_ms if holds else interval_ms
        # What is under way at the end has to be awaited before the last text is asked about.
        return {"first_expected": first, "stall_expected": stall, "total_expected": off["total"]["p50"] + 2 * guard_ms}

    def exposed(self):
        """Streams that offend at one of their tokens 10 to 73, until they are cut."""
        rows = []
        for mode, key, interval_ms, guard_ms in (
                ("async", configs.ASYNC, 20, 50), ("async", configs.ASYNC, 20, 200), ("async", configs.ASYNC, 5, 200),
                ("async", configs.ASYNC, 60, 50), ("hold", configs.HOLD, 20, 50)):
            result = self.load(
                key, ends="cut", reads=True, precise=False, connections=24, once=True, stagger_us=53_000, seconds=2, chunks=2000 // interval_ms + 300,
                interval_us=interval_ms * 1000, model_us=20_000, guard_us=guard_ms * 1000, offence=(10, 64))
            close = {
                since: {at: (result[f"{since}_us"][at] or 0) / 1000 for at in ("p50", "p99", "max")}
                for since in ("unsafe_to_close", "categories_to_close", "categories_to_done")}
            rows.append({
                "mode": mode, "interval_ms": interval_ms, "guard_ms": guard_ms, "n": result["cut"],
                "exposure": {at: result["exposure"][at] for at in ("p50", "p99", "max")},
                "allowed": ASYNC_WINDOW + guard_ms / interval_ms if mode == "async" else 0, **close,
                "closed": result["unsafe_to_close_us"]["n"], "foreign": result["foreign"]})
        return rows

    def prefilled(self, tokens=1024):
        """What the output guard reads of one answer."""
        warm = {"reads": True, "connections": 1, "once": True, "chunks": 20, "interval_us": 1000, "seconds": 1}
        self.load(configs.HOLD, **warm)
        rows = []
        for name, key, sentence in (
                ("hold", configs.HOLD, 0), ("hold, sentences", configs.HOLD, SENTENCE_TOKENS), ("async", configs.ASYNC, 0),
                ("async, sentences", configs.ASYNC, SENTENCE_TOKENS)):
            result = self.load(
                key, reads=True, precise=False, connections=4, once=True, stagger_us=37_000, seconds=1, chunks=tokens, interval_us=4000,
                model_us=20_000, guard_us=50_000, sentence=sentence)
            answers = result["requests"]
            rows.append({
                "name": name, "answers": answers, "calls": result["verdicts"] / answers, "prompt": result["prompt_tokens"] / answers,
                "uncached": result["uncached_tokens"] / answers, "foreign": result["foreign"]})
        return rows


def run(bench):
    guards = Guards(bench)
    bench.start("gateway")
    for key in (configs.OPEN, configs.PARALLEL, configs.HOLD, configs.ASYNC):
        guards.load(key, connections=8, seconds=0.3, chunks=20, interval_us=1000)
    figures = {}
    for name, title, measure in (
            ("grid", "input guard in parallel: guard x model", guards.grid),
            ("hundred", "input guard in parallel: 100 streams", guards.hundred),
            ("held", "output guard: first byte, stalls, total", guards.held),
            ("exposed", "output guard: exposure and cancellation", guards.exposed),
            ("prefilled", "output guard: tokens prefilled", guards.prefilled)):
        print(f"bench: {title}", file=sys.stderr)
        figures[name] = measure()
    reloads = bench.envoys["gateway"].stat("vm_reload")
    if reloads:
        bench.broken.append(f"{reloads} reloads of a Wasm VM")
    figures["broken"] = bench.broken
    return figures
