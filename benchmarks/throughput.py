"""Images a second of a ViT on a CPU: minivit beside its peers, all with the same weights.

    python benchmarks/throughput.py --cache FOLDER --prepare        # writes and exports what the arms load; no timing
    python benchmarks/throughput.py --cache FOLDER [--sizes B/16] [--dtypes float32] [--batches 1,8] [--only ARMS]

One random checkpoint per size is written once; every arm loads it in a process of its own. Each must give the
logits of the readable model in float32, as near as its dtype allows, before anything is timed. Then the arms take
turns, in an order drawn anew for every round: one call that is not counted and as many as fit in --seconds. Printed
are medians over all rounds, the ratio to the best peer of the same dtype and its spread over the rounds, GFLOP/s (of
the whole model, also for an arm that leaves some of it out), their share of the fastest square product of torch
measured here, the seconds from the files to the first answer (packing and compiling included; imports and exports
not), the peak memory of the process, the distance of the logits, and how many of the most likely classes agree.

Needs: pip install '.[bench]', and a C++ compiler for the arm torch.compile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = {  # name -> preset and picture size, pixels
    "Ti/16": ("Ti/16", 224),
    "B/16": ("B/16", 224),
    "L/16": ("L/16", 224),
    "B/16@384": ("B/16", 384),
}
CHECKED = 8  # pictures whose logits are compared
# How far from the readable model in float32, as a share of the length of its logits: rounding, and what int8 costs.
LIMITS = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.3}


# --- what the arms load -----------------------------------------------------------------------------------------


def config_of(size: str) -> Any:
    from minivit import ViTConfig

    preset, side = SIZES[size]
    return ViTConfig.preset(preset, image_size=(side, side))


def pixels_of(size: str, count: int) -> Any:
    import torch

    side = SIZES[size][1]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def prepare(folder: Path, size: str) -> None:
    """Write checkpoint, reference logits and the exported models of one size, where they are missing."""
    import torch

    import minivit

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "reference.pt").exists():
        torch.manual_seed(0)
        model = minivit.ViT(config_of(size)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # a fresh model has biases of 0 and norms of 1, which hide faults
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.image_spec = minivit.ImageSpec(resize=model.config.image_size)
        minivit.save(model, folder)
        with torch.inference_mode():
            torch.save(model(pixels_of(size, CHECKED)), folder / "reference.pt")
    if not (folder / "model.onnx").exists():
        export_onnx(folder, size)
    if not (folder / "model.int8.onnx").exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            folder / "model.onnx", folder / "model.int8.onnx", weight_type=QuantType.QInt8, per_channel=True
        )


def export_onnx(folder: Path, size: str) -> None:
    """transformers' model by PyTorch's own exporter, with a free batch."""
    import torch

    model = transformers_model(folder, "float32")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixels).logits

    batch = torch.export.Dim("batch", min=1, max=256)
    example = (pixels_of(size, 2),)
    program = torch.onnx.export(Logits().eval(), example, dynamo=True, dynamic_shapes={"pixels": {0: batch}})
    program.save(folder / "model.onnx")


# --- the arms: a folder and a dtype -> for a batch, a call that answers it -----------------------------------------

Call = Callable[[Any], Any]


def torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def minivit_readable(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    import minivit

    model = minivit.load(folder, dtype=torch_dtype(dtype))
    return lambda batch: lambda pixels: model(pixels.to(torch_dtype(dtype)))


def minivit_optimized(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    import minivit

    model = minivit.optimize(minivit.load(folder), dtype)
    return lambda batch: model


def transformers_model(folder: Path, dtype: str) -> Any:
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(
        folder, dtype=torch_dtype(dtype), attn_implementation="sdpa"
    ).eval()


def transformers(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    model = transformers_model(folder, dtype)
    return lambda batch: lambda pixels: model(pixel_values=pixels.to(torch_dtype(dtype))).logits


def timm(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    model = timm_model(folder, size, dtype)
    return lambda batch: lambda pixels: model(pixels.to(torch_dtype(dtype)))


def timm_model(folder: Path, size: str, dtype: str) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    import minivit

    model = minivit.load(folder, dtype=torch_dtype(dtype))
    config = model.config
    peer = VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.width, depth=config.depth,
        num_heads=config.heads, num_classes=config.classes,
    )  # fmt: skip
    names = {"patch_embed.weight": "patch_embed.proj.weight", "patch_embed.bias": "patch_embed.proj.bias"}
    peer.load_state_dict({names.get(name, name): tensor for name, tensor in model.state_dict().items()}, assign=True)
    return peer.eval()


def torchvision(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    from torchvision.models import VisionTransformer

    import minivit

    model = minivit.load(folder, dtype=torch_dtype(dtype))
    config = model.config
    peer = VisionTransformer(
        config.image_size[0], config.patch_size, config.depth, config.heads, config.width, config.mlp_width
    )
    names = {
        "cls_token": "class_token",
        "patch_embed.": "conv_proj.",
        "pos_embed": "encoder.pos_embedding",
        "blocks.": "encoder.layers.encoder_layer_",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "norm.": "encoder.ln.",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj.": "self_attention.out_proj.",
        "mlp.fc1.": "mlp.0.",
        "mlp.fc2.": "mlp.3.",
        "head.": "heads.head.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    peer.load_state_dict(state, assign=True)
    peer.eval()
    return lambda batch: lambda pixels: peer(pixels.to(torch_dtype(dtype)))


def torch_compile(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    """timm's model under torch.compile with frozen weights, which lets it pack them."""
    import torch

    model = torch.compile(timm_model(folder, size, dtype), options={"freezing": True}, dynamic=False)
    return lambda batch: lambda pixels: model(pixels.to(torch_dtype(dtype)))


