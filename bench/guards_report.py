"""The guards' figures as tables beside their targets, as JSON, and as a picture."""

import json
import os
from xml.sax.saxutils import escape

import guards
from report import met


def targets(figures):
    """(what, value, unit, limit, how)."""
    grid, hundred, held = figures["grid"], figures["hundred"], figures["held"]["rows"]
    rows = [
        ("parallel, grid: e p50, worst cell", max(row["e_p50"] for row in grid), "ms", 2, "<="),
        ("parallel, 100 streams: e p50", max(row["e_p50"] for row in hundred), "ms", 2, "<="),
        ("parallel, 100 streams: e p99", max(row["e_p99"] for row in hundred), "ms", 8, "<="),
    ]
    for name, row in held.items():
        if name.startswith("hold"):
            guard = f"{name}, guard {row['guard_ms']} ms"
            rows += [
                (f"{guard}: first byte behind 8 tokens + call", row["first"]["p50"] - row["first_expected"], "ms", 2, "<="),
                (f"{guard}: longest stall", row["stall"]["max"], "ms", row["stall_expected"], "<="),
                (f"{guard}: total, p50", row["total"]["p50"], "ms", round(row["total_expected"] + 2), "<="),
            ]
    for row in figures["exposed"]:
        load = f"{row['mode']}, {row['interval_ms']} ms a token, guard {row['guard_ms']} ms"
        rows += [
            (f"{load}: exposure, max", row["exposure"]["max"], "tokens", row["allowed"], "<="),
            (f"{load}: unsafe to closed, p99", row["unsafe_to_close"]["p99"], "ms", 50, "<="),
        ]
    for row in figures["prefilled"]:
        rows.append((f"{row['name']}: uncached tokens per 1,024", row["uncached"], "tokens", 4000, "<="))
    return rows


def noise(row):
    return f"{row['foreign'] * 100:4.0f} %{' NOISY' if row['foreign'] > guards.QUIET else ''}"


def grid_lines(title, rows):
    lines = ["", title]
    lines.append(f"  {'guard':>6}{'model':>7}{'streams':>9}{'expected':>10}{'added p50':>11}{'added p99':>11}{'e p50':>8}{'e p90':>8}{'e p99':>8}{'off stray':>11}{'others':>8}")
    for row in rows:
        lines.append(
            f"  {row['guard_ms']:6}{row['model_ms']:7}{row['n']:9}{row['expected']:10}{row['added_p50']:11.2f}{row['added_p99']:11.2f}"
            f"{row['e_p50']:8.2f}{row['e_p90']:8.2f}{row['e_p99']:8.2f}{row['off_stray_p99']:11.2f}{noise(row):>8}")
    return lines


