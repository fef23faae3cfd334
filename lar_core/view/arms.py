"""Sections of the report on what tells reconstruction arms apart: what a denoiser reads, and what a training step costs."""

from __future__ import annotations

from . import figures, reading
from .page import picture, scroll_table, section, text


def denoising(results: dict, gallery: dict) -> str:
    """Loss and pictures of a denoiser."""
    probe = results.get("denoising")
    body = _todo(results, "denoising") if probe is None else scroll_table(
        ("mean squared error of the noise", "own states", "another frame's states", "increase", "saying nothing"),
        [(f"{probe['frames']} held-out frames", *(reading.estimate(probe[name]) for name in
                                                  ("loss", "other_frame", "increase")), "1")])
    if "panels" in gallery:
        note = ("The region, hidden; what the denoiser makes of pure noise in the region's place, stretched to the image; "
                "the same put back.")
        body = (picture(", ".join(figures.PANELS), figures.reconstruction_panels, gallery["panels"])
                + f"<p class=note>{note}</p>{body}")
    return section("Reconstruction", body)


def training_cost(results: dict) -> str:
    """One training step of the condition beside one of action_only."""
    title, cost = "Cost of a training step", results.get("training_cost")
    if cost is None:
        return section(title, _todo(results, "training_cost"))
    own, base = cost["own"], cost["action_only"]
    rows = [(name, f"{arm['parameters']:,}", _amount(arm["flops"], 1e9, "GFLOP"), f"{arm['step_ms']:.1f} ms",
             _amount(arm["peak_bytes"], 1e9, "GB"))
            for name, arm in ((results["run"]["condition"], own), ("action_only", base))]
    rows.append(("ratio", *(ratio(own[name], base[name]) for name in ("parameters", "flops", "step_ms", "peak_bytes"))))
    note = (f"On {cost['device']}, batches of {cost['batch_size']}, median of {cost['n']} steps, both measured one after "
            "the other on made-up frames. Operations are counted by PyTorch, those of 8-bit and 4-bit layers are not.")
    head = ("condition", "parameters that learn", "operations a sample", "time", "GPU memory")
    return section(title, scroll_table(head, rows) + f"<p class=note>{text(note)}</p>")


def cost_rows(costs: dict[str, dict | None], base: str) -> list[tuple[str, ...]]:
    """(condition, ms a step, times that of `base`, million parameters that learn, GFLOP a sample, GB of the GPU)."""
    return [(name, "does not fit in memory", *["–"] * 4) if cost is None else
            (name, f"{cost['step_ms']:.0f}", ratio(cost["step_ms"], costs[base] and costs[base]["step_ms"]),
             f"{cost['parameters'] / 1e6:.2f}", _amount(cost["flops"], 1e9, "").strip(),
             _amount(cost["peak_bytes"], 1e9, "").strip()) for name, cost in costs.items()]


def ratio(own: float | None, base: float | None) -> str:
    """"1.23 x", or a dash where one was not measured."""
    return "–" if not own or not base else f"{own / base:.2f} ×"


def _amount(value: float | None, unit: float, name: str) -> str:
    return "–" if value is None else f"{value / unit:.3g} {name}"


def _todo(results: dict, part: str) -> str:
    return f"<p class=todo>{text(reading.missing(results, part))}</p>"
