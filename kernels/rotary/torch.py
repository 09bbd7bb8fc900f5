"""The rotary position embedding with torch's own operations: each half takes up the other's part in place."""

from torch import Tensor


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> Tensor:
    out = x * cos[:, None]
    (x1, x2), (out1, out2), (s1, s2) = x.chunk(2, -1), out.chunk(2, -1), sin[:, None].chunk(2, -1)
    if transposed:
        s1, s2 = -s2, -s1
    out1.addcmul_(x2, s1, value=-1)
    out2.addcmul_(x1, s2)
    return out.to(x.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    return _rotated(q, cos, sin, transposed), _rotated(k, cos, sin, transposed)


def why_not(**_: object) -> str | None:
    return None


def available() -> str | None:
    return None
