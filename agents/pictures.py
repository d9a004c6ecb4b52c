"""Pictures of a run, drawn from its log."""

from __future__ import annotations

from pathlib import Path

from valueapprox.checkpoint import write_whole
from valueapprox.telemetry import read_metrics

__all__ = ["run_picture"]

PANELS = (
    ("error", ("value/td_error/rms", "value/error/"), "linear"),
    ("gradient norm per layer", ("value/grad_norm/",), "log"),
    ("trace norm per layer", ("value/trace_norm/",), "log"),
    ("update norm / weight norm per layer", ("value/update_ratio/",), "log"),
)
NAMES = {"value/td_error/rms": "TD error, root mean square", "value/error/rmsve": "RMSVE, against the true values"}


def run_picture(folder: str | Path, title: str) -> Path | None:
    """Draw what the run logged, errors and per-layer norms over environment steps, into `run.png` of its folder.

    None if it logged nothing yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, which only pictures need
    from matplotlib.figure import Figure

    metrics = read_metrics(folder)
    if not metrics:
        return None
    tags = sorted({tag for line in metrics for tag in line})
    panels = [(name, [t for t in tags if t.startswith(prefixes)], scale) for name, prefixes, scale in PANELS]
    panels = [panel for panel in panels if panel[1]]
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for place, (name, shown, scale) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for tag in shown:
            points = [(line["step"], line[tag]) for line in metrics if tag in line]
            axes.plot(*zip(*points, strict=True), label=NAMES.get(tag, tag.rpartition("/")[2]), linewidth=1.3)
        axes.set_yscale(scale)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("environment steps", fontsize=9)
        axes.tick_params(labelsize=8, which="both")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
        if scale == "linear":
            axes.set_ylim(bottom=0)
    path = Path(folder) / "run.png"
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
    return path
