"""Tensors written in the format of the safetensors library, byte for byte as it does, while other threads go on.

The library holds Python's lock from the first byte to the last: a training whose checkpoint a thread writes would stand
still for that long.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import modeling_utils

from penstock.engine.files import BulkFile

# in the order that the library lays them
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_LIBRARYS = "safe_save_file"  # its name where the transformers library calls it


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> BulkFile:
    """Writes dense tensors in the processor's memory; returns the file, for its size and checksum.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    order = list(_NAMES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file = BulkFile(path)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if tensors[name].numel():
                file.write(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
        file.commit()
    except BaseException:
        file.abandon()
        raise
    return file


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.dtype in _NAMES


@contextlib.contextmanager
def own_tensor_files() -> Iterator[dict[str, BulkFile]]:
    """While it is open, `save_pretrained` of the transformers library writes tensors as `write_tensors` does.

    Yields:
        {name: the file} of those that were written so; filled as they are.
    """
    written: dict[str, BulkFile] = {}
    librarys = getattr(modeling_utils, _LIBRARYS, None)
    if librarys is None or sys.byteorder != "little":
        yield written
        return

    def save_file(
        tensors: Mapping[str, Tensor], filename: str | os.PathLike, metadata: Mapping[str, str] | None = None
    ) -> None:
        if all(map(_is_plain, tensors.values())):
            written[Path(filename).name] = write_tensors(tensors, Path(filename), metadata)
        else:
            librarys(tensors, filename, metadata=metadata)

    setattr(modeling_utils, _LIBRARYS, save_file)
    try:
        yield written
    finally:
        setattr(modeling_utils, _LIBRARYS, librarys)