def onnxruntime(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    name = {"float32": "model.onnx", "int8": "model.int8.onnx"}[dtype]
    session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
    read = session.get_inputs()[0].name
    return lambda batch: lambda pixels: torch.from_numpy(session.run(None, {read: pixels.numpy()})[0])


def openvino(folder: Path, size: str, dtype: str) -> Callable[[int], Call]:
    import openvino
    import torch

    hints = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one request
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    side = SIZES[size][1]

    def prepared(batch: int) -> Call:
        model = openvino.Core().read_model(folder / "model.onnx")
        model.reshape([batch, 3, side, side])
        compiled = openvino.compile_model(model, "CPU", hints)
        return lambda pixels: torch.from_numpy(compiled(pixels.numpy())[0])

    return prepared


@dataclass(frozen=True)
class Arm:
    build: Callable[[Path, str, str], Callable[[int], Call]]
    dtypes: tuple[str, ...]
    peer: bool = True


ARMS = {
    "minivit": Arm(minivit_readable, ("float32", "bfloat16"), peer=False),
    "minivit.optimize": Arm(minivit_optimized, ("float32", "bfloat16", "int8"), peer=False),
    "transformers": Arm(transformers, ("float32", "bfloat16")),
    "timm": Arm(timm, ("float32", "bfloat16")),
    "torchvision": Arm(torchvision, ("float32", "bfloat16")),
    "torch.compile": Arm(torch_compile, ("float32", "bfloat16")),
    "onnxruntime": Arm(onnxruntime, ("float32", "int8")),
    "openvino": Arm(openvino, ("float32", "bfloat16")),
}


# --- one arm in a process of its own ------------------------------------------------------------------------------


def work(folder: Path, arm: str, size: str, dtype: str, batches: list[int]) -> None:
    """Say when ready, then answer every line of standard input (batch, seconds) with a line of samples."""
    import torch

    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    __import__({"torch.compile": "timm", "minivit.optimize": "minivit"}.get(arm, arm))
    pixels, reference = pixels_of(size, max(CHECKED, *batches)), torch.load(folder / "reference.pt")
    calls, first = {}, {}
    with torch.inference_mode():
        started = time.perf_counter()
        build = ARMS[arm].build(folder, size, dtype)
        for batch in batches:
            calls[batch] = build(batch)
            calls[batch](pixels[:batch])
            first[batch] = time.perf_counter() - started
            started = time.perf_counter()
        errors, agree = [], []
        for batch, call in calls.items():
            logits = torch.cat([call(part) for part in pixels[: max(CHECKED, batch)].split(batch)])[:CHECKED].float()
            errors.append(((logits - reference).norm() / reference.norm()).item())
            agree.append(int((logits.argmax(1) == reference.argmax(1)).sum()))
        print(json.dumps({"first": first, "error": max(errors), "top1": f"{min(agree)}/{CHECKED}"}), file=talk)
        for line in sys.stdin:
            batch, seconds = json.loads(line)
            call, samples = calls[batch], []
            call(pixels[:batch])
            end = time.perf_counter() + seconds
            while not samples or time.perf_counter() < end:
                before = time.perf_counter()
                call(pixels[:batch])
                samples.append(time.perf_counter() - before)
            print(
                json.dumps({"samples": samples, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}),
                file=talk,
            )


class Worker:
    """One arm, started and asked for samples; idle in between."""

    def __init__(self, folder: Path, arm: str, size: str, dtype: str, batches: list[int], threads: int):
        command = [sys.executable, __file__, "--cache", str(folder), "--worker", arm, "--sizes", size]
        command += ["--dtypes", dtype, "--batches", ",".join(map(str, batches))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        pipe, self.talk = subprocess.PIPE, tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.talk, text=True, env=environment)
        self.arm, self.peak = arm, 0.0
        self.samples: dict[int, list[list[float]]] = {batch: [] for batch in batches}
        self.about = self._answer()

    def run(self, batch: int, seconds: float) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([batch, seconds]) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.samples[batch].append(answer["samples"])
        self.peak = answer["peak"]

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.talk.seek(0)
            raise SystemExit(f"{self.arm} ended:\n{self.talk.read()[-2000:]}")
        return json.loads(line)

    def end(self) -> None:
        self.process.communicate()


# --- all arms ---------------------------------------------------------------------------------------------------


def flops(size: str) -> int:
    """Of one picture: the products of the whole model and of its attention, a multiplication and an addition as two."""
    config = config_of(size)
    patches, tokens, width = config.layout.patches, config.layout.count, config.width
    block = 4 * width * width + 2 * width * config.mlp_width + 2 * tokens * width
    embed = patches * width * config.channels * config.patch_size**2
    return 2 * (embed + config.depth * tokens * block + width * config.classes)


def compare(folder: Path, size: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time all arms of one size and dtype, print their tables, and return the raw numbers."""
    names = [name for name, arm in ARMS.items() if dtype in arm.dtypes and (not args.only or name in args.only)]
    workers = []
    for name in names:
        worker = Worker(folder, name, size, dtype, args.batches, args.threads)
        workers.append(worker)
        if not worker.about["error"] <= LIMITS[dtype]:
            raise SystemExit(f"{name} {size} {dtype}: logits are wrong by {worker.about['error']:.2g} of their length")
    peak = gemm_peak(dtype, args.threads)
    cells = []
    for batch in args.batches:
        for _ in range(args.rounds):
            for worker in random.sample(workers, len(workers)):
                worker.run(batch, args.seconds)
        cells.append(table(workers, size, dtype, batch, peak))
    for worker in workers:
        worker.end()
    return {"size": size, "dtype": dtype, "gemm_peak": peak, "threads": args.threads, "cells": cells}


def gemm_peak(dtype: str, threads: int) -> float | None:
    """FLOP/s of the fastest square product in the dtype; measured between the arms, not at another time."""
    if dtype == "int8":
        return None
    from minivit.bench.timing import peaks

    return peaks.gemm_peak(torch_dtype(dtype), threads)


def table(workers: list[Worker], size: str, dtype: str, batch: int, peak: float | None) -> dict[str, Any]:
    rates = {w.arm: batch / statistics.median(s for samples in w.samples[batch] for s in samples) for w in workers}
    peers = {name: rate for name, rate in rates.items() if ARMS[name].peer}
    best = max(peers, key=lambda name: peers[name]) if peers else None
    print(f"\n{size} {dtype} batch {batch}" + (f", best product {peak / 1e9:.0f} GFLOP/s" if peak else ""))
    print(f"{'arm':<18}{'images/s':>9}{'x best peer':>12}{'rounds':>13}{'GFLOP/s':>9}{'of peak':>9}{'first s':>9}"
          f"{'peak MiB':>10}{'error':>9}{'top-1':>7}")  # fmt: skip
    rows = {}
    for w in workers:
        rate = rates[w.arm]
        against = next((other for other in workers if other.arm == best), w)
        ratios = [statistics.median(b) / statistics.median(a)
                  for a, b in zip(w.samples[batch], against.samples[batch], strict=True)]  # fmt: skip
        speed = rate * flops(size)
        rows[w.arm] = {
            "images_per_s": rate, "ratio": rate / rates[best] if best else None, "ratios": ratios, "flops_per_s": speed,
            "first_s": w.about["first"][str(batch)], "peak_mib": w.peak, "error": w.about["error"],
            "top1": w.about["top1"], "samples": w.samples[batch],
        }  # fmt: skip
        share = f"{speed / peak:.0%}" if peak else "-"
        print(f"{w.arm:<18}{rate:>9.2f}{rate / rates[best or w.arm]:>12.2f}{min(ratios):>8.2f}-{max(ratios):.2f}"
              f"{speed / 1e9:>9.0f}{share:>9}{w.about['first'][str(batch)]:>9.2f}{w.peak:>10.0f}"
              f"{w.about['error']:>9.1e}{w.about['top1']:>7}", flush=True)  # fmt: skip
    return {"batch": batch, "best_peer": best, "arms": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=listed(*SIZES), default=["B/16"], help=f"of {', '.join(SIZES)} (B/16)")
    parser.add_argument("--dtypes", type=listed(*LIMITS), default=[*LIMITS], help=",".join(LIMITS))
    parser.add_argument("--batches", type=lambda text: [int(b) for b in text.split(",")], default=[1, 8], help="1,8")
    parser.add_argument("--only", type=listed(*ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of an arm in a round (1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every arm")
    parser.add_argument("--cache", type=Path, help="where checkpoints and exported models are kept; else they are not")
    parser.add_argument("--prepare", action="store_true", help="fill --cache and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw samples there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.cache, args.worker, args.sizes[0], args.dtypes[0], args.batches)
        return
    scratch = None if args.cache else tempfile.TemporaryDirectory()
    root = args.cache or Path(scratch.name)
    results = []
    for size in args.sizes:
        folder = root / size.replace("/", "-")
        prepare(folder, size)
        for dtype in [] if args.prepare else args.dtypes:
            results.append(compare(folder, size, dtype, args))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}) + "\n")


def listed(*known: str) -> Callable[[str], list[str]]:
    """A reader of names between commas, each of which must be known."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return names

    return read


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    names = ("torch", "transformers", "timm", "torchvision", "onnxruntime", "openvino")
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


if __name__ == "__main__":
    main()
