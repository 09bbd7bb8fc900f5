"""One optimizer step: several batches, on one process or many, as if they were one."""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from penstock.engine.data.loader import Batch
from penstock.engine.errors import NonFiniteError, OutOfMemoryError, RunError, is_out_of_memory
from penstock.engine.models.output import distillation_loss, is_multi_label, multi_label_loss
from penstock.engine.models.pretraining import PretrainingOutput
from penstock.engine.training.distributed import World
from penstock.engine.training.graphs import StepGraphs, check_graphs, present
from penstock.engine.training.optimizer import build_optimizer
from penstock.engine.training.precision import autocast, gradient_scaler
from penstock.engine.training.sections import DistillationSettings, TrainingSettings
from penstock.engine.training.shard import is_sharded, local, share_of
from penstock.engine.training.state import check_optimizer_state, optimizer_layout, parameters_of
from penstock.engine.training.table_adamw import TableAdamW
from penstock.engine.training.timers import Timers, timers_for
from penstock.kernels import Ragged, compiled
from penstock.kernels.bag import coalesced

# A loss scale halves at every overflow: after as many in a row it is not the scale that is wrong.
_MAX_OVERFLOWS = 20

# torch 2.13 has a new name for it, and warns of the old one.
_NEW_NAME = "forward_sync_buffers"
_KNOWS_IT = _NEW_NAME in inspect.signature(DistributedDataParallel.__init__).parameters
_LEAVES_BUFFERS: dict[str, Any] = {_NEW_NAME if _KNOWS_IT else "broadcast_buffers": False}


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from a run's seed and what it is for; unrelated for different parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all processes.

    Attributes:
        loss_sum: what is minimised, times the step's examples; in pretraining, summed over what there was to tell.
        correct: examples predicted right, or tokens told right. count: examples, or tokens to tell.
        grad_norm: before clipping.
        votes: for each question put to the processes, whether any of them voted yes.
    """

    loss_sum: float
    correct: int
    count: int
    grad_norm: float
    votes: tuple[bool, ...]


def _entries(parameter: torch.Tensor) -> torch.Tensor:
    """The gradient that is here, dense, in place; of a sparse one the rows that are there, each once."""
    assert parameter.grad is not None
    if not parameter.grad.is_sparse:
        return local(parameter.grad)
    parameter.grad = coalesced(parameter.grad)
    return parameter.grad.values()


def _looked_up(model: nn.Module) -> Callable[[], torch.Tensor | None] | None:
    """What gives the table that the model only looks up rows of; None where it has none, or another use for it."""
    ask = getattr(model, "looked_up", None)
    table = None if ask is None else ask()
    uses = [one for _, one in model.named_parameters(remove_duplicate=False) if one is table]
    return ask if table is None or len(uses) == 1 else None


def _norm_by_row(gradient: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The norm of a table's gradient, (rows, width): a number that depends on the rows that are not zero alone.

    Args:
        rows: integers, ascending: no other row has a gradient; None where that is not known. The result is the same,
            and a large vocabulary's takes a tenth of the time.
    """
    norms = torch.linalg.vector_norm(gradient if rows is None else gradient.index_select(0, rows), dim=1)
    return torch.linalg.vector_norm(norms[norms != 0])


