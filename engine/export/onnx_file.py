"""`penstock export onnx`: a run's best model, and what its use takes, in one file."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from penstock.engine.errors import ModelError
from penstock.engine.export.compare import Compared, compare
from penstock.engine.export.installed import check_installed
from penstock.engine.export.usage import metadata, usage
from penstock.engine.files import write_committed
from penstock.engine.models import BagClassifier, EncoderClassifier, LSTMClassifier
from penstock.engine.training.trained import TrainedRun

_MOST_BYTES = (1 << 31) - (1 << 24)  # of weights: protobuf ends at 2 GiB, and the tokenizer is in there too


@dataclass(frozen=True)
class Exported:
    """
    Attributes:
        size: bytes. inputs: the model's, all int64 (batch, length).
        compared: with the run itself; None where onnxruntime is not installed.
        usage: Python that uses the file.
    """

    path: Path
    size: int
    inputs: tuple[str, ...]
    compared: Compared | None
    usage: str


def export_onnx(run: Path | str, out: Path | str) -> Exported:
    """Writes the best model of a run as ONNX, in float32, checked before the file has its name.

    Inputs are input_ids and attention_mask, int64 (batch, length), and token_type_ids for an encoder that was trained
    with them; the output is logits, float32 (batch, num_labels). Labels, thresholds and tokenizer are in the file's
    metadata (`usage.metadata`).

    Raises:
        RunError, ModelError: there is no run, or a damaged one; the model is too large for ONNX, or does not compute
            the same there. ConfigError: a package is missing. DiskError: the file cannot be written.
    """
    trained = TrainedRun.open(run, device="cpu")
    model, tokenizer = trained.model, trained.tokenizer()
    check_installed("onnx", *(["onnxscript"] if isinstance(model, EncoderClassifier) else []))
    size = sum(each.numel() * 4 for each in model.parameters())
    if size > _MOST_BYTES:
        raise ModelError(f"the model has {size / 2**30:.1f} GiB of weights in float32; an ONNX file holds 2 GiB")
    import onnx

    from penstock.engine.export.bag import bag_graph
    from penstock.engine.export.encoder import encoder_graph
    from penstock.engine.export.graph import INPUTS
    from penstock.engine.export.lstm import lstm_graph

    inputs: tuple[str, ...] = INPUTS
    if isinstance(model, LSTMClassifier):
        graph = lstm_graph(model)
    elif isinstance(model, BagClassifier):
        graph = bag_graph(model)
    else:
        inputs += ("token_type_ids",) if tokenizer.gives_types else ()
        graph = encoder_graph(trained.path / "best", inputs)
    graph.producer_name, graph.producer_version = "penstock", version("penstock")
    onnx.helper.set_model_props(graph, metadata(trained, tokenizer))
    file = graph.SerializeToString()
    onnx.checker.check_model(file, full_check=True)
    compared = compare(model, file, inputs)
    out = Path(out)
    write_committed(out, file)
    return Exported(out, len(file), inputs, compared, usage(trained, tokenizer, inputs, out))
