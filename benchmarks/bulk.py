"""A folder of photos through a ViT: minivit end to end beside the model alone and its peers; memory; first record.

    python benchmarks/bulk.py speed [--batch 8] [--images 32] [--rounds 3] [--size B/16] [--json FILE]
    python benchmarks/bulk.py memory [--files 1000,100000]
    python benchmarks/bulk.py first [--files 100000]
    python benchmarks/bulk.py faults [--kills 20] [--signal SIGKILL] [--names labels.jsonl,vectors.npy]

`speed` classifies generated JPEG photos of 500 x 400, decoding included, with one set of random weights in
every arm; the best classes must agree before anything is timed, and the arms are interleaved, round by round:

    model        the model alone on pixels that lie ready, batch by batch
    minivit      `minivit.inference.prefetch` as `minivit classify` runs it: threads read ahead
    timm         the way of timm's inference.py: its dataset, loader (2 worker processes) and transform
    pipeline     transformers' image-classification pipeline over the list of paths

`memory` is the peak resident size of `minivit classify FOLDER -o FILE.jsonl` with a tiny model on many small
files; `first` the time from starting that command to its first record. `faults` kills a run again and again, each
time after a random number of new records, so that every kill lands in mid-run. What is there then must be a
beginning of what a run that was left alone wrote; --resume goes on, and the files at the end must be equal.
Needs: pip install '.[test]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np


def make_photos(folder: Path, count: int) -> list[str]:
    """JPEG photos of 500 x 400: smooth shapes with grain, so that they are as hard to decode as a camera's."""
    import torch
    from PIL import Image

    noise = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        coarse = torch.rand(1, 3, 8, 10, generator=noise)
        smooth = torch.nn.functional.interpolate(coarse, (400, 500), mode="bicubic", align_corners=False)[0]
        grain = torch.randn(3, 400, 500, generator=noise) * 0.04
        levels = ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        paths.append(str(folder / f"photo{i:05}.jpg"))
        Image.frombytes("RGB", (500, 400), bytes(levels.flatten().tolist())).save(paths[-1], quality=90)
    return paths


def make_checkpoint(folder: Path, size: str) -> None:
    """A random ViT with the preprocessing of google/vit-base-patch16-224, written by transformers."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    import minivit

    config = minivit.ViTConfig.preset(size)
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=224,
            patch_size=config.patch_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            num_labels=1000,
        )
    )
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)


def arms(folder: Path, paths: list[str], batch: int, size: str, fast: bool) -> dict[str, Callable[[], list[int]]]:
    """Every arm as a function that classifies all of `paths` and returns the best class of each."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from transformers import pipeline

    import minivit
    from minivit.inference.optimize import optimize

    model = optimize(minivit.load(folder)) if fast else minivit.load(folder)
    pixels = torch.stack([minivit.preprocess(path, model.image_spec) for path in paths])

    @torch.inference_mode()
    def alone() -> list[int]:
        return [index for some in pixels.split(batch) for index in model(some).argmax(-1).tolist()]

    def ours() -> list[int]:
        answers = minivit.iter_classify(paths, model=model, batch_size=batch, top_k=5)
        return [one.top[0].index for one in answers]

    names = {"Ti/16": "vit_tiny_patch16_224", "S/16": "vit_small_patch16_224", "B/16": "vit_base_patch16_224"}
    theirs = timm.create_model(names[size]).eval()
    state = minivit.load(folder).state_dict()
    state = {k.replace("patch_embed.", "patch_embed.proj."): v for k, v in state.items()}
    theirs.load_state_dict(state)
    transform = {"input_size": (3, 224, 224), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}

    @torch.inference_mode()
    def inference_script() -> list[int]:
        dataset = create_dataset(root=Path(paths[0]).parent, name="")
        loader = create_loader(
            dataset,
            batch_size=batch,
            use_prefetcher=False,
            num_workers=2,
            crop_pct=1.0,
            crop_mode="squash",
            **transform,
        )
        return [index for some, _ in loader for index in theirs(some).softmax(-1).topk(5).indices[:, 0].tolist()]

    pipe = pipeline("image-classification", model=str(folder), device="cpu")

    def pipeline_loop() -> list[int]:
        return [int(found[0]["label"].removeprefix("LABEL_")) for found in pipe(paths, batch_size=batch)]

    return {"model": alone, "minivit": ours, "timm": inference_script, "pipeline": pipeline_loop}


