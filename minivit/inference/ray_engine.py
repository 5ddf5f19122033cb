"""The same run on Ray Data: one actor per worker holds the model and writes Parquet shards.

Ray places the work, moves it, and repeats it when a worker dies; each worker runs `prefetch.run_batches`, as on one
machine, and writes the same records.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from minivit.errors import CheckpointError, UsageError, WriteError
from minivit.images.decode import IMAGE_SUFFIXES
from minivit.inference.bulk import Summary
from minivit.inference.optimize import optimize
from minivit.inference.parquet import import_pyarrow, parquet_schema, parquet_table
from minivit.inference.predict import classifier, embedder, embedding_shape, image_spec_of, loaded_image_model
from minivit.inference.prefetch import Input, run_batches
from minivit.inference.records import fingerprint, record
from minivit.model.capabilities import ImageModel
from minivit.weights import load

CHUNK = 256  # images that a worker takes at a time, about; repeated when the worker dies


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker does: classify when `top_k` is set, else embed."""

    model: str  # as `load` takes it, and the next three
    revision: str | None = None
    family: str | None = None
    dtype: str = "float32"
    folder: str  # where relative paths begin, on nodes that have it
    constant: dict[str, Any]  # of `records.constants`: with device and, under "run", batch_size and fast
    readers: int | None = None  # threads of each worker
    icc: str = "ignore"  # this and the next one as in `run_batches`
    image_timeout: float | None = None
    top_k: int | None = None
    threshold: float | None = None  # as in `classifier`
    scores: str | None = None  # ViTConfig.score, instead of the checkpoint's
    labels: dict[int, str] | None = None  # instead of the checkpoint's, and the next
    categories: dict[int, str] | None = None
    pool: str = "cls"  # this and the next two as in `embedder`
    layer: int | None = None
    norm: str | None = None


def start(address: str | None, *, quiet: bool = True, timeout: float = 30) -> Any:
    """Join the cluster at `address` ("auto", "10.0.0.1:6379"), or start one on this machine; return the module ray.

    Ray's usage statistics are switched off.

    Args:
        timeout: seconds until an address that does not answer is given up; Ray itself waits for 15 minutes.

    Raises:
        UsageError: ray is not installed, or no cluster runs there.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'minivit[ray]'") from None
    import_pyarrow()
    if not ray.is_initialized():
        if address and ":" in address:
            _require_answer(address, timeout)
        own: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=not quiet, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--address {address}: no Ray cluster ({str(error).splitlines()[0]})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = not quiet
    if quiet:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised as one line instead
    return ray


def _require_answer(address: str, timeout: float) -> None:
    """Raise UsageError unless a Ray cluster answers at HOST:PORT; asked in a process of its own, which can be ended."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    refused = f"--address {address}: no Ray cluster answers there within {timeout:g} s (--ray-timeout)"
    until = time.monotonic() + timeout
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except ValueError:
        raise UsageError(f"--address {address}: expected auto or HOST:PORT") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--address {address}: no Ray cluster ({reason})") from None
    if address.startswith("ray://"):
        return
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        subprocess.run(ask, check=True, timeout=max(1.0, until - time.monotonic()), **quiet)  # type: ignore[call-overload]
    except (subprocess.SubprocessError, OSError):
        raise UsageError(refused) from None


