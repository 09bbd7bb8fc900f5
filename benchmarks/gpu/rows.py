"""A row of results in words."""

from typing import Any

Row = dict[str, Any]


def brief(row: Row) -> str:
    """A row in one line, for the terminal."""
    if "contestants" in row:
        times = ", ".join(
            f"{name} {figures['ms']:.3f} ms" if "ms" in figures else f"{name} -"
            for name, figures in row["contestants"].items()
        )
        return f"{label(row)}: {times}"
    figures = {key: value for key, value in row.items() if key not in ("kernels", "command", "off")}
    return ", ".join(f"{key} {number(value)}" for key, value in figures.items())


def label(row: Row) -> str:
    """What a row is of."""
    named = {"hidden": "H", "batch": "B", "mean": "mean", "dropout": "dropout", "directions": "D", "threads": "threads"}
    parts = [str(row.get("kind", ""))]
    parts += [f"{short}={row[key]}" for key, short in named.items() if key in row]
    parts += [
        str(row[key])
        for key in ("operation", "kernel", "backend", "test", "form", "scheme", "model", "contestant", "dtype", "phase")
        if key in row
    ]
    return " ".join(parts)


def number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
