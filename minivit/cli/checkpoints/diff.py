"""minivit diff: the first step at which another implementation of a model differs, and why."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from minivit.cli.shared.command import HUB, JSON, THREADS, command, option
from minivit.cli.shared.console import printable, say, show_text, table
from minivit.cli.shared.files import read_image, say_notes
from minivit.cli.shared.models import family_only, go_offline
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.parity import Difference

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
USAGE = "minivit diff MODEL --against transformers|timm|torchvision|FILE.safetensors [IMAGE] [options]"
DTYPES = ("float64", "float32")


@command(
    "diff",
    usage=USAGE,
    help="find where another implementation differs from this one",
    description="Compare every step of a forward pass with another library's, run on the same files, or with a trace: "
    "first the preprocessing, then each named tensor in float64 and float32, up to the first that is out of "
    "tolerance, and what the other side does differently there, found by doing the same. The exit code is 1 when "
    "parity breaks.",
    epilog="FILE.safetensors holds tensors under the names of steps (minivit trace --help lists them), as minivit "
    "trace -o writes them, or a port's own code with safetensors: save_file({'pixels': x, 'embed.tokens': t, "
    "'blocks.0.norm1': n, ...}, FILE); q, k, v and attn.mix as (B, A, N, K) or (B, N, D); with 'pixels', what they "
    "were made of, no IMAGE is needed. Without an IMAGE libraries are compared on random pixels.",
    options=[
        option("words", nargs="*", metavar="MODEL", help="hub id, folder or weights file; then perhaps an image"),
        option(
            "--against",
            nargs="+",
            required=True,
            metavar="LIBRARY|FILE",
            help="transformers, timm or torchvision, which must be installed (pip install 'minivit[diff]') and able to "
            "load the same files; or a file of steps, FILE.safetensors",
        ),
        JSON,
        HUB,
        THREADS,
    ],
)
def run(args: argparse.Namespace) -> int:
    family_only(args, "diff")
    from minivit.parity import diff_against

    # The image may follow --against, which takes every word behind it.
    against, words = args.against[0], [*args.words, *args.against[1:]]
    if not 1 <= len(words) <= 2:
        raise UsageError(f"expected a MODEL and perhaps an IMAGE, not {len(words)} names: {USAGE}")
    if args.offline:
        go_offline()
    image = None
    if len(words) == 2:
        image, notes = read_image(words[1])
        say_notes(words[1], notes)
    found = diff_against(words[0], against, image, revision=args.revision, family=args.family)
    for note in found.notes:
        say(printable(note))
    show_text(json.dumps({"schema": SCHEMA, **found.record()}) if args.json else text(found))
    return 0 if found.equal else 1


def text(found: Difference) -> str:
    """The table of steps, the tolerance and the verdict."""
    version = f" {found.version}" if found.version else ""
    lines = [f"{printable(found.model)} against {printable(found.against)}{version}", steps(found), found.tolerance()]
    if found.absent:
        kinds = dict.fromkeys(name.split(".", 2)[2] if name.startswith("blocks.") else name for name in found.absent)
        lines.append(f"not compared, because the other side does not have it: {', '.join(kinds)}")
    return "\n".join([*lines, found.verdict()])


def steps(found: Difference) -> str:
    """A row for each step: shape, and for each dtype largest difference, its fraction of the magnitude, cosine."""
    cells = [["step", "shape", *(head for dtype in DTYPES for head in (f"{dtype}: abs", "rel", "cosine")), ""]]
    for row in found.rows:
        line = [row.name, " x ".join(map(str, row.shape))]
        for dtype in DTYPES:
            m = row.measures.get(dtype)
            line += [f"{m.max_abs:.2g}", f"{m.max_rel:.2g}", f"{m.cosine:.8f}"] if m else ["-", "-", "-"]
        cells.append([*line, "" if row.equal else "<-"])
    return table(cells, left=2)
