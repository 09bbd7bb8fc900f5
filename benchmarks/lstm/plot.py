"""Draws what `penstock bench lstm` measured over batch and hidden size: speed-up over nn.LSTM, share of the peak.

python benchmarks/lstm/plot.py results.jsonl figure.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DTYPES = ("float32", "bfloat16")


def main(results: Path, figure: Path) -> None:
    points: dict[tuple[str, int], list[tuple[int, float, float]]] = {}
    for row in map(json.loads, results.read_text().splitlines()[1:]):
        shape = row["shape"]
        if row["what"] == "train, equal lengths" and shape["T"] == 64 and shape["I"] == shape["H"]:
            point = shape["H"], row["ratio"]["nn.LSTM padded"][1], 100 * row["share"]
            points.setdefault((row["dtype"], shape["B"]), []).append(point)
    fig, axes = plt.subplots(2, 2, figsize=(8, 6), sharex=True, sharey="row", layout="constrained")
    for column, dtype in enumerate(DTYPES):
        for (_, batch), of_batch in sorted(item for item in points.items() if item[0][0] == dtype):
            sizes, speedups, shares = zip(*sorted(of_batch), strict=True)
            axes[0, column].plot(sizes, speedups, marker="o", label=f"batch {batch}")
            axes[1, column].plot(sizes, shares, marker="o")
        axes[0, column].axhline(1, color="black", linewidth=0.8)
        axes[0, column].set_title(dtype)
        axes[1, column].set_xscale("log", base=2)
        axes[1, column].set_xticks([64, 128, 256, 512], ["64", "128", "256", "512"])
        axes[1, column].set_xlabel("hidden size = input size")
    axes[0, 0].set_ylabel("speed-up over nn.LSTM, equal lengths")
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylabel("% of the FMA peak")
    axes[0, 0].legend()
    fig.suptitle("One bidirectional layer, 64 steps, forward and backward")
    fig.savefig(figure, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
