"""Read and write the tensors in weight files: safetensors, PyTorch pickles, JAX's .npz."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError
from minivit.weights.families.registry import wrappers_of
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
        self.wrapper: str | None = None  # the key of the tensors in a training file
        self.notes: list[str] = []
        self._source = source
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
            source = self._source
            found = load_pickle(shard, wrappers_of(source.config, source.family), source.prefix)
            self.wrapper = found.wrapper or self.wrapper
            if found.beside:
                self.notes.append(
                    f"takes the weights at {found.wrapper} of {shard.name}; there are {', '.join(found.beside)}, too"
                )
            for name, tensor in found.tensors.items():
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

# Keys under which training scripts put the weights into a .pth: timm, DeiT and torchvision references, Lightning, DINO.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")


class Pickle(NamedTuple):
    """The tensors of a PyTorch file, and where in it they were."""

    tensors: dict[str, Tensor]
    wrapper: str | None = None  # the key of their dictionary, None where the file is that dictionary
    beside: tuple[str, ...] = ()  # other keys that hold weights


def load_pickle(path: Path, wanted: tuple[str, ...] = (), prefix: str | None = None) -> Pickle:
    """Return the tensors of a PyTorch .bin or .pth file, read with weights_only=True.

    Args:
        wanted: keys that hold weights, in the order in which the family's own library takes them.
        prefix: the key of a dictionary of weights, with a dot behind it, if one was asked for.

    Raises:
        CheckpointError: a torch below SAFE_TO_UNPICKLE, a damaged file, more than tensors, or several weights.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TO_UNPICKLE:
        raise CheckpointError(
            f"{path}: a pickle is not safe to read with torch {torch.__version__}; "
            f"update to torch {'.'.join(map(str, SAFE_TO_UNPICKLE))} or use a model.safetensors file"
        )
    try:
        # Files from before torch 1.6 are no zip archives, and cannot be mapped into memory.
        # timm's training files hold the arguments of the run beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling damaged bytes raises nearly any type
        # torch's own message would advise to run what is in the file.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = f"damaged, or more than tensors, which is never run{_more_in(path)}" if unsafe else first_line(error)
        if "TorchScript" in reason:
            reason = "a TorchScript archive, which is a program; save the state_dict() of its model instead"
        raise CheckpointError(f"{path}: not a whole PyTorch file of plain tensors ({reason})") from None
    wrapper: str | None = None
    beside: tuple[str, ...] = ()
    # transformers writes .bin, always plain; timm reads a training file under any name.
    if isinstance(state, dict) and not _is_plain(state) and (path.suffix != ".bin" or wanted):
        wrapper, beside = _choose(path, state, wanted, prefix)
        state = state[wrapper] if wrapper else state
    if not _is_plain(state):
        held = f"; it has the keys {', '.join(map(str, list(state)[:12]))}" if isinstance(state, dict) else ""
        raise CheckpointError(f"{path}: holds no plain dictionary of tensors{held}")
    empty = next((name for name, tensor in state.items() if tensor.is_meta), None)
    if empty is not None:
        raise CheckpointError(f"{path}: {empty} was saved from the meta device, without its numbers")
    return Pickle(dict(state), wrapper, beside)


def _is_plain(state: object) -> bool:
    """Return whether something is a dictionary of dense tensors."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided
        for name, tensor in state.items()
    )


def _choose(
    path: Path, state: dict[Any, Any], wanted: tuple[str, ...], prefix: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the key of the weights in a training file, and other keys that hold weights, too."""
    held = [key for key, value in state.items() if isinstance(value, dict) and value and _is_plain(value)]
    asked = (prefix or "").partition(".")[0]
    known = [asked] if asked in held else [key for key in (*wanted, *WRAPPERS) if key in held]
    if not known and held:
        names = " or ".join(f"'{key}.'" for key in held)
        raise CheckpointError(f"{path}: the weights are not at a known key; name theirs with prefix {names} (--prefix)")
    if not known:
        return None, ()
    if known[0] not in (*wanted, asked) and len(set(known)) > 1:
        raise CheckpointError(
            f"{path}: holds weights at {', '.join(dict.fromkeys(known))}; choose with prefix '{known[0]}.' (--prefix)"
        )
    return known[0], tuple(key for key in held if key != known[0])


def _more_in(path: Path) -> str:
    """Return what a PyTorch file holds beside tensors, for a message."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged file
        return ""
    return f": {', '.join(found[:6])}; save the state_dict() alone" if found else ""


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and dtype of one array, leaving `file` at its first byte."""
    shape, dtype = _read_header(file)
    if dtype.str not in NPY_DTYPES:
        raise ValueError(f"an array has dtype {dtype.str}")
    return shape, {short: long for long, short in SHORT_DTYPE.items()}[NPY_DTYPES[dtype.str]]
