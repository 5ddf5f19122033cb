"""The pictures of the README, made anew from the commands themselves.

    python benchmarks/pictures.py MODEL IMAGE [--only NAME ...]

MODEL is a checkpoint of DINOv2 with trained weights, such as facebook/dinov2-small, IMAGE an image of about 1000 pixels
or more. Curves of a class come from the bundled model. Needs '.[plot]', and for the pictures of pages a `chromium` on
the PATH. What it writes into .github/images/ takes less than 1.5 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, FancyBboxPatch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".github" / "images"
WIDTH = 1600  # pixels of a picture in the README, at most
BUNDLED = "minivit/cifar10-vit"
NAME = "dinov2-small"  # what the pictures call MODEL where it is a folder
INK, PALE, LINE = "#1f2933", "#e8eef4", "#5b7083"


def minivit(work: Path, *arguments: object) -> None:
    """Run one command of minivit in a folder; its messages go to stderr as always."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "minivit", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=work, env=environment, stdout=sys.stderr)


def keep(source: Path, name: str, *, colours: int = 128, width: int = WIDTH) -> None:
    """Write a picture to OUT, at most `width` pixels wide, with a palette of so many colours."""
    image = Image.open(source).convert("RGB")
    image.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    image.quantize(colours, dither=Image.Dither.NONE).save(OUT / name, optimize=True)


def with_larger_crop(model: str, folder: Path, side: int) -> str:
    """Return a folder with the weights of a local checkpoint and a preprocessing to `side` x `side` pixels."""
    source = Path(model)
    if not source.is_dir():
        return model
    for file in source.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    spec = json.loads((source / "preprocessor_config.json").read_text())
    spec |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(spec))
    return folder.name


def overlay(model: str, image: str, work: Path) -> None:
    """What a patch attends to, over the image."""
    minivit(work, "attention", image, "-m", model, "--method", "rollout", "--smooth", "-o", work / "a.png")
    keep(work / "a.png", "overlay.png", width=700)


def methods(model: str, image: str, work: Path) -> None:
    """One image, the maps that need no class, side by side."""
    names = ("raw", "rollout", "similarity", "norms", "pca")
    tiles = []
    for name in names:
        minivit(work, "attention", image, "-m", model, "--method", name, "--smooth", "-o", work / f"{name}.png")
        tile = Image.open(work / f"{name}.png").convert("RGB")
        tile.thumbnail((WIDTH // len(names), WIDTH))
        tiles.append(tile)
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles), max(tile.height for tile in tiles)), "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width
    sheet.save(work / "methods.png")
    keep(work / "methods.png", "methods.png")


def heads(model: str, image: str, work: Path) -> None:
    """All heads of all blocks."""
    minivit(work, "attention", image, "-m", model, "--grid", "-o", work / "grid.png")
    keep(work / "grid.png", "heads.png", width=900, colours=64)


def pca(model: str, image: str, work: Path) -> None:
    """The first three principal components of the patches as colours."""
    minivit(work, "attention", image, "-m", model, "--method", "pca", "-o", work / "pca.png")
    keep(work / "pca.png", "pca.png", width=700)


def explorer(model: str, image: str, work: Path) -> None:
    """The explorer's page, as a browser shows it."""
    minivit(work, "explore", image, "-m", model, "--maps", "cls", "-o", work / "page.html")
    screenshot(work / "page.html", work / "page.png", 1400, 1000)
    keep(work / "page.png", "explorer.png")


def faithfulness(model: str, image: str, work: Path) -> None:
    """Deletion and insertion curves of the methods of a class."""
    minivit(work, "faithfulness", image, "-m", BUNDLED, "-o", work / "curves.png")
    keep(work / "curves.png", "faithfulness.png", colours=64)


def report(model: str, image: str, work: Path) -> None:
    """The report of a short run of the kernel bench."""
    kernel = "online_softmax.py"
    shutil.copy(ROOT / "benchmarks" / "kernels" / kernel, work)
    shape = ["--shapes", "4,6,197,64", "--threads", "1", "--budget", "20s", "--seed", "1"]
    minivit(work, "bench", "run", kernel, *shape, "-o", work / "run")
    screenshot(work / "run" / "report.html", work / "report.png", 1200, 760)
    keep(work / "report.png", "bench.png")


