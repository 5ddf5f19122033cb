"""minivit embed: images or texts as vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from minivit.cli.shared.bulk import BULK, batch_size, check_engine, choose_path, icc_setting, run_local, run_on_ray
from minivit.cli.shared.command import RUN, command, option
from minivit.cli.shared.inputs import add_input_options, check_inputs
from minivit.cli.shared.models import load_image_model, load_towers
from minivit.cli.shared.writers import JsonLinesWriter, Output
from minivit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.inference.bulk import RecordWriter

POOLS = ("cls", "mean", "cls+mean", "pooler", "projection", "tokens")
FORMS = (".jsonl", ".npy", ".safetensors", ".parquet")


@command(
    "embed",
    help="write embeddings of images",
    description="Write one vector per image, in the order given, with its path and the model, pool and preprocessing "
    "that made it. An image that cannot be read becomes an error, the others continue, and the exit code is 3.",
    options=[
        add_input_options,
        option(
            "--text",
            nargs="+",
            metavar="TEXT",
            help="texts instead of images, in the space of --pool projection (CLIP) or pooler (SigLIP)",
        ),
        option("--pool", choices=POOLS, help="which tokens (cls); tokens is all of them"),
        option(
            "--layer", type=int, metavar="I", help="after block I (0 is the first, -1 the last), before the final norm"
        ),
        option("--norm", choices=("l2",), help="l2 divides every vector by its L2 norm"),
        option("-o", "--out", metavar="FILE", help=f"{', '.join(FORMS)} (default: JSON lines on standard output)"),
        *BULK,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    import torch

    from minivit.inference.bulk import write_text_embeddings
    from minivit.inference.embeddings import EmbeddingWriter
    from minivit.inference.jsonl import JsonlLog
    from minivit.inference.optimize import optimize
    from minivit.inference.predict import embedder, embedding_shape, image_spec_of
    from minivit.inference.records import constants, preprocessing
    from minivit.inference.search import shared_pool

    check(args)
    suffix = Path(args.out).suffix if args.out else None
    towers = load_towers(args) if args.text else None
    model = towers.image if towers else load_image_model(args)
    args.pool = shared_pool(model) if towers else args.pool or "cls"
    found, fast = (iter(()), False) if towers else choose_path(args, model)
    task = {"pool": args.pool, "layer": args.layer, "norm": args.norm}
    settings = {"dtype": args.dtype, "batch_size": batch_size(args, model), "fast": fast, **task, **icc_setting(args)}
    constant = constants(model, **settings, preprocessing=preprocessing(image_spec_of(model)))
    if args.engine == "ray":
        embedder(model, **task)  # refuse here what every worker would refuse
        return run_on_ray(args, found, constant, **task)
    model = optimize(model) if fast else model
    embeddings = embedder(model, **task)
    dtype = torch.float64 if args.dtype == "float64" else torch.float32

    def predict(pixels_BCHW: Tensor) -> Tensor:
        return embeddings(pixels_BCHW).to("cpu", dtype)

    writer: RecordWriter
    if suffix is None:
        writer = JsonLinesWriter(Output())
    elif suffix == ".jsonl":
        writer = JsonlLog(args.out, constant, resume=args.resume)
    else:
        writer = EmbeddingWriter(args.out, constant, embedding_shape(model, args.pool), dtype, resume=args.resume)
    if towers:
        write_text_embeddings(args.text, towers, writer, constant, norm=args.norm, dtype=dtype)
        return 0
    return run_local(args, model, found, predict, constant, writer)


def check(args: argparse.Namespace) -> None:
    """Refuse options that exclude each other, before a model is loaded.

    Raises:
        UsageError: the reason.
    """
    if args.text is None:
        check_inputs(args)
    elif (
        args.images
        or args.from_file is not None
        or args.pool
        or args.layer is not None
        or args.resume
        or args.engine != "local"
    ):
        raise UsageError("--text takes texts alone, without images, --pool, --layer, --resume or --engine")
    check_engine(args)
    if args.engine == "local" and args.out and Path(args.out).suffix not in FORMS:
        raise UsageError(f"-o {args.out}: embeddings are written as {', '.join(FORMS)}")
    if args.resume and not args.out:
        raise UsageError("--resume continues a file: name it with -o FILE")
