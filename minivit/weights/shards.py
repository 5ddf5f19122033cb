"""The tensors inside weight files: safetensors, PyTorch pickles, JAX's .npz."""

from __future__ import annotations

import ast
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from minivit.errors import CheckpointError
from minivit.weights.files import Source
from minivit.weights.tensorfile import SHORT_DTYPE


class Shards:
    """The tensors of a checkpoint by name, memory-mapped; a context manager over its open files."""

    def __init__(self, source: Source):
        self.name = source.name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._read: dict[str, Callable[[], Tensor]] = {}
        self._stack = ExitStack()
        for shard in source.shards:
            for name, shape, dtype, read in self._open(shard):
                if name in self.shapes:
                    raise CheckpointError(f"{shard}: tensor {name} is in another shard too")
                self.shapes[name], self.dtypes[name], self._read[name] = shape, dtype, read

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def _open(self, shard: Path) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Tensor]]]:
        if not shard.is_file():
            raise CheckpointError(f"{shard}: missing, though the index lists it")
        if shard.suffix == ".npz":
            yield from self._open_npz(shard)
        elif shard.suffix == ".safetensors":
            yield from self._open_safetensors(shard)
        else:
            for name, tensor in load_pickle(shard).items():
                dtype = SHORT_DTYPE.get(tensor.dtype, str(tensor.dtype))
                yield name, tuple(tensor.shape), dtype, tensor.detach

    def _open_safetensors(self, shard: Path) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Tensor]]]:
        from safetensors import SafetensorError, safe_open

        try:
            file = self._stack.enter_context(safe_open(shard, framework="pt"))
            names = file.keys()
        except PermissionError:
            raise CheckpointError(f"{shard}: no permission to read it") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{shard}: not a whole safetensors file ({error}); download it again") from None
        for name in names:
            view = file.get_slice(name)
            yield name, tuple(view.get_shape()), view.get_dtype(), partial(file.get_tensor, name)

    def _open_npz(self, shard: Path) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Tensor]]]:
        try:
            archive = self._stack.enter_context(zipfile.ZipFile(shard))
            for member in archive.namelist():
                with archive.open(member) as file:
                    shape, dtype = read_npy_header(file)
                name = member.removesuffix(".npy")
                yield name, shape, SHORT_DTYPE.get(dtype, str(dtype)), partial(read_npy, archive, member)
        except (zipfile.BadZipFile, OSError, ValueError, SyntaxError, struct.error, KeyError) as error:
            raise CheckpointError(f"{shard}: not readable as a .npz of plain arrays ({error})") from None


NPY_DTYPES = {"<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16, "|V2": torch.bfloat16}


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of one array, leaving `file` at its first byte: numpy/lib/format.py, versions 1 and 2.

    Raises:
        ValueError: not an array of floats in C order.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise ValueError("a member is no array")
    length = struct.unpack("<H", file.read(2))[0] if magic[6] == 1 else struct.unpack("<I", file.read(4))[0]
    header = ast.literal_eval(file.read(length).decode("latin1"))
    if header["fortran_order"] or header["descr"] not in NPY_DTYPES:
        raise ValueError(f"an array has dtype {header['descr']}, Fortran order {header['fortran_order']}")
    return tuple(header["shape"]), NPY_DTYPES[header["descr"]]


def read_npy(archive: zipfile.ZipFile, member: str) -> Tensor:
    """One array of a .npz."""
    with archive.open(member) as file:
        shape, dtype = read_npy_header(file)
        return torch.frombuffer(bytearray(file.read()), dtype=dtype).reshape(shape)


# Below this torch, weights_only can be circumvented: CVE-2026-24747, and before 2.6 CVE-2025-32434.
SAFE_TO_UNPICKLE = (2, 10)

# Keys under which training scripts put the weights into a .pth: DeiT and torchvision references, Lightning, DINO.
WRAPPERS = ("model", "state_dict", "teacher")


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch .bin or .pth file, read with weights_only=True; refused below SAFE_TO_UNPICKLE."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TO_UNPICKLE:
        raise CheckpointError(
            f"{path}: a pickle is not safe to read with torch {torch.__version__}; "
            f"update to torch {'.'.join(map(str, SAFE_TO_UNPICKLE))} or use a model.safetensors file"
        )
    try:
        # Files from before torch 1.6 are no zip archives, and cannot be mapped into memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling damaged bytes raises nearly any type
        # torch's own words would advise to run what is in the file.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "damaged, or more than tensors, which is never run" if unsafe else first_line(error)
        raise CheckpointError(f"{path}: not a whole PyTorch file of plain tensors ({reason})") from None
    if path.suffix != ".bin" and isinstance(state, dict):
        wrapped = [key for key in WRAPPERS if isinstance(state.get(key), dict)]
        state = state[wrapped[0]] if len(wrapped) == 1 else state
    plain = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided
        for name, tensor in state.items()
    )
    if not plain:
        raise CheckpointError(f"{path}: holds no plain dictionary of tensors")
    return state


def first_line(error: Exception) -> str:
    """What an exception says, or its type when it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__
