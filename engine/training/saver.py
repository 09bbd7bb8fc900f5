"""A run's checkpoints: training stands still for a copy, and a thread writes it beside the training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.engine.files import CommittedFile
from penstock.engine.models.loading import quiet
from penstock.engine.models.tensor_file import own_tensor_files
from penstock.engine.training.checkpoint import write_checkpoint
from penstock.engine.training.run_directory import MetricsLog
from penstock.engine.training.writer import HostCopy, Writer


class Saver:
    """Writes models into a run's directory, with the tokenizer beside them.

    Args:
        run: the run's directory.
        tokenizer: {name: content} of its files.
        keep: number of checkpoints to go on from.
    """

    def __init__(self, run: Path, tokenizer: Mapping[str, bytes], keep: int) -> None:
        self._run, self._tokenizer, self._keep = run, tokenizer, keep
        self._copy, self._writer = HostCopy(), Writer()

    @property
    def has_failed(self) -> bool:
        """The checkpoint under way cannot be written; `wait` raises why."""
        return self._writer.has_failed

    def copy_of(self, tensors: Any, *, keep: bool = True) -> Any:
        """A copy in host memory, which the next one overwrites; so the checkpoint under way is waited for.

        Args:
            keep: see `HostCopy.of`.
        """
        self._writer.wait()
        return self._copy.of(tensors, keep=keep)

    def start(
        self,
        model: Any,
        step: int,
        weights: Mapping[str, Any],
        state: dict[str, Any] | None,
        links: Sequence[str],
        log: MetricsLog,
    ) -> None:
        """Begins to write a checkpoint, and returns.

        Args:
            weights, state: copies; without a state the checkpoint is a model alone.
            links: "best", "last" or both, turned to it.
            log: forced to the disk before the checkpoint, which tells its present size and checksum.
        """
        mark = log.mark()

        def write() -> None:
            log.sync()
            self._write(model, step, weights, state, links, log=list(mark))

        self._writer.start(write)

    def save_best(self, model: Any, step: int) -> None:
        """Makes another model the run's best one, and returns when it is written.

        Raises:
            DiskError: it cannot be written; the earlier one stands.
        """
        self._write(model, step, model.saved_state(), None, ["best"])

    def wait(self) -> None:
        """Until the checkpoint under way is written.

        Raises:
            DiskError: it cannot be; the earlier ones stand.
        """
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()

    def _write(
        self,
        model: Any,
        step: int,
        weights: Mapping[str, Any],
        state: dict[str, Any] | None,
        links: Sequence[str],
        **entries: Any,
    ) -> None:
        def save(folder: Path) -> Mapping[str, CommittedFile]:
            with quiet(), own_tensor_files() as written:
                model.save_pretrained(folder, state_dict=weights)
            for name, content in self._tokenizer.items():
                (folder / name).write_bytes(content)
            return written

        write_checkpoint(self._run, step, save, state, links, keep=self._keep, **entries)