def speed(args: argparse.Namespace, scratch: Path) -> None:
    """Images per second of every arm, interleaved."""
    import torch

    photos, folder = scratch / f"photos-{args.images}", scratch / f"vit-{args.size.replace('/', '-')}"
    paths = sorted(map(str, photos.iterdir())) if photos.is_dir() else sorted(make_photos(photos, args.images))
    if not folder.is_dir():
        make_checkpoint(folder, args.size)
    runs = {
        name: run for name, run in arms(folder, paths, args.batch, args.size, args.fast).items() if name in args.arms
    }
    answers = {name: run() for name, run in runs.items()}
    first = next(iter(answers.values()))
    for name, found in answers.items():
        same = sum(a == b for a, b in zip(first, found, strict=True))
        if same < len(paths) - 1:
            raise SystemExit(f"{name}: {same} of {len(paths)} best classes agree; nothing is timed")
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            rates[name].append(len(paths) / (time.perf_counter() - started))
    path = "fast path" if args.fast else "readable model"
    print(f"{args.size}, batch {args.batch}, {path}, {len(paths)} photos, {torch.get_num_threads()} torch threads")
    for name, samples in rates.items():
        shares = [ours / theirs for ours, theirs in zip(samples, rates[next(iter(rates))], strict=True)]
        text = " ".join(f"{rate:.2f}" for rate in samples)
        middle, share = statistics.median(samples), statistics.median(shares)
        print(f"  {name:9} {middle:7.2f} images/s  {share:6.1%} of model  [{text}]")
    if args.json:
        names = ("torch", "transformers", "timm", "pillow")
        facts = {"size": args.size, "batch": args.batch, "fast": args.fast, "images": len(paths), "rates": rates}
        with Path(args.json).open("a") as file:
            file.write(json.dumps({**facts, "machine": platform.processor(), **{n: version(n) for n in names}}) + "\n")


TINY = """
import sys, minivit, torch
from minivit import ImageSpec, ViT, ViTConfig
torch.manual_seed(0)
model = ViT(ViTConfig(image_size=(32, 32), patch_size=16, width=8, depth=1, heads=1, mlp_width=8, classes=3))
model.image_spec, model.labels = ImageSpec(resize=(32, 32)), {0: "a", 1: "b", 2: "c"}
minivit.save(model, sys.argv[1])
"""


def make_files(scratch: Path, count: int) -> Path:
    """`count` small pictures in one folder: 100 different ones, linked."""
    import torch
    from PIL import Image

    folder = scratch / f"files-{count}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        noise = torch.Generator().manual_seed(0)
        for i in range(count):
            path = folder / f"{i}.png"
            if i < 100:
                levels = torch.randint(256, (40 * 30 * 3,), generator=noise, dtype=torch.uint8)
                Image.frombytes("RGB", (40, 30), bytes(levels.tolist())).save(path)
            else:
                os.link(folder / f"{i % 100}.png", path)
    return folder


def command(scratch: Path, folder: Path, *arguments: str, verb: str = "classify") -> list[str]:
    """minivit classify, or embed, of a folder with a tiny model."""
    tiny = scratch / "tiny"
    if not tiny.is_dir():
        subprocess.run([sys.executable, "-c", TINY, str(tiny)], check=True)
    return [sys.executable, "-m", "minivit", verb, str(folder), "-m", str(tiny), "--device", "cpu", *arguments]


def memory(args: argparse.Namespace, scratch: Path) -> None:
    """Peak resident size of the command, by the number of files."""
    for count in map(int, args.files.split(",")):
        folder, out = make_files(scratch, count), scratch / "out.jsonl"
        out.unlink(missing_ok=True)
        started = time.perf_counter()
        process = subprocess.Popen(command(scratch, folder, "-o", str(out), "-b", "32"))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        with out.open() as file:
            records = sum(1 for _ in file)
        print(f"{count:>7} files: peak {usage.ru_maxrss / 1024:.0f} MB, {seconds:.1f} s, {records} records")


def first(args: argparse.Namespace, scratch: Path) -> None:
    """Seconds from the start of the command to its first record."""
    for count in map(int, args.files.split(",")):
        samples = []
        for _ in range(args.rounds):
            started = time.perf_counter()
            arguments = command(scratch, make_files(scratch, count), "--jsonl")
            with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                samples.append(time.perf_counter() - started)
                process.stdout.close()
        print(f"{count:>7} files: first record after {statistics.median(samples):.2f} s")


