"""Tensors into one safetensors file. The library's own writer for torch needs NumPy, which nothing else here does."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

# As safetensors names them in its header.
SHORT_DTYPE = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_file(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write tensors of any device, which may share memory, as https://huggingface.co/docs/safetensors describes it.

    They may also be mapped from the file that is there: it is replaced when the new one is whole.

    Raises:
        OSError: the file cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so that each lies at its own alignment
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        dtype = SHORT_DTYPE[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    new = Path(f"{os.fspath(path)}.partial")
    try:
        with new.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                tensor = tensors[name].detach().cpu().contiguous()
                file.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
