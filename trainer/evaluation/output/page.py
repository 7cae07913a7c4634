"""The results as one HTML page without scripts, fonts or images from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
th { text-align: left; font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.small { color: #555; font-size: 13px; } .bad { color: #a00; } svg { display: block; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e8e8e8; } th, td { border-color: #3a3d44; }
.small { color: #aaa; } .bad { color: #f88; } }
"""
WIDTH = 160  # of a bar, in pixels; per cent are drawn on 0 to 100


def page(content: Mapping[str, Any]) -> str:
    """The page of what `results.json` has."""
    suites = list(content["suites"].values())
    settings = content["settings"]
    model = content["model"]
    facts = ", ".join(f"{name} {value}" for name, value in settings.items())
    rows = "".join(_row(result) for result in suites)
    head = "".join(
        f'<th class="{kind}">{text}</th>'
        for text, kind in (
            ("suite", ""), ("domain", ""), ("metric", ""), ("value", "n"), ("95 % interval", "n"), ("", ""),
            ("Intern-S1-Pro, as reported", "n"), ("items", "n"), ("failed", "n"), ("cut short", "n"),
        )
    )  # fmt: skip
    body = [
        f"<h1>Evaluation of {escape(str(model['name']))}</h1>",
        f'<p class="small">{escape(facts)}</p>',
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>",
        *(_parts(result) for result in suites),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation of '
        f"{escape(str(model['name']))}</title><style>{STYLE}</style></head><body>\n{''.join(body)}\n</body></html>\n"
    )


def shown(value: float | None) -> str:
    """A metric for people, with four significant digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.2f}" if 1 <= abs(value) < 1000 else f"{value:.4g}"


def counted(result: Mapping[str, Any]) -> str:
    """The items that the value is of: all, or so many of all."""
    left_out = result.get("left_out", 0)
    return f"{result['items'] - left_out:,} of {result['items']:,}" if left_out else f"{result['items']:,}"


def _row(result: Mapping[str, Any]) -> str:
    interval = f"{shown(result['low'])} to {shown(result['high'])}"
    cells = [
        ("", escape(result["name"])),
        ("", escape(result["domain"])),
        ("", f'{escape(result["metric"])}<br><span class="small">{escape(result["metric_source"])}</span>'),
        ("n", shown(result["value"])),
        ("n", f'{interval}<br><span class="small">{escape(result["interval"])}</span>'),
        ("", _bar(result)),
        ("n", shown(result["reported"])),
        ("n", counted(result)),
        ("n bad" if result["failures"] else "n", f"{result['failures']:,}"),
        ("n", f"{result['truncated']:,}"),
    ]
    return "<tr>" + "".join(f'<td class="{kind}">{text}</td>' for kind, text in cells) + "</tr>"


def _bar(result: Mapping[str, Any]) -> str:
    """The value, its interval and the reported figure, for metrics in per cent."""
    known = [result[name] for name in ("value", "low", "high") if result[name] is not None]
    percent = "%" in result["metric"] or "per cent" in result["metric"]
    if not percent or result["value"] is None or not all(0 <= value <= 100 for value in known):
        return ""
    scale = WIDTH / 100
    marks = [f'<rect x="0" y="5" width="{result["value"] * scale:.1f}" height="8" fill="#4a7fb5"/>']
    if len(known) == 3:
        marks.append(
            f'<line x1="{result["low"] * scale:.1f}" x2="{result["high"] * scale:.1f}" y1="9" y2="9" '
            'stroke="currentColor" stroke-width="1.5"/>'
        )
    if result["reported"] is not None:
        x = result["reported"] * scale
        marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="1" y2="17" stroke="#c33" stroke-width="2"/>')
    return f'<svg width="{WIDTH}" height="18" role="img" aria-label="value and interval">{"".join(marks)}</svg>'


def _parts(result: Mapping[str, Any]) -> str:
    """Metrics and categories of a suite, where it has any."""
    rows: Iterable[tuple[str, float | None, float | None]] = [
        *((name, value, None) for name, value in result["metrics"].items()),
        *((name, part["value"], part["reported"]) for name, part in result["categories"].items()),
    ]
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{shown(value)}</td><td class="n">{shown(reported)}</td></tr>'
        for name, value, reported in rows
    )
    reasons = _reasons("Without an answer or a score, so that there is no value", result["failed"])
    reasons += _reasons("Scored as empty answers", result.get("scored_as_empty", {}))
    reasons += _reasons("Left out of the value", result.get("without", {}))
    if not lines and not reasons:
        return ""
    head = '<tr><th>part</th><th class="n">value</th><th class="n">Intern-S1-Pro, as reported</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{lines}</tbody></table>" if lines else ""
    return f"<h2>{escape(result['name'])}</h2>{table}{reasons}"


def _reasons(title: str, of_items: Mapping[str, str]) -> str:
    lines = "".join(f"<li>{escape(item)}: {escape(reason)}</li>" for item, reason in of_items.items())
    return f'<p class="small">{title}:</p><ul class="small">{lines}</ul>' if lines else ""
