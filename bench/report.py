"""The figures as a table beside their targets, as JSON, and as a picture."""

import json
import os
from xml.sax.saxutils import escape


def targets(figures):
    """(what, value, unit, limit, how) of each number that Parapet has set itself."""
    whole, single = figures["json16"]["whole"], figures["json1"]["whole"]
    memory = figures["memory"]
    per_stream = memory["open"]["kib_per_stream"] - memory["bare"]["kib_per_stream"]
    return [
        ("whole path: CPU added per request", whole["added_cpu_us"], "µs", 20, "<="),
        ("whole path: requests/s, of bare", whole["of_bare"] * 100, "%", 60, ">="),
        ("whole path: p99 at 16 connections", whole["p99_us"] / 1000, "ms", 5, "<="),
        ("whole path: p50 added at 1 connection", single["added_p50_us"], "µs", 45, "<="),
        ("whole path: p99 added at 1 connection", single["added_p99_us"], "µs", 100, "<="),
        ("SSE paced: CPU added per chunk", figures["paced"]["open"]["added_cpu_us"], "µs", 2, "<="),
        ("SSE lockstep: CPU added per chunk", figures["lockstep"]["open"]["added_cpu_us"], "µs", 2, "<="),
        ("SSE lockstep: chunks/s, of bare", figures["lockstep"]["open"]["of_bare"] * 100, "%", 80, ">="),
        ("SSE held, paced: CPU added per chunk", figures["paced"]["hold"]["added_cpu_us"], "µs", 10, "<="),
        ("512 paced streams: late chunks", memory["open"]["late"], "", 0, "<="),
        ("512 paced streams: lost chunks", memory["open"]["lost"], "", 0, "<="),
        ("memory per open stream above bare", per_stream, "KiB", 16, "<="),
    ]


SERIES = (
    ("json16", "JSON, 16 connections", "request"), ("json1", "JSON, 1 connection", "request"),
    ("paced", "SSE, 64 streams, paced", "chunk"), ("lockstep", "SSE, 64 streams, lockstep", "chunk"),
    ("burst", "SSE, 64 streams, burst", "chunk"))


def met(value, limit, how):
    return value <= limit if how == "<=" else value >= limit


def table(figures):
    lines = []
    alone, bare = figures["alone"], figures["json16"]["bare"]["per_second"]
    times = alone["json"] / bare
    lines.append(f"rig alone: {alone['json']:,.0f} requests/s ({times:.1f} x bare Envoy), {alone['chunks']:,.0f} chunks/s")
    if times < 3:
        lines.append(f"!! THE RIG IS ONLY {times:.1f} x AS FAST AS BARE ENVOY (3 wanted): ratios flatter the gateway; CPU figures stand")
    for name, title, unit in SERIES:
        series = figures[name]
        noise = f"{series['rounds']} rounds, others took up to {series['foreign'] * 100:.0f} % of a core"
        lines += ["", f"{title} ({noise}{'' if series['quiet'] else ': NOISY'})"]
        lines.append(f"  {'':8}{unit + 's/s':>12}{'of bare':>9}{'(range)':>12}{'CPU µs':>8}{'user':>7}{'added':>7}{'(range)':>14}{'p50 µs':>9}{'p99 µs':>9}")
        for subject in ("bare", "open", "whole", "hold"):
            row = series.get(subject)
            if row:
                low, high = row["of_bare_range"]
                least, most = row["added_cpu_range"]
                lines.append(
                    f"  {subject:8}{row['per_second']:12,.0f}{row['of_bare'] * 100:8.0f}%{f'({low * 100:.0f}-{high * 100:.0f})':>12}"
                    f"{row['cpu_us']:8.1f}{row['user_us']:7.1f}{row['added_cpu_us']:7.1f}{f'({least:.1f}..{most:.1f})':>14}"
                    f"{row['p50_us']:9,.0f}{row['p99_us']:9,.0f}")
    lines += ["", "512 paced streams (a fresh Envoy)"]
    for subject, row in figures["memory"].items():
        lines.append(
            f"  {subject:8}{row['kib_per_stream']:6.1f} KiB a stream, {row['late']} late, {row['lost']} lost of {row['chunks']:,} chunks, "
            f"p99 {row['chunk_p99_us']:,} µs, others took {row['foreign'] * 100:.0f} %")
    lines += ["", f"  {'target':44}{'measured':>12}{'wanted':>12}"]
    for what, value, unit, limit, how in targets(figures):
        wanted = f"{how} {limit} {unit}".rstrip()
        lines.append(f"  {what:44}{f'{value:.1f} {unit}'.rstrip():>12}{wanted:>12}  {'met' if met(value, limit, how) else 'MISSED'}")
    lines += [f"!! {broken}" for broken in figures["broken"]]
    return "\n".join(lines)


COLOURS = {"bare": "#9aa5b1", "open": "#3b82c4", "whole": "#1f4e79", "hold": "#c2703d"}


def panel(x, y, title, rows, form):
    """Bars from (subject, value)."""
    most = max((value for _, value in rows), default=1) or 1
    parts = [f'<text x="{x}" y="{y}" font-weight="bold">{escape(title)}</text>']
    for index, (subject, value) in enumerate(rows):
        top, width = y + 12 + index * 22, 200 * max(value, 0) / most
        parts.append(f'<text x="{x}" y="{top + 12}">{subject}</text>')
        parts.append(f'<rect x="{x + 50}" y="{top}" width="{width:.1f}" height="16" fill="{COLOURS[subject]}"/>')
        parts.append(f'<text x="{x + 56 + width:.1f}" y="{top + 12}">{escape(form.format(value))}</text>')
    return parts


def picture(figures):
    panels = []
    for name, title, unit in SERIES[:4]:
        rows = [(subject, figures[name][subject]) for subject in ("bare", "open", "whole", "hold") if subject in figures[name]]
        if name == "json1":
            panels.append(("JSON, 1 connection: p50", [(s, row["p50_us"]) for s, row in rows], "{:,.0f} µs"))
            panels.append(("JSON, 1 connection: p99", [(s, row["p99_us"]) for s, row in rows], "{:,.0f} µs"))
            continue
        if name != "paced":
            panels.append((f"{title}: {unit}s/s", [(s, row["per_second"]) for s, row in rows], "{:,.0f}"))
        panels.append((f"{title}: CPU per {unit}", [(s, row["cpu_us"]) for s, row in rows], "{:.1f} µs"))
    parts = []
    for index, (title, rows, form) in enumerate(panels):
        parts += panel(20 + (index % 2) * 370, 40 + (index // 2) * 130, title, rows, form)
    height = 40 + (len(panels) + 1) // 2 * 130
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')


def write(figures, out):
    figures["targets"] = [
        {"what": what, "value": value, "unit": unit, "limit": limit, "how": how, "met": met(value, limit, how)}
        for what, value, unit, limit, how in targets(figures)]
    with open(os.path.join(out, "result.json"), "w") as file:
        json.dump(figures, file, indent=1)
    with open(os.path.join(out, "result.svg"), "w") as file:
        file.write(picture(figures))
    print(table(figures))
    print(f"\nbench: {figures['mode']} run of {figures['seconds']:.0f} s, load average at its start {figures['load_at_start']}; "
          f"{out}/result.json, {out}/result.svg")
