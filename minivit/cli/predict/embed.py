"""minivit embed: pictures as vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.predict.classify import JsonLinesWriter
from minivit.cli.shared.bulk import (
    Sink,
    Stdout,
    add_bulk_options,
    answer_inputs,
    answer_on_ray,
    batch_size,
    check_engine,
    choose_path,
)
from minivit.cli.shared.inputs import add_input_options, check_inputs
from minivit.cli.shared.models import (
    add_hub_options,
    add_model_option,
    add_run_options,
    load_image_model,
    load_towers,
)
from minivit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.clip import CLIP

POOLS = ("cls", "mean", "cls+mean", "pooler", "projection", "tokens")
FORMS = (".jsonl", ".npy", ".safetensors", ".parquet")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "embed",
        help="write what the model makes of pictures, as vectors",
        description="Write one vector for each picture, in the order given, with its path and the model, pool and "
        "preprocessing it comes from. A picture that cannot be read becomes an error, the others go on, and the "
        "exit code is 3.",
    )
    add_input_options(parser)
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="TEXT",
        help="texts instead of pictures, into the space they share with --pool projection (CLIP) or pooler (SigLIP)",
    )
    parser.add_argument("--pool", choices=POOLS, help="what of the tokens (cls); tokens is all of them")
    parser.add_argument(
        "--layer", type=int, metavar="I", help="after block I (0 is the first, -1 the last) instead of the final norm"
    )
    parser.add_argument("--norm", choices=("l2",), help="l2 scales every vector to length 1")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help=f"{', '.join(FORMS)}; JSON lines on standard output if left out"
    )
    add_bulk_options(parser)
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from minivit.inference.embeddings import StoreWriter
    from minivit.inference.jsonl import Journal
    from minivit.inference.optimize import optimize
    from minivit.inference.predict import embedder, embedding_shape, image_spec_of
    from minivit.inference.records import constants, preprocessing

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
        raise UsageError("--text takes texts alone, without pictures, --pool, --layer, --resume or --engine")
    check_engine(args)
    suffix = Path(args.out).suffix if args.out else None
    if args.engine == "local" and suffix not in (None, *FORMS):
        raise UsageError(f"-o {args.out}: embeddings are written as {', '.join(FORMS)}")
    if args.resume and not args.out:
        raise UsageError("--resume continues a file: name it with -o FILE")
    towers = load_towers(args) if args.text else None
    model = towers.image if towers else load_image_model(args)
    args.pool = shared_pool(model) if towers else args.pool or "cls"
    found, fast = (iter(()), False) if towers else choose_path(args, model)
    constant = constants(
        model,
        dtype=args.dtype,
        batch_size=batch_size(args, model),
        fast=fast,
        pool=args.pool,
        layer=args.layer,
        norm=args.norm,
        preprocessing=preprocessing(image_spec_of(model)),
    )
    if args.engine == "ray":
        embedder(model, args.pool, layer=args.layer, norm=args.norm)  # refuses here what every worker would
        return answer_on_ray(args, found, constant, pool=args.pool, layer=args.layer, norm=args.norm)
    model = optimize(model) if fast else model
    embeddings = embedder(model, args.pool, layer=args.layer, norm=args.norm)
    dtype = torch.float64 if args.dtype == "float64" else torch.float32

    def answer(pixels_BCHW: Tensor) -> Tensor:
        return embeddings(pixels_BCHW).to("cpu", dtype)

    sink: Sink
    if suffix is None:
        sink = JsonLinesWriter(Stdout())
    elif suffix == ".jsonl":
        sink = Journal(args.out, constant, resume=args.resume)
    else:
        sink = StoreWriter(args.out, constant, embedding_shape(model, args.pool), dtype, resume=args.resume)
    if towers:
        return write_texts(args, towers, constant, sink, dtype)
    return answer_inputs(args, model, found, answer, constant, sink)


def shared_pool(model: Any) -> str:
    """The pool of a picture's place in the space it shares with texts."""
    return "projection" if model.config.projection else "pooler"


def write_texts(args: argparse.Namespace, towers: CLIP, constant: dict[str, Any], sink: Sink, dtype: Any) -> int:
    """A record for every text, under the text as its path; returns the exit code."""
    import torch

    from minivit.inference.prefetch import Answer
    from minivit.inference.records import record

    try:
        for i, text in enumerate(args.text):
            with torch.inference_mode():
                vectors = towers.embed_texts([text]) if args.norm else towers.encode_text(towers.tokenize([text]))
            sink.put(i, record(text, Answer(picture=text, value=vectors[0].to("cpu", dtype)), constant))
        sink.finish(len(args.text))
    finally:
        sink.close()
    return 0
