"""Time ratio against FLOPs ratio: on the diagonal, all of the computation saved is time saved."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw one panel per batch size, against the first baseline.

    Args:
        frame: as `benchmarks.latency_table.frame_of` makes it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    own = frame[frame["baseline"] == frame["baseline"].iloc[0]]
    sizes = sorted(own["batch_size"].unique())
    figure, axes = plt.subplots(1, len(sizes), figsize=(4.2 * len(sizes), 4), squeeze=False, layout="constrained")
    highest = 1.05 * max(own["flops_ratio"].max(), own["time_ratio_high"].max())
    for axis, size in zip(axes[0], sizes, strict=True):
        axis.plot([0, highest], [0, highest], color="0.7", linewidth=1, zorder=0)
        for place, (method, rows) in enumerate(own[own["batch_size"] == size].groupby("method", sort=False)):
            error = [rows["time_ratio"] - rows["time_ratio_low"], rows["time_ratio_high"] - rows["time_ratio"]]
            axis.errorbar(
                rows["flops_ratio"], rows["time_ratio"], yerr=error, fmt="o", color=f"C{place % 10}", label=method
            )
        axis.set(title=f"batch {size}", xlabel="FLOPs ratio", ylabel="time ratio", xlim=(0, highest), ylim=(0, highest))
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(path)
    plt.close(figure)
