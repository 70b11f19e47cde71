"""Runs as one HTML page with nothing outside it: a table, what was met, and the course of each run."""

from collections.abc import Sequence
from html import escape

from kvgauge import __version__
from kvgauge.simulate.curves import Course, Curve, course, plot
from kvgauge.simulate.results import cells, headings, percent, summary
from kvgauge.simulate.running import Run

# The colours are the live page's: each keeps its contrast on its own ground, light or dark.
_STYLE = """\
:root { color-scheme: light dark; --page: #f3f5f8; --card: #fff; --edge: #d5dae1; --track: #e6eaf0; --ink: #15191f;
  --soft: #4d5663; --one: #2f66d0; --two: #b26a00; --over: #b91c2b;
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1116; --card: #161b22; --edge: #303843; --track: #28303a;
  --ink: #e8ecf1; --soft: #a7b1bd; --one: #6c9cf2; --two: #e0a24a; --over: #ff7b77; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
h3 { font-size: .95rem; margin: .9rem 0 .2rem; font-weight: 600; } p { margin: 0 0 .5rem; }
.soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 1rem; margin-top: 1rem; }
.wide { overflow-x: auto; } .wide svg { min-width: 34rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: .3rem .6rem; border-top: 1px solid var(--edge); font-weight: 400;
  white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; } thead th { border: 0; color: var(--soft); white-space: normal; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem .8rem; align-items: center; }
.bars > * { min-width: 0; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); }
.bar { height: 1.1rem; } .track { fill: var(--track); } .met { fill: var(--one); }
.grid { stroke: var(--edge); } polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.one { stroke: var(--one); } .two { stroke: var(--two); stroke-dasharray: 6 3; } .over { stroke: var(--over); }
.key { display: inline-block; width: 1.6rem; height: .5rem; vertical-align: middle; margin-left: .8rem; }"""

_NOTE = """\
Curves show the highest value of each stretch of time, of arrivals the mean. The warm-up is in them, and not in the
table."""


def page(runs: Sequence[Run]) -> str:
    """The page of runs over one scenario, one for each signal, that kept their samples."""
    first = runs[0]
    title = f"kvgauge simulate: {first.scenario.name}"
    courses = [course(run.result.samples) for run in runs]
    warnings = "".join(f"<p>{escape(warning)}</p>" for warning in first.served.warnings)
    demand = courses[0]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(summary(first))}</p>{warnings}</header><main>',
        f'<section><h2>Signals</h2><div class="wide">{_table(runs)}</div></section>',
        f"<section><h2>Requests with TTFT and TPOT both met</h2>{_bars(runs)}</section>",
        "<section><h2>Demand</h2><h3>Arrivals per second</h3>",
        plot("arrivals per second", demand.seconds, [Curve("arrivals", "one", demand.arrivals_per_second)]),
        "</section>",
        *(_section(run, passed) for run, passed in zip(runs, courses, strict=True)),
        f'</main><footer class="soft"><p>{_NOTE} kvgauge {escape(__version__)}</p></footer></body></html>\n',
    ]
    return "\n".join(parts)


def _table(runs: Sequence[Run]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings())
    rows = []
    for run in runs:
        name, *figures = map(escape, cells(run))
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{figure}</td>" for figure in figures)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _bars(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        ratio = run.result.attainment_ratio
        parts.append(
            f"<span>{escape(run.result.signal)}</span>"
            f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="track" width="100" height="10"/><rect class="met" width="{100 * ratio:.2f}" height="10"/>'
            f"</svg><span>{percent(ratio)} %</span>"
        )
    return f'<div class="bars">{"".join(parts)}</div>'


def _section(run: Run, passed: Course) -> str:
    seconds = passed.seconds
    replicas = [Curve("ready", "one", passed.ready), Curve("wanted", "two", passed.wanted)]
    requests = [Curve("running", "one", passed.running), Curve("waiting", "over", passed.waiting)]
    return "".join(
        [
            f"<section><h2>{escape(run.result.signal)}</h2>",
            f"<h3>Replicas{_key('one', 'ready')}{_key('two', 'wanted')}</h3>",
            plot("replicas", seconds, replicas),
            f"<h3>Requests{_key('one', 'running')}{_key('over', 'waiting')}</h3>",
            plot("requests", seconds, requests),
            "<h3>KV cache in use, of all ready pods (ratio)</h3>",
            plot("KV cache in use", seconds, [Curve("ratio", "one", passed.kv_ratio)], most=1.0),
            "</section>",
        ]
    )


def _key(style: str, name: str) -> str:
    line = f'<line class="{style}" x1="0" x2="26" y1="4" y2="4" stroke-width="3"/>'
    return f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true">{line}</svg> {escape(name)}'