def chunks(paths: Iterable[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield paths as rows of a data set for `run`: whole batches, the same as on one machine."""
    size, start, paths = -(-CHUNK // batch_size) * batch_size, 0, iter(paths)
    while some := list(islice(paths, size)):
        yield {"start": start, "count": len(some), "paths": list(map(os.fsencode, some))}
        start += len(some)


def read(addresses: list[str]) -> Any:
    """Return the images under addresses that Ray can read, such as s3://bucket/photos, as a data set for `run`.

    Raises:
        UsageError: they cannot be listed, or there is no image among them.
    """
    import ray

    try:
        suffixes = [suffix[1:] for suffix in sorted(IMAGE_SUFFIXES)]
        return ray.data.read_binary_files(addresses, include_paths=True, file_extensions=suffixes)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{', '.join(addresses)}: Ray finds no images there ({reason})") from None


def run(dataset: Any, out: str | os.PathLike[str], job: Job, *, workers: int | None = None) -> Summary:
    """Run all images of a Ray data set, write the records to `out` as Parquet shards, and return how many failed.

    Args:
        dataset: from `chunks` or `read`, or any Ray data set with a column "path" and, unless workers can open the
            path, "bytes".
        out: a new folder that all nodes share; its column "index" is the place among the inputs, if they have one.
        workers: actors; one per node when None, or one per GPU when the job runs on GPUs.

    Raises:
        UsageError: `out` cannot be made.
        WriteError: Ray failed, or `out` has not one record per input.
    """
    import ray
    from ray.data import ActorPoolStrategy

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    on_gpu = job.constant["device"].startswith("cuda")
    resources: dict[str, Any] = {}  # the actors are spread over the nodes, which is Ray Data's default
    if on_gpu:
        workers = workers or int(sum(node.get("GPU", 0) for node in alive))
        resources["num_gpus"] = 1
    else:
        workers = workers or len(alive)
        cores = int(min(node["CPU"] for node in alive))
        resources["num_cpus"] = max(1, cores - 1)  # one core is left for reading and writing
    chunked = "paths" in dataset.columns()

    class JobWorker(Worker):
        """A Worker with its job: when it is restarted, it needs nothing from a node that may be lost."""

        def __init__(self) -> None:
            super().__init__(job)

    predicted = dataset.map_batches(
        JobWorker,
        batch_size=1 if chunked else CHUNK,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        **resources,
    )
    out = Path(out).absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        predicted.write_parquet(str(out))
    except ray.exceptions.RayError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise WriteError(f"{out}: is incomplete, remove it; the cluster failed: {reason.strip()}") from None
    expected = dataset.sum("count") if chunked else dataset.count()
    return _count(out, int(expected or 0), chunked)


class Worker:
    """One actor: it holds the model and turns a pyarrow Table of images into one of their records."""

    def __init__(self, job: Job):
        with suppress(OSError):
            os.chdir(job.folder)
        dtype = getattr(torch, job.dtype)
        device = job.constant["device"]
        loaded = load(job.model, revision=job.revision, family=job.family, dtype=dtype, device=device)
        model: ImageModel = loaded_image_model(loaded)
        if job.scores:
            model.config = replace(model.config, score=job.scores)
        if job.labels:
            model.labels, model.categories = job.labels, job.categories
        if fingerprint(model) != job.constant["run"]["weights"]:
            raise CheckpointError(f"{job.model}: a worker finds other weights than the driver")
        self.job, self.spec = job, image_spec_of(model)
        self.like = model.patch_embed.weight.detach()[:0]
        model = optimize(model) if job.constant["run"]["fast"] else model
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.shape = None if job.top_k else embedding_shape(model, job.pool)
        self.predict: Callable = (
            classifier(model, job.top_k, threshold=job.threshold)
            if job.top_k
            else embedder(model, job.pool, layer=job.layer, norm=job.norm)
        )

    def __call__(self, batch: Any) -> Any:
        """Return the records of a Table of `chunks` or `read`."""
        pa, _ = import_pyarrow()
        rows = batch.to_pylist()
        if "paths" in batch.column_names:
            named = [(row["start"] + i, os.fsdecode(path)) for row in rows for i, path in enumerate(row["paths"])]
            given: list[tuple[int | None, str, Any]] = [(index, path, path) for index, path in named]
        else:
            given = [(None, row["path"], BytesIO(row["bytes"]) if "bytes" in row else row["path"]) for row in rows]
        results = run_batches(
            (Input(image) for _, _, image in given),
            self.predict,
            self.spec,
            like=self.like,
            batch_size=self.job.constant["run"]["batch_size"],
            readers=self.job.readers,
            hashing=True,
            icc=self.job.icc,
            image_timeout=self.job.image_timeout,
        )
        records = [record(path, result, self.job.constant) for (_, path, _), result in zip(given, results, strict=True)]
        vectors = None
        if self.shape is not None:
            missing = torch.full(self.shape, math.nan)
            vectors = torch.stack([item.pop("embedding", missing).to("cpu", self.dtype) for item in records]).numpy()
        table = parquet_table(records, vectors, parquet_schema(self.shape, self.dtype))
        return table.add_column(0, "index", pa.array([index for index, _, _ in given], pa.int64()))


def _count(out: Path, expected: int, indexed: bool) -> Summary:
    """Read the shards back; raise WriteError unless they have every input once."""
    _, pq = import_pyarrow()
    seen: set[int] = set()
    records = failed = 0
    for shard in sorted(out.rglob("*.parquet")):
        table = pq.read_table(shard, columns=["index", "error"])
        records += table.num_rows
        failed += table.num_rows - table.column("error").null_count
        seen.update(index for index in table.column("index").to_pylist() if index is not None)
    if records != expected or (indexed and len(seen) != expected):
        raise WriteError(
            f"{out}: has {records} records of {len(seen)} inputs, there are {expected} inputs; do not use it"
        )
    return Summary(records=records, failed=failed)