@contextlib.contextmanager
def batch_memory(batch: Batch, what: str) -> Iterator[None]:
    """Names the batch for which the memory did not suffice.

    Args:
        what: is done with it, for the message.

    Raises:
        OutOfMemoryError: it did not.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tokens, longest = batch.num_tokens, batch.tokens.max_seqlen
        raise OutOfMemoryError(
            f"out of memory while {what} a batch of {len(batch):,} texts with {tokens:,} tokens, the longest of "
            f"{longest:,}: set data.tokens_per_batch below {tokens:,} (data.batches_per_step=2 with half of it makes "
            "the same steps), or read fewer tokens of a text with data.max_length"
        ) from error


def logits_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """(batch, num_labels). A process whose share of a step is empty runs one token, of which nothing is kept: what the
    processes do together in a model, they all have to."""
    if len(batch):
        return model(batch.tokens, **batch.types()).logits
    filler = Ragged.from_lengths(batch.tokens.values.new_zeros(1), [1])
    return model(filler).logits[:0]


def pretraining_output(model: nn.Module, batch: Batch) -> PretrainingOutput:
    """What a model that learns from texts without labels makes of a batch; of an empty one as `logits_of`."""
    if len(batch):
        return model(batch.tokens, **batch.types())
    filler = Ragged.from_lengths(batch.tokens.values.new_zeros(1), [1])
    return PretrainingOutput(*(0 * value for value in model(filler)))


class Stepper:
    """Holds the optimizer and takes steps.

    The gradient is that of the mean loss over the step's examples, wherever they were computed; with class weights, of
    the weighted mean (the sum of weighted losses over the sum of the examples' weights, as in torch); with lists of
    labels, of the mean of losses in which a label's weight counts where the label is there; in pretraining, of the sum
    over the tokens to tell, divided by how many there are on average in the step's number of tokens. Random numbers of
    a batch depend on the seed, the step and the batch's place in the step alone: neither the number of processes nor an
    interruption changes them.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        precision: str,
        world: World,
        class_weights: torch.Tensor | None = None,
        timers: Timers | None = None,
        distillation: DistillationSettings | None = None,
    ) -> None:
        """
        Args:
            model: on its device; under several processes as `shard` leaves it, or whole.
            distillation: how batches are learned from that have the logits of a teacher; None where none has.
            class_weights: float, (num_labels,); None for none. With lists of labels, of the positives of each.
            timers: are told when forward, backward, the optimizer and the wait for other processes begin.
        """
        self._settings = settings
        self._distillation = distillation
        self._multi_label = is_multi_label(model)
        self._pretrains = hasattr(model, "learn_from")
        self._class_weights = None if class_weights is None else class_weights.to(world.device, torch.float32)
        self._precision = precision
        self._world = world
        self._timers = timers or timers_for(world.device)
        self._gradient_at = 0.0  # when backward, in this process, had the last gradient ready
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert settings.learning_rate is not None
        self._optimizer = build_optimizer(
            model,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
        )
        self._scaler = gradient_scaler(precision, world.device)
        # an enabled scaler has a use of its own for the optimizer's grad_scale
        self._sharded = is_sharded(model)
        self._divides = isinstance(self._optimizer, torch.optim.AdamW) and not self._scaler.is_enabled()
        self._divides &= not self._sharded  # whose gradients are shares
        self._looked_up = None if self._sharded or world.device.type != "cpu" else _looked_up(model)
        self._overflows = 0
        self._layout = optimizer_layout(model, self._optimizer)
        self._loaded_from: object = None  # of a state that no step has used yet
        if settings.compile:
            model.compile(dynamic=True)
        self._model: nn.Module = model
        check_graphs(settings, world)
        limit = getattr(model, "max_length", None)
        self._graphs = StepGraphs(self._train_on, world.device, limit) if settings.cuda_graphs else None
        if world.size > 1 and not self._sharded:
            devices = [world.device] if world.device.type == "cuda" else None
            self._model = DistributedDataParallel(model, device_ids=devices, **_LEAVES_BUFFERS)
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def __call__(
        self,
        batches: list[Batch],
        *,
        step: int,
        num_examples: int,
        learning_rate: float,
        weight: float | None = None,
        votes: tuple[bool, ...] = (),
    ) -> StepReport:
        """Takes step number `step`.

        Args:
            batches: this process's share of the step, in order; places rank, rank + size, ... of the plan's step.
            num_examples: in the whole step, over all processes.
            weight: what the sum of the losses is divided by, if not by that: the sum of their class weights; in
                pretraining, how many tokens there are to tell on average.
            votes: this process's, on whatever all processes must decide alike.

        Raises:
            NonFiniteError: the loss or the gradients are not finite; the weights are as before the step.
        """
        world, device, timers = self._world, self._world.device, self._timers
        normalizer = num_examples if weight is None else weight
        before = timers.to("forward")
        totals = torch.tensor([0.0, 0.0, 0.0, *votes], dtype=torch.float64, device=device)
        self._model.train()
        table, rows = self._look_up(batches)
        for index, batch in enumerate(batches):
            timers.to("forward" if self._graphs is None else "backward")  # a graph is both, mostly that
            self._seed(derive_seed(self._settings.seed, "step", step, index * world.size + world.rank))
            batch = batch.to(device)
            last = index == len(batches) - 1
            if not len(batch) and not self._meets_others(last):
                continue
            with batch_memory(batch, "training"), self._without_sync() if not last else contextlib.nullcontext():
                # torch averages the gradients over the processes: the factor makes it a sum
                if self._pretrains:
                    done: tuple[Any, ...] = self._pretrain_on(batch, world.size / normalizer)
                else:
                    loss_sum, right = (self._graphs or self._train_on)(batch, world.size / normalizer)
                    done = loss_sum * (num_examples / normalizer), right, len(batch)
            if last and isinstance(self._model, DistributedDataParallel):
                # what backward still did then was to wait for the gradients of the others
                timers.to("communication", at=self._gradient_at)
            timers.to("forward")
            for place, part in enumerate(done):
                totals[place] += part
        timers.to("optimizer")
        self._scaler.unscale_(self._optimizer)
        if self._loaded_from is not None:
            self._check_loaded()
        gradients = [_entries(parameter) for parameter in self._parameters if parameter.grad is not None]
        norm = self._norm(gradients, table, rows)
        if world.size > 1:
            with timers.during("communication"):
                totals, norm = self._summed(totals, norm)
        loss_total, correct, count, *votes_yes, grad_norm = torch.cat([totals, norm.double().view(1)]).tolist()
        timers.synced()
        self._check_finite(loss_total / num_examples, grad_norm, step)
        # known here on the host, so that gradients that are short enough are not gone over
        clips = 0 < self._settings.max_grad_norm < grad_norm < float("inf")
        if clips and not self._divides:
            torch._foreach_mul_(gradients, self._settings.max_grad_norm / (norm + 1e-6))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("share", 1.0)
        with self._dividing((norm + 1e-6) / self._settings.max_grad_norm if clips and self._divides else None):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=self._graphs is None)  # a graph adds to gradients that are there
        timers.to(before)
        return StepReport(loss_total, int(correct), int(count), grad_norm, tuple(yes > 0 for yes in votes_yes))

    def _pretrain_on(self, batch: Batch, factor: float) -> PretrainingOutput:
        """Adds the gradient of `factor` times the sum of the losses."""
        with autocast(self._precision, self._world.device):
            output = pretraining_output(self._model, batch)
        self._timers.to("backward")
        self._scaler.scale(output.loss * factor).backward()
        return output._replace(loss=output.loss.detach())

    def _train_on(self, batch: Batch, factor: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the gradient of `factor` times the sum of the losses; returns that sum, and how many are right."""
        with autocast(self._precision, self._world.device):
            logits = logits_of(self._model, batch)
        loss_sum = self._loss_sum(logits.float(), batch)
        if self._graphs is None:
            self._timers.to("backward")
        self._scaler.scale(loss_sum * factor).backward()
        return loss_sum.detach(), self._right(logits.detach(), batch.labels)

    def _look_up(self, batches: list[Batch]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The table that the model only looks up rows of, if there is one, and those that have a gradient in this step,
        ascending, if that is known: other processes look up others, and a hook may write to any.
        """
        table = None if self._looked_up is None else self._looked_up()
        hooked = table is not None and table._post_accumulate_grad_hooks
        tokens = torch.cat([batch.tokens.values for batch in batches]) if table is not None and batches else None
        if table is None or hooked or self._world.size > 1 or not table.requires_grad or tokens is None:
            self.settle()
            return table, None
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < table.shape[0]:
            return table, None  # the look-up will say what is wrong
        rows = torch.bincount(tokens).nonzero()[:, 0]  # sorted by counting: `unique` takes four times as long
        if isinstance(self._optimizer, TableAdamW):
            if self._steps_by_row(table):
                self._optimizer.look_up(table, rows)
            else:
                self.settle()
        return table, rows

    def _steps_by_row(self, table: torch.Tensor) -> bool:
        """Whether the optimizer may leave rows of the table out: there is no loss scale, which skips steps."""
        plain = type(table) is nn.Parameter and table.dtype == torch.float32 and table.is_contiguous()
        has_it = any(table is parameter for parameter in self._parameters)
        return plain and has_it and not self._scaler.is_enabled() and self._graphs is None and not compiled.available()

    def settle(self) -> None:
        """Brings all weights to where they belong, before anybody reads them: between steps some rows of a table may be
        behind (`TableAdamW`)."""
        if isinstance(self._optimizer, TableAdamW):
            self._optimizer.settle()

    def _norm(
        self, gradients: list[torch.Tensor], table: torch.Tensor | None, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """The norm of all gradients, before clipping: the same bits whatever the number of processes."""
        if table is None or table.grad is None:
            return nn.utils.get_total_norm(gradients)
        others = [gradient for gradient in gradients if gradient is not table.grad]
        return torch.linalg.vector_norm(torch.stack([_norm_by_row(table.grad, rows), *torch._foreach_norm(others)]))

    @contextlib.contextmanager
    def _dividing(self, divisor: torch.Tensor | None) -> Iterator[None]:
        """The optimizer divides the gradients by it as it reads them, which spares their way through the memory."""
        if divisor is not None:
            self._optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if divisor is not None:
                del self._optimizer.grad_scale  # type: ignore[attr-defined]

    def _loss_sum(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        labels = batch.labels
        if batch.teacher is not None and batch.labelled is not None:
            assert self._distillation is not None
            return distillation_loss(
                logits,
                batch.teacher,
                labels,
                batch.labelled,
                temperature=self._distillation.temperature,
                mix=self._distillation.mix,
                label_smoothing=self._settings.label_smoothing,
            ).sum()
        if self._multi_label and self._graphs is not None:
            each = multi_label_loss(logits, labels, "none", self._class_weights)
            return each.where(present(labels), 0.0).sum()
        if self._multi_label:
            return multi_label_loss(logits, labels, "sum", self._class_weights)
        return F.cross_entropy(
            logits,
            labels,
            weight=self._class_weights,
            reduction="sum",
            label_smoothing=self._settings.label_smoothing,
        )

    def _right(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """How many examples are predicted right; of several labels, all of them."""
        if self._multi_label:
            right = ((logits >= 0) == (labels > 0)).all(-1)
            return (right if self._graphs is None else right & present(labels)).sum()
        return (logits.argmax(-1) == labels).sum()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer.state_dict(),
            "parameters": [[entry.name, list(entry.shape), str(entry.dtype)] for entry in self._layout],
            "scaler": self._scaler.state_dict(),
            "overflows": self._overflows,
        }

    def load_state_dict(self, state: dict[str, Any], source: object = "the training state") -> None:
        """
        Args:
            source: what the state was read from, for messages.

        Raises:
            StateError: it is not the state of this model's optimizer; nothing has been loaded.
        """
        check_optimizer_state(state, self._layout, self._scaler)
        # the groups' settings are those of the run's configuration, not the file's
        groups = self._optimizer.state_dict()["param_groups"]
        parameters = parameters_of(self._optimizer)
        kept = {
            number: {
                name: share_of(tensor, parameters[number]) if tensor.shape == parameters[number].shape else tensor
                for name, tensor in tensors.items()
            }
            for number, tensors in state["optimizer"]["state"].items()
        }
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self._scaler.load_state_dict(state["scaler"])
        self._overflows = state["overflows"]
        self._loaded_from = source if state["optimizer"]["state"] else None

    def _check_loaded(self) -> None:
        """Before the first step with a loaded state: an optimizer begins from zero what it finds nothing of."""
        for parameter, entry in zip(parameters_of(self._optimizer), self._layout, strict=True):
            if parameter.grad is not None and not self._optimizer.state.get(parameter):
                raise RunError(
                    f"{self._loaded_from} has no tensors of {entry.name}, which is being trained: put it back from a "
                    "copy, or train into another --out"
                )
        self._loaded_from = None

    def _seed(self, seed: int) -> None:
        # torch.manual_seed asks every kind of device, which takes 70 times as long
        torch.default_generator.manual_seed(seed)
        if self._world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _meets_others(self, last: bool) -> bool:
        """Whether the processes do something together in the step's next batch, or in its last one."""
        return self._sharded or (last and isinstance(self._model, DistributedDataParallel))

    def _summed(self, totals: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The totals of all processes, and the norm of the whole gradient, of which each may have a share."""
        if not self._sharded:
            return self._world.sum(totals), norm
        *_, squares = summed = self._world.sum(torch.cat([totals, norm.double().square().view(1)]))
        return summed[:-1], squares.sqrt().to(norm.dtype)

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        self._gradient_at = self._timers.clock()

    def _without_sync(self) -> contextlib.AbstractContextManager:
        if isinstance(self._model, DistributedDataParallel):
            return self._model.no_sync()
        return contextlib.nullcontext()

    def _check_finite(self, loss: float, grad_norm: float, step: int) -> None:
        finite_loss, finite_norm = abs(loss) < float("inf"), abs(grad_norm) < float("inf")
        if finite_loss and finite_norm:
            self._overflows = 0
            return
        if finite_loss and self._scaler.is_enabled():
            # fp16 gradients may overflow while the loss scale settles: the scaler skips such a step
            self._overflows += 1
            if self._overflows <= _MAX_OVERFLOWS:
                return
        what = f"the gradient norm is {grad_norm}" if finite_loss else f"the loss is {loss}"
        raise NonFiniteError(
            f"step {step}: {what}; the weights were not touched. "
            "Lower training.learning_rate, or set training.precision=fp32, and train into another directory"
        )
