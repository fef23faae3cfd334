"""Pages made from `templates/`: whatever is put into one is escaped, pictures go into the file, nothing asks the network."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ..run.files import write_text
from ..run.registry import METRICS
from . import findings


def write_page(path: Path, template: str, **values: object) -> Path:
    """Fill a template of `templates/` and write it, atomically; returns `path`."""
    write_text(path, fill_template(template, **values))
    return path


def fill_template(template: str, **values: object) -> str:
    """The text of a template of `templates/`; in HTML, what is put in is escaped."""
    return _templates().get_template(template).render(values)


def metrics_guide() -> list[tuple[str, str]]:
    """How to read the metrics of maps: (its name, the explanation) of each that has one."""
    return [(about.label[:1].upper() + about.label[1:], about.guide) for about in map(METRICS.about, METRICS) if about.guide]


def data_url(kind: str, content: bytes) -> Markup:
    """Content of a media type, such as "video/mp4", as it stands in the page itself."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(loader=jinja2.PackageLoader(__package__), keep_trailing_newline=True,
                              autoescape=jinja2.select_autoescape(["html"]), finalize=_unbroken)
    made.filters |= {"png": _png, "estimate": findings.estimate, "g3": "{:.3g}".format}
    made.globals["metrics_guide"] = metrics_guide
    return made


@jinja2.pass_eval_context
def _unbroken(context: jinja2.nodes.EvalContext, value: object) -> object:
    """On a page, a percent sign stays on the line of its number."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if context.autoescape and isinstance(value, str) else value


def _png(figure: Figure) -> Markup:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return data_url("image/png", buffer.getvalue())
