"""Draws what bench_lstm_cpu.py measured: speed-up over every peer, shape by shape.

python benchmarks/lstm/plot.py results.json figure.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(results: Path, figure: Path) -> None:
    benchmarks = [b for b in json.loads(results.read_text())["benchmarks"] if b["extra_info"].get("speedup")]
    kinds = sorted({b["name"].split("[")[0] for b in benchmarks})
    fig, axes = plt.subplots(len(kinds), 1, figsize=(9, 3 * len(kinds)), squeeze=False, layout="constrained")
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        labels, bars = [], {}
        for row, b in enumerate(b for b in benchmarks if b["name"].startswith(kind + "[")):
            info = b["extra_info"]
            labels.append(b["name"].split("[")[1].rstrip("]").replace("peers-", "") + f"\n{info['share_of_peak']:.0%}")
            for peer, speedup in info["speedup"].items():
                bars.setdefault(peer, []).append((row, speedup))
        for place, (peer, values) in enumerate(sorted(bars.items())):
            axis.bar([row + 0.4 * place for row, _ in values], [s for _, s in values], width=0.4, label=f"over {peer}")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=6)
        axis.set_ylabel("speed-up")
        axis.set_title(f"{kind.removeprefix('test_')}: penstock over its peers; under each shape its share of the peak")
        axis.legend()
    fig.savefig(figure, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