def faults(args: argparse.Namespace, scratch: Path) -> None:
    """Kill a run each time it has written a random number of records more, check what it left, go on with --resume."""
    folder = make_files(scratch, 4000)
    chance = random.Random(0)
    for name in args.names.split(","):
        verb = "classify" if name.startswith("labels") else "embed"
        whole, out = scratch / f"whole-{name}", scratch / name
        for path in (whole, out, Path(f"{whole}.jsonl"), Path(f"{out}.jsonl")):
            path.unlink(missing_ok=True)
        shutil.rmtree(f"{out}.partial", ignore_errors=True)
        subprocess.run(command(scratch, folder, "-o", str(whole), verb=verb), check=True)
        resumed = command(scratch, folder, "-o", str(out), "--resume", verb=verb)
        growing = Growing(out, whole, scratch)
        grown = [0]
        for left in range(args.kills, 0, -1):
            step = 2 * (4000 - grown[-1]) // (left + 2)
            with subprocess.Popen(resumed, stderr=subprocess.DEVNULL) as process:
                if not growing.wait(grown[-1] + chance.randint(1, max(1, step)), process):
                    raise SystemExit(f"{name}: ended before kill {len(grown)}; begin again")
                process.send_signal(getattr(signal, args.signal))
            if process.returncode not in (-signal.SIGKILL, 130):
                raise SystemExit(f"{name}: kill {len(grown)} came after the end: {process.returncode}")
            grown.append(growing.check())
        subprocess.run(resumed, check=True)
        files = ["", ".jsonl"] if out.suffix == ".npy" else [""]
        same = all(Path(f"{out}{end}").read_bytes() == Path(f"{whole}{end}").read_bytes() for end in files)
        print(f"{args.signal} {args.kills} times, {name}: records after each {grown[1:]} of 4000, each a valid prefix")
        print(f"  resumed to its end, the file is {'equal' if same else 'DIFFERENT'}", flush=True)


class Growing:
    """What a run has written so far, beside the records and vectors of one that was left alone."""

    def __init__(self, out: Path, whole: Path, scratch: Path):
        self.lines, self.vectors = out, None
        expected = whole
        if out.suffix != ".jsonl":
            self.lines, self.vectors = Path(f"{out}.partial/records.jsonl"), Path(f"{out}.partial/vectors.npy")
            whole = scratch / "whole-vectors.npy"  # the records and rows are those of every store
            if not whole.exists():
                subprocess.run(command(scratch, scratch / "files-4000", "-o", str(whole), verb="embed"), check=True)
            expected = Path(f"{whole}.jsonl")
        self.whole, self.rows = expected.read_bytes(), whole.read_bytes() if self.vectors else b""

    def wait(self, records: int, process: subprocess.Popen) -> bool:
        """Until so many records are there; False when the process ends before."""
        seen = offset = 0
        while process.poll() is None:
            if self.lines.exists():
                with self.lines.open("rb") as file:
                    file.seek(offset)
                    block = file.read()
                seen, offset = seen + block.count(b"\n"), offset + len(block)
                if seen >= records:
                    return True
            time.sleep(0.0005)
        return False

    def check(self) -> int:
        """How many records there are; SystemExit where they, or their vectors, are no beginning of the whole."""
        there = self.lines.read_bytes()
        count = there.count(b"\n")
        if not self.whole.startswith(there):
            raise SystemExit(f"{self.lines}: no beginning of the whole")
        if self.vectors:
            with self.vectors.open("rb") as file:
                np.lib.format.read_magic(file)
                (rows, width), _, dtype = np.lib.format.read_array_header_1_0(file)
                start, rest = file.tell(), file.read()
            if not (count <= rows <= len(rest) // (width * dtype.itemsize) and self.rows[start:].startswith(rest)):
                raise SystemExit(f"{self.vectors}: no beginning of the whole")
        return count


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "first", "faults"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", default="SIGKILL", choices=("SIGKILL", "SIGINT"))
    names = "labels.jsonl,vectors.npy,vectors.safetensors,vectors.parquet,vectors.jsonl"
    parser.add_argument("--names", default=names, help="files to write; labels of classify, vectors of embed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="B/16", choices=("Ti/16", "S/16", "B/16"))
    parser.add_argument("--fast", action="store_true", help="minivit and the model alone on the fast path")
    parser.add_argument("--arms", default="model,minivit,timm,pipeline")
    parser.add_argument("--files", default="1000,100000")
    parser.add_argument("--scratch", type=Path, help="keep what is generated there, to be used again")
    parser.add_argument("--json", help="add the raw samples to this file, a line a run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        {"speed": speed, "memory": memory, "first": first, "faults": faults}[args.what](args, scratch)


if __name__ == "__main__":
    main()
