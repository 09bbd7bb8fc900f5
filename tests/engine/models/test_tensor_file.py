"""Our files of tensors are the library's, and come from `save_pretrained` where it is asked for."""

import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import stock_model

from penstock.engine.checked import crc32_of
from penstock.engine.models.tensor_file import own_tensor_files, write_tensors

KINDS = [torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16, torch.int8]
KINDS += [torch.uint8, torch.bool]


@pytest.mark.parametrize("names", [["b", "a"], ["é", "x" * 300], ['quote"', "back\\slash"], ["line\nend", "\x01"]])
def test_the_bytes_are_the_librarys(tmp_path, names):
    tensors = {}
    for number, kind in enumerate(KINDS):
        many = torch.arange(24).reshape(2, 3, 4).to(kind)
        tensors |= {f"{names[0]}{number}": many, f"{names[1]}{number}": many[:, 1]}
        tensors |= {f"{names[0]}{number}.none": many[:0], f"{names[0]}{number}.one": many[1, 1, 1]}
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "theirs", metadata={"format": "pt"})
    file = write_tensors(tensors, tmp_path / "ours", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (file.size, file.crc32) == ((tmp_path / "ours").stat().st_size, crc32_of(tmp_path / "ours"))
    read = load_file(tmp_path / "ours")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    save_file(whole, tmp_path / "theirs")
    write_tensors(tensors, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_model_is_saved_through_them(tmp_path):
    model = stock_model("bert")
    model.save_pretrained(tmp_path / "theirs")
    with own_tensor_files() as written:
        model.save_pretrained(tmp_path / "ours")
    assert written.keys() == {"model.safetensors"}
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert written["model.safetensors"].crc32 == crc32_of(tmp_path / "theirs" / "model.safetensors")
    with own_tensor_files() as written:
        pass
    model.save_pretrained(tmp_path / "after")
    assert not written


def test_other_threads_run_meanwhile(tmp_path):
    """While a block is checked and written, and not only between two files."""

    before, seen, stop = sys.getswitchinterval(), [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            seen[0] += 1
            time.sleep(0.001)

    tensors = {"x": torch.zeros(16 << 20)}
    counter = threading.Thread(target=count)
    sys.setswitchinterval(10.0)  # nobody is made to give the lock away: who waits gets it where it is let go
    try:
        counter.start()
        began = seen[0]
        write_tensors(tensors, tmp_path / "file")
        counted = seen[0] - began
    finally:
        sys.setswitchinterval(before)
        stop.set()
        counter.join()
    assert counted > 10
