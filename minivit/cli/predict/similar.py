"""minivit similar: the pictures of a store that are most like one picture."""

from __future__ import annotations

import argparse
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.predict.embed import shared_pool
from minivit.cli.shared.bulk import Stdout
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.models import go_offline, pick_device
from minivit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.clip import CLIP


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "similar",
        help="find the pictures of a store that are most like one",
        description="Find the pictures whose embeddings point most the same way as that of QUERY (cosine, 1 is the "
        "same direction). The model, its revision, pool, layer and preprocessing are those STORE was written with.",
    )
    parser.add_argument(
        "query",
        metavar="QUERY",
        help="a picture, - for standard input, or where the model has a text tower and no file has that name, a text",
    )
    parser.add_argument("store", metavar="STORE", help="what `minivit embed -o STORE` wrote")
    parser.add_argument("-k", "--top-k", type=positive, default=5, metavar="K", help="how many pictures (5)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument(
        "-m", "--model", metavar="ID|PATH", help="where the model of the store lies now; any other model is refused"
    )
    parser.add_argument("--family", metavar="FAMILY", help="what a weights file without config.json is")
    parser.add_argument("--offline", action="store_true", help="never use the network (as HF_HUB_OFFLINE=1)")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from minivit.inference.embeddings import nearest, open_store
    from minivit.inference.predict import embed
    from minivit.inference.records import fingerprint
    from minivit.model.capabilities import image_model
    from minivit.weights import load

    store = open_store(args.store)
    made = store.constant["run"]
    if made["pool"] == "tokens":
        raise UsageError(f"{args.store}: has all tokens of every picture, not one vector; embed with another --pool")
    if args.offline:
        go_offline()
    name = args.model or store.constant["model"]
    revision = None if args.model else store.constant["revision"]
    dtype = getattr(torch, made["dtype"])
    model = load(name, revision=revision, family=args.family, dtype=dtype, device=pick_device(args.device))
    towers = model if model.has_text else None
    model = image_model(model)
    if fingerprint(model) != made["weights"]:
        raise UsageError(
            f"{args.store}: was written with {store.constant['model']}, weights {made['weights']}; {name} has other "
            f"weights or preprocessing ({fingerprint(model)}), so its vectors cannot be compared with them"
        )
    if args.query == "-" and sys.stdin.isatty():
        raise UsageError("- reads one picture from standard input: pipe it in")
    if towers and is_text(args.query):
        (query,) = of_text(args, towers, made)
    else:
        picture = BytesIO(sys.stdin.buffer.read()) if args.query == "-" else args.query
        try:
            (query,) = embed(picture, model=model, pool=made["pool"], layer=made["layer"], norm=made["norm"]).cpu()
        except ImageError as error:
            raise error.named("-") from None
    found = nearest(query, store, args.top_k)
    out = Stdout()
    if args.json:
        facts = [{"path": record["path"], "cosine": cosine} for cosine, record in found]
        out.write(json.dumps({"query": args.query, "store": args.store, **store.constant, "found": facts}) + "\n")
    else:
        out.write("".join(f"{cosine:.4f}  {printable(record['path'])}\n" for cosine, record in found))
    return 0


def is_text(query: str) -> bool:
    """Whether a query is none of a picture: no file, and no name of one."""
    from minivit.images.decode import IMAGE_SUFFIXES

    path = Path(query)
    return query != "-" and path.suffix.lower() not in IMAGE_SUFFIXES and not path.exists()


def of_text(args: argparse.Namespace, towers: CLIP, made: dict[str, Any]) -> Tensor:
    """A text as a vector (1, E) beside those of the store.

    Raises:
        UsageError: the store's vectors are not of the space that pictures and texts share.
    """
    pool = shared_pool(towers.image)
    if made["pool"] != pool or made["layer"] is not None:
        raise UsageError(
            f"{args.store}: was written with --pool {made['pool']}, which no text reaches; embed with --pool {pool}"
        )
    say(f"no file is called {printable(args.query)!r}: taken as a text")
    return towers.embed_texts([args.query]).cpu()
