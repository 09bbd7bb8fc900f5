"""How every plot looks."""

import io
from typing import Any

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949c",
    "axes.labelcolor": "#3c4750",
    "xtick.color": "#3c4750",
    "ytick.color": "#3c4750",
    "axes.grid": True,
    "grid.color": "#e6eaed",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def png_of(figure: Any) -> bytes:
    """A figure of matplotlib as PNG."""
    import matplotlib as mpl

    content = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(content, dpi=160, format="png")
    return content.getvalue()
