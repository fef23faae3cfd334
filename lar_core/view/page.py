"""The page that report.html is made of: its frame, its styles, its explanations, and the pieces that fill it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence

from matplotlib.figure import Figure

from ..registry import METRICS

# `{title}` and `{body}` are filled in by `report`.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root { --ink: #1c2127; --soft: #5a636d; --line: #e1e4e8; --paper: #fff; --wash: #f5f6f8; --blue: #0a6ebd;
  --yes: #0b6e4f; --yes-wash: #dff3ea; --no-wash: #eceef1; --warn: #8a4b00; --warn-wash: #fdeccf; --card: none; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a2abb5; --line: #31363d; --paper: #14171b;
  --wash: #1d2126; --blue: #6cb6f0; --yes: #7fdcb4; --yes-wash: #12392c; --no-wash: #2a2f36; --warn: #f3bf72;
  --warn-wash: #41300f; --card: #e9ebee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 61rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; text-size-adjust: 100%; }
h1 { margin: 0 0 1.2rem; font-size: clamp(1.9rem, 6vw, 2.9rem); line-height: 1.1; letter-spacing: -0.025em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 1.1rem; font-size: 1.35rem; line-height: 1.25; letter-spacing: -0.012em; }
h3 { margin: 0 0 .15rem; font-size: 1rem; }
p, ul, dd { max-width: 46rem; }
section { margin-top: 3.2rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
.eyebrow { margin: 0 0 .4rem; color: var(--blue); font-weight: 600; font-size: .85rem; }
.note { margin: .4rem 0; color: var(--soft); font-size: .9rem; }
pre { margin: 0 0 .4rem; padding: .7rem .9rem; overflow-x: auto; border-radius: 8px; background: var(--wash);
  font: .9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
header dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem 1.6rem;
  margin: 1.6rem 0 0; }
header dl div:last-child { grid-column: 1 / -1; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.lead p { margin: 0 0 .6rem; font-size: 1.1rem; line-height: 1.55; max-width: 50rem; }
.findings { margin: 2rem 0 0; padding: 0; list-style: none; }
.findings li { display: grid; grid-template-columns: 9.5rem 1fr; gap: .4rem 1.4rem; padding: 1rem 0;
  border-top: 1px solid var(--line); }
.findings p { margin: 0; color: var(--soft); font-size: .95rem; }
.chip { justify-self: start; align-self: start; padding: .12rem .7rem; border-radius: 99px; font-size: .85rem;
  font-weight: 600; background: var(--no-wash); color: var(--ink); }
.chip.detected { background: var(--yes-wash); color: var(--yes); }
.chip.opposite-detected { background: var(--warn-wash); color: var(--warn); }
.chip.not-run, .chip.no-interval { background: none; color: var(--soft); box-shadow: inset 0 0 0 1px var(--line); }
.todo { padding: .8rem 1rem; border-radius: 8px; background: var(--wash); color: var(--soft); }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll img { display: block; width: 100%; min-width: 34rem; height: auto; background: var(--card); border-radius: 8px; }
table { border-collapse: collapse; font-size: .92rem; min-width: 60%; }
th, td { padding: .42rem 1.4rem .42rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th[scope=row] { font-weight: 500; }
td { white-space: pre; }
details td { white-space: normal; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.4rem; }
figure { margin: 0; }
video { display: block; width: 100%; border-radius: 8px; background: #14171b; }
figcaption { margin-top: .4rem; color: var(--soft); font-size: .88rem; }
ul { padding-left: 1.2rem; }
li { margin-bottom: .5rem; }
.guide dt { margin-top: .8rem; color: var(--ink); font-weight: 600; font-size: .95rem; }
.guide dd { color: var(--soft); font-size: .95rem; }
details { margin-top: 3rem; color: var(--soft); }
summary { cursor: pointer; }
@media (max-width: 40rem) { body { padding: 1.6rem 1.1rem 3rem; } .findings li { grid-template-columns: 1fr; } }
@media print { section { break-inside: avoid; } video { display: none; } }
</style>
</head>
<body>
{body}
</body>
</html>
"""

GUIDE = (
    ("Detected, not detected", "\"Detected\" means that a paired exact McNemar test (p < 0.05) or a 95 % interval "
     "supports the claim; for paired rollouts the test decides. \"Not detected\" means that these data do not; the "
     "interval says what remains possible. It never means that there is no effect."),
    ("Success", "Share of episodes in which LIBERO's own predicate (for the named bowl) became true. Intervals are "
     "Wilson's. Rows that start from the same init states are compared pair by pair."),
    ("Blind control", "The same recipe trained with grey images. Whatever it solves can be solved without looking."),
    ("Blank and another task's instruction", "The same policy, told nothing or told another task's sentence; success "
     "is still that of the scene's own instruction. A policy that listens should do worse."),
    ("Saliency", "Attention from the instruction's words to image patches, mean over the last layers and all heads; it "
     "sums to 1. In pictures, no colour = what a uniform map gives a patch, full colour = four times that."),
    ("Baselines of saliency", "Maps that do not look at the image: uniform, a Gaussian at its centre, and the mean "
     "place of the named object in the training frames. The policy is called better only where its interval lies "
     "wholly above the baseline's, which is stricter than a test at 5 %."),
    ("Action error", "Mean absolute error over the predicted chunk in normalised units, where each action ranges from "
     "-1 to 1. It does not predict success; beating the mean action is a gate, not a goal."),
    ("Without the image", "The action loss on held-out frames when both cameras show grey, or another frame (of another "
     "episode where there is one). What is left of it is done by proprioception and habit. A head with a policy of its "
     "own can hide a shortcut: its queries may carry all that it uses, so its own view is changed alone as well."),
    ("Reconstruction loss", "Mean squared error on masked patches only, beside two guesses that need no learning."),
    ("Gradient norm in the backbone", "What each loss sends into the backbone during training. A reconstruction loss "
     "whose gradient is a small fraction of the action's can hardly change what the policy looks at."),
)


def metrics_guide() -> list[tuple[str, str]]:
    """How to read the metrics of maps: (its name, the explanation) of each that has one."""
    return [(about.label[:1].upper() + about.label[1:], about.guide) for about in map(METRICS.about, METRICS) if about.guide]


def text(value: object) -> str:
    """Escape for HTML, quotes included; a percent sign stays on the line of its number."""
    return html.escape(str(value)).replace(" %", "&nbsp;%")


def section(title: str, body: str) -> str:
    """A section of the page; `body` is HTML."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def scroll_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that scrolls sideways on narrow screens; the first cell of every row is its heading."""
    top = f"<thead><tr>{''.join(f'<th scope=col>{text(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr><th scope=row>{text(row[0])}</th>{''.join(f'<td>{text(cell)}</td>' for cell in row[1:])}</tr>"
                   for row in rows)
    return f"<div class=scroll><table>{top}<tbody>{body}</tbody></table></div>"


def picture(words: str, draw: Callable[..., Figure], *arguments: object) -> str:
    """The figure, whose ink is dark: in a dark theme the page lays it on a light card."""
    return f"<div class=scroll><img alt='{text(words)}' src='{_png(draw(*arguments))}'></div>"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
