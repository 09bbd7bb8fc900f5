"""One LSTM layer and one batch of sequences, in everybody's form."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from penstock.benchmarks.gpu.timing import Call
from penstock.kernels import LSTM, Ragged, use_backend

SHORTEST, LONGEST = 32, 256


def draw_lengths(batch: int, longest: int = LONGEST, seed: int = 0) -> list[int]:
    """Uniform in 32..256 (or up to `longest`), the first one the longest: a step is a 256th of the layer's time."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(min(SHORTEST, longest), longest + 1, (batch,), generator=generator)
    lengths[0] = longest
    return lengths.tolist()


@dataclass
class Contestant:
    """One way to compute the layer.

    Attributes:
        module: its parameters are among the leaves; put into training mode for all phases but inference.
        forward: gives y in its own layout.
        x, dy: the leaf and y's gradient in that layout.
        ragged: takes a tensor of that layout to (tokens, ...), the order of the batch; None where that loses meaning.
    """

    module: nn.Module
    forward: Callable[[], Tensor]
    x: Tensor
    dy: Tensor
    ragged: Callable[[Tensor], Tensor] | None

    def calls(self) -> dict[str, Call]:
        """A call for each phase of floors.PHASES."""
        return {"inference": self._inference, "forward": self._forward, "training": self.gradients}

    def gradients(self) -> tuple[Tensor, ...]:
        """Gradients of x and the parameters."""
        return torch.autograd.grad(self._forward(), [self.x, *self.module.parameters()], self.dy)

    def _inference(self) -> Tensor:
        self.module.eval()
        with torch.no_grad():
            return self.forward()

    def _forward(self) -> Tensor:
        self.module.train()
        return self.forward()

    def results(self) -> Iterator[tuple[str, Tensor]]:
        """y and every gradient by name, in the batch's order."""
        assert self.ragged is not None
        yield "y", self.ragged(self._forward().detach())
        dx, *weights = self.gradients()
        yield "dx", self.ragged(dx)
        for (name, _), gradient in zip(self.module.named_parameters(), weights, strict=True):
            yield f"d{name}", gradient


class Layer:
    """The same weights and the same sequences for all contestants, representable in bf16.

    Args:
        lengths: of the sequences, not sorted.
    """

    def __init__(
        self,
        lengths: list[int],
        input_size: int,
        hidden_size: int,
        directions: int,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.lengths, self.directions, self.device = lengths, directions, device
        self.input_size, self.hidden_size = input_size, hidden_size
        self.tokens = sum(lengths)
        module = nn.LSTM(input_size, hidden_size, bidirectional=directions == 2)
        self._weights = {name: value.bfloat16() for name, value in module.state_dict().items()}
        self._x = torch.randn(self.tokens, input_size, device=device).bfloat16()
        self._dy = torch.randn(self.tokens, directions * hidden_size, device=device).bfloat16()

    def penstock(self, backend: str | None, dtype: torch.dtype) -> Contestant:
        module = LSTM(*self._sizes(), bidirectional=self.directions == 2).to(self.device, dtype)
        module.load_state_dict(self._weights)
        x = self._x.to(dtype).requires_grad_()
        batch = Ragged.from_lengths(x, self.lengths).to(self.device)

        def forward() -> Tensor:
            with use_backend(backend):
                return module(batch)[0].values

        return Contestant(module, forward, x, self._dy.to(dtype), lambda y: y)

    def packed(self, dtype: torch.dtype) -> Contestant:
        """nn.LSTM on a PackedSequence that is made beforehand: packing and unpacking cost it nothing here."""
        module = self._torch(dtype)
        order = torch.tensor(sorted(range(len(self.lengths)), key=self.lengths.__getitem__, reverse=True))
        lengths = torch.tensor(self.lengths)[order]
        starts = (torch.tensor(self.lengths).cumsum(0) - torch.tensor(self.lengths))[order]
        batch_sizes = (lengths[None, :] > torch.arange(int(lengths[0]))[:, None]).sum(1)
        places = torch.cat([starts[:size] + step for step, size in enumerate(batch_sizes.tolist())]).to(self.device)
        x = self._x[places].to(dtype).requires_grad_()
        packed = PackedSequence(x, batch_sizes)

        def ragged(y: Tensor) -> Tensor:
            return torch.empty_like(y).index_copy_(0, places, y)

        return Contestant(module, lambda: module(packed)[0].data, x, self._dy[places].to(dtype), ragged)

    def padded(self, dtype: torch.dtype) -> Contestant:
        """nn.LSTM on (longest, batch, I). Its reverse direction starts in the padding: another function, as fast."""
        module = self._torch(dtype)
        x = self._pad(self._x, dtype).requires_grad_()
        return Contestant(module, lambda: module(x)[0], x, self._pad(self._dy, dtype), None)

    def _pad(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return nn.utils.rnn.pad_sequence(values.to(dtype).split(self.lengths))

    def _torch(self, dtype: torch.dtype) -> nn.LSTM:
        module = nn.LSTM(*self._sizes(), bidirectional=self.directions == 2).to(self.device, dtype)
        module.load_state_dict(self._weights)
        return module

    def _sizes(self) -> tuple[int, int]:
        return self.input_size, self.hidden_size
