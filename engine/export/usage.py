"""What an exported file carries beside the model, so that it can be used alone, and the lines that use it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.engine.data.tokenizers import TextTokenizer, copy_backend
from penstock.engine.models.output import MULTI_LABEL
from penstock.engine.training.trained import TrainedRun

_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def metadata(run: TrainedRun, tokenizer: TextTokenizer) -> dict[str, str]:
    """Names and values for an ONNX file's `metadata_props`; what is no word or file is JSON.

    labels          the names of the classes, in the order of the logits
    problem_type    single_label_classification (softmax) or multi_label_classification (a sigmoid each)
    thresholds      of the latter: the probability from which a label is given
    max_length, truncation   how many tokens the run reads of a text, and which
    cut             with the truncation head+tail alone: how many first and last tokens it reads of a longer text
    tokenizer.json  for the tokenizers library, which cuts texts (but for head+tail) and pads them
    """
    backend = copy_backend(tokenizer.tokenizer)
    facts: dict[str, Any] = {"labels": run.label_names, "max_length": tokenizer.max_length}
    if run.multi_label:
        facts["thresholds"] = run.thresholds.tolist()
    if tokenizer.truncation == "head+tail":
        facts["cut"] = tokenizer.kept
    else:
        side = "left" if tokenizer.truncation == "tail" else "right"
        backend.enable_truncation(tokenizer.max_length, strategy="longest_first", direction=side)
        backend.enable_padding(pad_id=_padding(tokenizer), pad_token=tokenizer.tokenizer.pad_token or "")
    return {name: json.dumps(value) for name, value in facts.items()} | {
        "problem_type": MULTI_LABEL if run.multi_label else "single_label_classification",
        "truncation": tokenizer.truncation,
        "tokenizer.json": backend.to_str(),
    }


def usage(run: TrainedRun, tokenizer: TextTokenizer, inputs: Sequence[str], out: Path) -> str:
    """Python that classifies two texts with the file. onnxruntime, tokenizers and numpy are all that it needs."""
    texts: list[Any] = ["a lovely film", "two hours of my life"]
    if run.is_pair:
        texts = [("a lovely film", "by all accounts"), ("two hours", "of my life")]
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import onnxruntime",
        "from tokenizers import Tokenizer",
        "",
        f"session = onnxruntime.InferenceSession({json.dumps(str(out))})",
        "facts = session.get_modelmeta().custom_metadata_map",
        'tokenizer = Tokenizer.from_str(facts["tokenizer.json"])',
    ]
    if tokenizer.tokenizer.split_special_tokens:
        lines += ["tokenizer.encode_special_tokens = True"]
    lines += [f"rows = tokenizer.encode_batch({texts})".replace("'", '"')]
    if tokenizer.truncation == "head+tail":
        lines += [
            'first, last = json.loads(facts["cut"])',
            "ids = [row.ids for row in rows]",
            "ids = [row if len(row) <= first + last else row[:first] + row[-last:] for row in ids]",
            "longest = max(map(len, ids))",
            f"padded = [row + [{_padding(tokenizer)}] * (longest - len(row)) for row in ids]",
            "mask = [[place < len(row) for place in range(longest)] for row in ids]",
            'inputs = {"input_ids": np.array(padded, np.int64), "attention_mask": np.array(mask, np.int64)}',
        ]
    else:
        columns = (f'    "{name}": np.array([row.{_COLUMNS[name]} for row in rows], np.int64),' for name in inputs)
        lines += ["inputs = {", *columns, "}"]
    lines += ['logits = session.run(["logits"], inputs)[0]', 'labels = json.loads(facts["labels"])']
    if run.multi_label:
        lines += [
            'given = 1 / (1 + np.exp(-logits)) >= json.loads(facts["thresholds"])',
            "print([[labels[number] for number in row.nonzero()[0]] for row in given])",
        ]
    else:
        lines += ["print([labels[number] for number in logits.argmax(1)])"]
    return "\n".join(lines)


def _padding(tokenizer: TextTokenizer) -> int:
    return tokenizer.tokenizer.pad_token_id or 0
