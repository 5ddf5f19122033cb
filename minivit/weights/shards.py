"""Read and write the tensors in weight files: safetensors, PyTorch pickles, JAX's .npz."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError
from minivit.weights.files import Source

# As safetensors names them in its header.
SHORT_DTYPE = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Entry = tuple[str, tuple[int, ...], str, Callable[[], Tensor]]  # name, shape, dtype in SHORT_DTYPE, reader


def read_dtype(dtype: object) -> torch.dtype:
    """Return a dtype of weights that was given as torch.bfloat16 or "bfloat16".

    Raises:
        UsageError: another one.
    """
    name = str(dtype).removeprefix("torch.")
    known = {str(each).removeprefix("torch."): each for each in SHORT_DTYPE}
    if not isinstance(dtype, (str, torch.dtype)) or name not in known:
        raise UsageError(f"dtype is {dtype!r}; expected float32, float64, bfloat16 or float16")
    return known[name]


class Shards:
    """The tensors of a checkpoint by name, memory-mapped; a context manager over its open files."""

    def __init__(self, source: Source):
        self.name = source.name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._read: dict[str, Callable[[], Tensor]] = {}
        with ExitStack() as opened:  # closes the files if one of them is damaged
            self._stack = opened
            for shard in source.shards:
                for name, shape, dtype, read in self._open(shard):
                    if name in self.shapes:
                        raise CheckpointError(f"{shard}: tensor {name} is in another shard too")
                    self.shapes[name], self.dtypes[name], self._read[name] = shape, dtype, read
            self._stack = opened.pop_all()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def _open(self, shard: Path) -> Iterator[Entry]:
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

    def _open_safetensors(self, shard: Path) -> Iterator[Entry]:
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

    def _open_npz(self, shard: Path) -> Iterator[Entry]:
        try:
            file = self._stack.enter_context(shard.open("rb"))
            archive = self._stack.enter_context(np.load(file, allow_pickle=False))
            for name, member in zip(archive.files, archive.zip.namelist(), strict=True):
                with archive.zip.open(member) as array:
                    shape, dtype = _read_header(array)
                yield name, shape, NPY_DTYPES.get(dtype.str, dtype.str), partial(_read_array, archive, name, shard)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{shard}: not readable as a .npz of plain arrays ({error})") from None


NPY_DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "|V2": "BF16"}  # |V2: bfloat16, which NumPy does not have


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of a .npy without reading its numbers; ValueError if it is none."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array in version {version} of the format")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _read_array(archive: np.lib.npyio.NpzFile, name: str, shard: Path) -> Tensor:
    """Return one array of a .npz."""
    try:
        array = archive[name]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{shard}: {name} cannot be read ({error}); the file is damaged") from None
    if array.dtype.str == "|V2":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def save_file(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write tensors of any device, which may share memory, as one safetensors file.

    They may also be mapped from the file that is there: it is replaced when the new one is complete.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file as write

    # safetensors refuses tensors that are not contiguous or share memory: the later one of two that overlap is copied.
    apart = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name in sorted(apart, key=lambda name: apart[name].data_ptr()):
        start, size = apart[name].data_ptr(), apart[name].nbytes
        if start < end:
            apart[name] = apart[name].clone()
        end = max(end, start + size)
    new = Path(f"{os.fspath(path)}.partial")
    try:
        write(apart, new, metadata=metadata)
        new.replace(path)
    except SafetensorError as error:
        raise OSError(f"{os.fspath(path)}: {error}") from None
    finally:
        new.unlink(missing_ok=True)


# Below this torch, weights_only can be circumvented: CVE-2026-24747, and before 2.6 CVE-2025-32434.
SAFE_TO_UNPICKLE = (2, 10)

# Keys under which training scripts put the weights into a .pth: DeiT and torchvision references, Lightning, DINO.
WRAPPERS = ("model", "state_dict", "teacher")


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch .bin or .pth file, read with weights_only=True.

    Raises:
        CheckpointError: a torch below SAFE_TO_UNPICKLE, a damaged file, or more than tensors.
    """
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
        # torch's own message would advise to run what is in the file.
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
    return dict(state)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and dtype of one array, leaving `file` at its first byte."""
    shape, dtype = _read_header(file)
    if dtype.str not in NPY_DTYPES:
        raise ValueError(f"an array has dtype {dtype.str}")
    return shape, {short: long for long, short in SHORT_DTYPE.items()}[NPY_DTYPES[dtype.str]]
