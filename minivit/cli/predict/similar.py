"""minivit similar: the images of an embedding file that are most similar to one image or text."""

from __future__ import annotations

import argparse
import json
import sys
from io import BytesIO

from minivit.cli.shared.command import JSON, THREADS, command, option
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.models import go_offline, pick_device
from minivit.cli.shared.writers import Output
from minivit.errors import ImageError, UsageError


@command(
    "similar",
    help="find the most similar images in an embedding file",
    description="Find the images whose embeddings have the largest cosine with that of QUERY (1 is the same "
    "direction). The model, its revision, pool, layer and preprocessing are those that EMBEDDINGS was written with.",
    options=[
        option(
            "query",
            metavar="QUERY",
            help="an image, - for standard input, or a text, if the model has a text tower and no file has that name",
        ),
        option("store", metavar="EMBEDDINGS", help="what `minivit embed -o EMBEDDINGS` wrote"),
        option("-k", "--top-k", type=positive, default=5, metavar="K", help="how many images (5)"),
        JSON,
        option("-m", "--model", metavar="ID|PATH", help="where the model of EMBEDDINGS is now; another one is refused"),
        option("--family", metavar="FAMILY", help="the family of a weights file without config.json"),
        option("--offline", action="store_true", help="never use the network (as HF_HUB_OFFLINE=1)"),
        option("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps"),
        THREADS,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.inference.search import similar

    if args.offline:
        go_offline()
    if args.query == "-" and sys.stdin.isatty():
        raise UsageError("- reads one image from standard input: pipe it in")
    query = BytesIO(sys.stdin.buffer.read()) if args.query == "-" else args.query
    device = pick_device(args.device)
    try:
        found = similar(query, args.store, k=args.top_k, model=args.model, family=args.family, device=device)
    except ImageError as error:
        raise error.named("-") from None
    if found.is_text:
        say(f"no file is called {printable(args.query)!r}: taken as a text")
    out = Output()
    if args.json:
        facts = [{"path": match.path, "cosine": match.cosine} for match in found.matches]
        out.write(json.dumps({"query": args.query, "store": args.store, **found.constant, "found": facts}) + "\n")
    else:
        out.write("".join(f"{match.cosine:.4f}  {printable(match.path)}\n" for match in found.matches))
    return 0
