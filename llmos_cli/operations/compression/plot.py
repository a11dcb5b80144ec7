"""The frontier as a picture: size against KL, what was predicted as lines, what was built as points, the choice named."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmos_cli.core.view import number, size

if TYPE_CHECKING:
    from llmos_cli.operations.compress import Point

MB = 10**6


def plot(points: Sequence[Point]) -> bytes | None:
    """A PNG; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for cut in sorted({point.cut for point in points}):
        line = [point for point in points if point.cut == cut and not point.measured and point.kl > 0]
        label = f"{cut:.0%} cut out" if cut else "nothing cut out"
        axes.plot([p.size / MB for p in line], [p.kl for p in line], "-o", markersize=2.5, linewidth=1, label=label)
    built = [point for point in points if point.measured and not point.chosen and point.kl > 0]
    axes.plot([p.size / MB for p in built], [p.kl for p in built], "x", color="black", label="built and measured")
    for best in (point for point in points if point.chosen):
        told = f"chosen: {size(best.size)}, KL {number(best.kl)}"
        axes.plot([best.size / MB], [best.kl], "*", markersize=13, color="crimson", label=told)
    axes.set(xlabel="all weights (MB)", ylabel="KL to the parent (nats per position)")
    if any(point.kl > 0 for point in points):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    pyplot.close(figure)
    return image.getvalue()
