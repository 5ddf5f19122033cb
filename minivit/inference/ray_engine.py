"""The same bulk job on Ray Data: one actor per worker holds the model, Parquet shards come out.

Ray places the work, moves it, and does it again when a worker dies; what a worker does with its pictures is
`bulk.answer_all`, as on one machine, and its rows are the same records. Nothing of Ray is written by hand.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from minivit.errors import CheckpointError, UsageError, WriteError
from minivit.images.decode import IMAGE_SUFFIXES
from minivit.inference.embeddings import import_pyarrow, parquet_schema, parquet_table, vector_bytes
from minivit.inference.optimize import optimize
from minivit.inference.predict import classifier, embedder, embedding_shape, image_spec_of, picture_model
from minivit.inference.prefetch import Item, answer_all
from minivit.inference.records import fingerprint, record
from minivit.weights import load

CHUNK = 256  # pictures a worker takes at a time, about: what is done again when it dies


def start(address: str | None, *, quiet: bool = True) -> Any:
    """Join the cluster at `address` ("auto", "10.0.0.1:6379"), or start one of this machine alone; returns ray.

    Usage statistics, which Ray would send home, are switched off.

    Raises:
        UsageError: ray is not installed, or no cluster answers there.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'minivit[ray]'") from None
    import_pyarrow()
    if not ray.is_initialized():
        own: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=not quiet, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--address {address}: no Ray cluster ({str(error).splitlines()[0]})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = not quiet
    if quiet:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error comes as one line of ours
    return ray


def chunks(paths: Iterable[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """Paths as the rows of a data set for `run`: whole batches, the same ones as on one machine."""
    size, start, paths = -(-CHUNK // batch_size) * batch_size, 0, iter(paths)
    while some := list(islice(paths, size)):
        yield {"start": start, "count": len(some), "paths": list(map(os.fsencode, some))}
        start += len(some)


def read(addresses: list[str]) -> Any:
    """The pictures under addresses that pyarrow or Ray can read, s3://bucket/photos, as a data set for `run`.

    Raises:
        UsageError: they cannot be listed, or there is no picture among them.
    """
    import ray

    try:
        suffixes = [suffix[1:] for suffix in sorted(IMAGE_SUFFIXES)]
        return ray.data.read_binary_files(addresses, include_paths=True, file_extensions=suffixes)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{', '.join(addresses)}: Ray finds no pictures there ({reason})") from None


def run(
    dataset: Any, out: str | os.PathLike[str], job: dict[str, Any], *, workers: int | None = None
) -> dict[str, int]:
    """Answer for all pictures of a Ray data set and write the records to `out`, a new folder of Parquet shards.

    Args:
        dataset: rows of `chunks`, or any Ray data set with a column "path" and, unless workers can open it, "bytes".
        out: where every worker can write; the column "index" is the place among the inputs, where they have one.
        job: what `Worker` takes.
        workers: actors; one for every node when None, or for every GPU where the job runs on them.

    Returns:
        {"records": how many, "failed": of them, those with an error}, counted in what was written.

    Raises:
        UsageError: `out` cannot be made.
        WriteError: Ray gave up, or what was written is not one record for every input.
    """
    import ray
    from ray.data import ActorPoolStrategy

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    on_gpu = job["constant"]["device"].startswith("cuda")
    resources: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
    if on_gpu:
        workers = workers or int(sum(node.get("GPU", 0) for node in alive))
        resources["num_gpus"] = 1
    else:
        workers = workers or len(alive)
        least = int(min(node["CPU"] for node in alive))
        resources["num_cpus"] = max(1, least - 1)  # one is left for reading and writing
    chunked = "paths" in dataset.columns()

    class Holder(Worker):
        """A Worker that brings its job along: one that is started again needs nothing of a node that may be lost."""

        def __init__(self) -> None:
            super().__init__(job)

    answered = dataset.map_batches(
        Holder,
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
        answered.write_parquet(str(out))
    except ray.exceptions.RayError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise WriteError(f"{out}: is not complete, remove it; the cluster gave up: {reason.strip()}") from None
    expected = dataset.sum("count") if chunked else dataset.count()
    return _count(out, int(expected or 0), chunked)


class Worker:
    """What an actor does: holds the model, turns pictures into rows.

    Args:
        job: {"model", "revision", "family", "dtype"}: as `load` takes them; "folder": where relative paths begin,
            on a node that has it; "constant": the fields all records share, which say whether the fast path runs;
            "batch_size"; "readers"; and either "top_k" or "pool", "layer" and "norm".
    """

    def __init__(self, job: dict[str, Any]):
        with suppress(OSError):
            os.chdir(job["folder"])
        dtype = getattr(torch, job["dtype"])
        constant = job["constant"]
        loaded = load(
            job["model"], revision=job["revision"], family=job["family"], dtype=dtype, device=constant["device"]
        )
        model: Any = picture_model(loaded)
        if fingerprint(model) != constant["run"]["weights"]:
            raise CheckpointError(f"{job['model']}: a worker finds other weights there than the driver")
        self.job, self.spec = job, image_spec_of(model)
        self.like = model.patch_embed.weight.detach()[:0]
        model = optimize(model) if constant["run"]["fast"] else model
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.shape = None if "top_k" in job else embedding_shape(model, job["pool"])
        self.answer: Callable = (
            classifier(model, job["top_k"])
            if self.shape is None
            else embedder(model, job["pool"], layer=job["layer"], norm=job["norm"])
        )

    def __call__(self, batch: Any) -> Any:
        """A pyarrow Table of pictures -> one of their records."""
        pa, _ = import_pyarrow()
        rows = batch.to_pylist()
        if "paths" in batch.column_names:
            named = [(row["start"] + i, os.fsdecode(path)) for row in rows for i, path in enumerate(row["paths"])]
            given: list[tuple[int | None, str, Any]] = [(index, path, path) for index, path in named]
        else:
            given = [(None, row["path"], BytesIO(row["bytes"]) if "bytes" in row else row["path"]) for row in rows]
        answers = answer_all(
            (Item(picture) for _, _, picture in given),
            self.answer,
            self.spec,
            like=self.like,
            batch_size=self.job["batch_size"],
            readers=self.job["readers"],
            hashing=True,
        )
        records, vectors = [], []
        for (_, path, _), answer in zip(given, answers, strict=True):
            item = record(path, answer, self.job["constant"])
            if self.shape is not None:
                nothing = torch.full(self.shape, math.nan, dtype=self.dtype)
                vectors.append(vector_bytes(item.pop("embedding", nothing).to(self.dtype)))
            records.append(item)
        schema = parquet_schema(self.shape, self.dtype)
        table = parquet_table(records, b"".join(vectors) if self.shape is not None else None, schema)
        return table.add_column(0, "index", pa.array([index for index, _, _ in given], pa.int64()))


def _count(out: Path, expected: int, indexed: bool) -> dict[str, int]:
    """Read back what was written: every input once, or WriteError."""
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
    return {"records": records, "failed": failed}