def screenshot(page: Path, out: Path, width: int, height: int) -> None:
    """Have a headless Chromium draw a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise SystemExit("no chromium on the PATH: this picture needs a browser")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
    options += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    size = [f"--window-size={width},{height}", f"--screenshot={out}"]
    subprocess.run([browser, *options, *size, page.as_uri()], check=True, capture_output=True, timeout=120)


def block(model: str, image: str, work: Path) -> None:
    """The block of a ViT with the shape of every tensor, ViT-B/16 as the example."""
    figure = Figure(figsize=(8, 2.9), dpi=200, layout="constrained")
    axes = figure.subplots()
    rows = (
        [("x", "B N D\n197 x 768"), ("norm1", "B N D\n197 x 768"), ("q, k, v", "B A N K\n12 x 197 x 64"),
         ("softmax(q kᵀ/√K)", "B A N M\n12 x 197 x 197"), ("· v", "B A N K\n12 x 197 x 64"),
         ("proj", "B N D\n197 x 768"), ("+", "B N D\n197 x 768")],
        [("x", "B N D\n197 x 768"), ("norm2", "B N D\n197 x 768"), ("fc1", "B N F\n197 x 3072"),
         ("GELU", "B N F\n197 x 3072"), ("fc2", "B N D\n197 x 768"), ("+", "B N D\n197 x 768"), ("x", "next block")],
    )  # fmt: skip
    half = 0.43  # of the width of a box
    for y, row in zip((1.35, 0.0), rows, strict=True):
        for x, (title, shape) in enumerate(row):
            box(axes, x - half, y - 0.16, 2 * half, 0.32)
            axes.text(x, y, title, ha="center", va="center", fontsize=7, color=INK)
            axes.text(x, y - 0.22, shape, ha="center", va="top", fontsize=6, color=LINE)
            if x:
                axes.annotate("", (x - half, y), (x - 1 + half, y), arrowprops=ARROW)
        plus = [title for title, _ in row].index("+")
        axes.plot([0, 0, plus], [y + 0.16, y + 0.38, y + 0.38], color=LINE, linewidth=1)
        axes.annotate("", (plus, y + 0.16), (plus, y + 0.39), arrowprops=ARROW)
        axes.text(plus / 2, y + 0.42, "residual", ha="center", va="bottom", fontsize=6, color=LINE)
    axes.set(xlim=(-0.5, 6.5), ylim=(-0.55, 1.95))
    axes.axis("off")
    figure.savefig(work / "block.png")
    keep(work / "block.png", "block.png", colours=32)


ARROW = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}


def box(axes: Axes, left: float, low: float, width: float, height: float) -> None:
    """A box with round corners, in the units of the axes."""
    style = BoxStyle.Round(pad=0, rounding_size=0.06)
    axes.add_patch(FancyBboxPatch((left, low), width, height, boxstyle=style, facecolor=PALE, edgecolor=LINE))


# From the ground up, as tests/unit/test_structure.py proves it for every file.
FLOORS = (
    (("errors", "exit codes"),),
    (("images", "file -> pixels"),),
    (("model", "the network"),),
    (("weights", "files, hub, families"),),
    (
        ("inference", "answers at any scale"),
        ("training", "recipe, train, evaluate"),
        ("study", "traces, maps, circuits"),
    ),
    (("parity", "where two differ, and why"), ("viz", "tensors -> pictures")),
    (("bench", "is a kernel right, how fast"),),
    (("cli", "one file a command"),),
)


def tree(model: str, image: str, work: Path) -> None:
    """The folders of the package on their floors."""
    figure = Figure(figsize=(7, 4.6), dpi=200, layout="constrained")
    axes = figure.subplots()
    for floor, rooms in enumerate(FLOORS):
        for i, (name, holds) in enumerate(rooms):
            x = 2.15 * (i - (len(rooms) - 1) / 2)
            box(axes, x - 1, floor - 0.36, 2, 0.72)
            axes.text(x, floor + 0.13, name, ha="center", va="center", fontsize=8.5, color=INK, weight="bold")
            axes.text(x, floor - 0.15, f"{holds}; {lines_of(name):,} lines", ha="center", va="center", fontsize=5.5)
    axes.annotate("", (-3.45, -0.3), (-3.45, len(FLOORS) - 0.7), arrowprops=ARROW)
    axes.text(-3.6, (len(FLOORS) - 1) / 2, "imports", rotation=90, ha="center", va="center", fontsize=7, color=LINE)
    axes.set(xlim=(-3.8, 3.3), ylim=(-0.5, len(FLOORS) - 0.5))
    axes.axis("off")
    figure.savefig(work / "tree.png")
    keep(work / "tree.png", "tree.png", colours=32)


def lines_of(name: str) -> int:
    """Lines of Python in a folder of the package, or in a file of its root."""
    folder = ROOT / "minivit" / name
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    return sum(file.read_text().count("\n") for file in files)


PICTURES: dict[str, Callable[[str, str, Path], None]] = {
    made.__name__: made for made in (overlay, methods, heads, pca, explorer, faithfulness, report, block, tree)
}


def main() -> None:
    """Make the pictures that were asked for, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        with TemporaryDirectory() as folder:
            work = Path(folder)
            (work / NAME).mkdir()
            PICTURES[name](with_larger_crop(args.model, work / NAME, 448), str(Path(args.image).resolve()), work)
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{OUT.relative_to(ROOT)}: {len(list(OUT.iterdir()))} pictures, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