def table(figures):
    first = "what is measured had priority over them" if figures["first"] else "and came before what is measured as often as behind it"
    lines = [
        f"times in ms; 'others' is the share of a core that other processes took ({first}); 'off stray' is p99 above p50 without a guard"]
    lines += grid_lines(
        "input guard, parallel: first token against the same without a guard; expected is max(0, guard - model)", figures["grid"])
    lines += grid_lines("the same at 100 concurrent streams of 50 tokens, 20 ms apart", figures["hundred"])
    held = figures["held"]
    lines += ["", f"output guard: {held['tokens']} tokens, {held['interval_ms']} ms apart, first after {held['model_ms']} ms"]
    lines.append(f"  {'':20}{'guard':>6}{'calls':>7}{'first p50':>11}{'(expected)':>12}{'stall p50':>11}{'max':>9}{'x guard':>9}{'total p50':>11}{'held p50':>10}{'p99':>9}{'others':>8}")
    for name, row in held["rows"].items():
        times = f"{row['stall']['max'] / row['guard_ms']:.1f}" if row["guard_ms"] else ""
        lines.append(
            f"  {name:20}{row['guard_ms']:6}{row['calls']:7.1f}{row['first']['p50']:11.1f}{row['first_expected']:12.1f}{row['stall']['p50']:11.1f}"
            f"{row['stall']['max']:9.1f}{times:>9}{row['total']['p50']:11.1f}{row['token']['p50']:10.1f}{row['token']['p99']:9.1f}{noise(row):>8}")
    lines += ["", "offending streams: tokens the client got behind the offence; from the guard's word to the model's connection closed"]
    lines.append(f"  {'':7}{'token':>6}{'guard':>7}{'streams':>9}{'exposed p50':>13}{'max':>6}{'allowed':>9}{'unsafe: p50':>13}{'p99':>8}{'categories: p50':>17}{'p99':>8}{'client: p50':>13}{'others':>8}")
    for row in figures["exposed"]:
        lines.append(
            f"  {row['mode']:7}{row['interval_ms']:6}{row['guard_ms']:7}{row['n']:9}{row['exposure']['p50']:13}{row['exposure']['max']:6}"
            f"{row['allowed']:9.1f}{row['unsafe_to_close']['p50']:13.1f}{row['unsafe_to_close']['p99']:8.1f}"
            f"{row['categories_to_close']['p50']:17.1f}{row['categories_to_close']['p99']:8.1f}{row['categories_to_done']['p50']:13.1f}{noise(row):>8}")
    lines += ["", "guard tokens prefilled per answer of 1,024 tokens (5 bytes a token, prefix cache in blocks of 16, a conversation of 1.1 KB before it)"]
    lines.append(f"  {'':20}{'answers':>8}{'calls':>7}{'prompt':>9}{'uncached':>10}{'others':>8}")
    for row in figures["prefilled"]:
        lines.append(
            f"  {row['name']:20}{row['answers']:8}{row['calls']:7.1f}{row['prompt']:9,.0f}{row['uncached']:10,.0f}{noise(row):>8}")
    lines += ["", f"  {'target':64}{'measured':>16}{'wanted':>18}"]
    for what, value, unit, limit, how in targets(figures):
        lines.append(
            f"  {what:64}{f'{value:,.1f} {unit}':>16}{f'{how} {limit:,.4g} {unit}':>18}  {'met' if met(value, limit, how) else 'MISSED'}")
    lines += [f"!! {broken}" for broken in figures["broken"]]
    return "\n".join(lines)


COLOURS = {20: "#9aa5b1", 50: "#3b82c4", 200: "#1f4e79", 400: "#c2703d"}


def picture(figures):
    """Added time to first token of each cell, above what is expected of it."""
    rows = figures["grid"] + figures["hundred"]
    most = max(max(row["added_p50"] for row in rows), 1)
    parts = [
        '<text x="20" y="24" font-weight="bold">Input guard in parallel: added time to first token (line: max(0, guard - model))</text>']
    for index, row in enumerate(rows):
        top = 40 + index * 22
        width, expected = (300 * max(value, 0) / most for value in (row["added_p50"], row["expected"]))
        streams = " (100 streams)" if row in figures["hundred"] else ""
        parts.append(f'<text x="20" y="{top + 12}">guard {row["guard_ms"]}, model {row["model_ms"]} ms{streams}</text>')
        parts.append(f'<rect x="270" y="{top}" width="{width:.1f}" height="16" fill="{COLOURS[row["guard_ms"]]}"/>')
        parts.append(f'<line x1="{270 + expected:.1f}" y1="{top - 2}" x2="{270 + expected:.1f}" y2="{top + 18}" stroke="black"/>')
        told = escape(f"{row['added_p50']:.1f} ms (p99 {row['added_p99']:.1f})")
        parts.append(f'<text x="{276 + max(width, expected):.1f}" y="{top + 12}">{told}</text>')
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{60 + len(rows) * 22}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')


def write(figures, out):
    figures["targets"] = [
        {"what": what, "value": value, "unit": unit, "limit": limit, "how": how, "met": met(value, limit, how)}
        for what, value, unit, limit, how in targets(figures)]
    with open(os.path.join(out, "guards.json"), "w") as file:
        json.dump(figures, file, indent=1)
    with open(os.path.join(out, "guards.svg"), "w") as file:
        file.write(picture(figures))
    print(table(figures))
    print(f"\nbench: {figures['mode']} run of {figures['seconds']:.0f} s, load average at its start {figures['load_at_start']}; "
          f"{out}/guards.json, {out}/guards.svg")
