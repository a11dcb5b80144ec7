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
    known = [(point, point.size / MB, point.kl) for point in points if point.size is not None and point.kl is not None]
    for cut in sorted({point.cut for point, _, _ in known}):
        line = [one for one in known if one[0].cut == cut and not one[0].measured and one[2] > 0]
        label = f"{cut:.0%} cut out" if cut else "nothing cut out"
        axes.plot([x for _, x, _ in line], [y for _, _, y in line], "-o", markersize=2.5, linewidth=1, label=label)
    built = [one for one in known if one[0].measured and not one[0].chosen and one[2] > 0]
    axes.plot([x for _, x, _ in built], [y for _, _, y in built], "x", color="black", label="built and measured")
    for best, x, y in (one for one in known if one[0].chosen):
        share = "" if best.latency is None else f", {best.latency:.2f} of the parent's latency"
        told = f"chosen: {size(round(x * MB))}, KL {number(y)}{share}"
        axes.plot([x], [y], "*", markersize=13, color="crimson", label=told)
    axes.set(xlabel="all weights (MB)", ylabel="KL to the parent (nats per position)")
    if any(y > 0 for _, _, y in known):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    pyplot.close(figure)
    return image.getvalue()
