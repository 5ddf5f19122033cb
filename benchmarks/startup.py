"""Whole-process time and peak memory of one classification: minivit beside its peers and beside `import torch`.

    python benchmarks/startup.py dog.jpg [--runs 5] [--model FOLDER] [--json FILE]

Every arm is a fresh process on the same photo and the same checkpoint (a random ViT-B/16 written for the
purpose, 346 MB, unless --model names another; timm takes part with the former only, written a second time in its
layout). The peers' best class and score must agree with ours before anything is timed. Arms are interleaved, round by
round, so that a drift of the machine meets all of them; the first round warms the page cache and is not counted.
Needs: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

PIPELINE = """
import sys
from transformers import pipeline
best = pipeline("image-classification", model=sys.argv[1])(sys.argv[2], top_k=1)[0]
print(best["label"], best["score"])
"""

TIMM = """
import sys, timm, torch
from PIL import Image
model = timm.create_model(f"local-dir:{sys.argv[1]}/timm", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    scores = model(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(-1)[0]
print("name", int(scores.argmax()), float(scores.max()))
"""

MINIVIT = ["-m", "minivit", "classify", "--model", "{model}", "--jsonl", "-k", "1", "--device", "cpu", "{image}"]

ARMS = {
    "import torch": ["-c", "import torch"],
    "minivit classify": MINIVIT,
    "transformers pipeline": ["-c", PIPELINE, "{model}", "{image}"],
    "timm": ["-c", TIMM, "{model}", "{image}"],
}


def run(arguments: list[str]) -> tuple[float, float, str]:
    """One fresh Python: (seconds, peak resident megabytes, what it printed)."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments[:4]} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024, out


# A ViT-B/16 with random weights and the preprocessing of google/vit-base-patch16-224. Written by a process of
# its own: the peak memory of a child starts from its parent's, so this one must stay small.
CHECKPOINT = """
import json, pathlib, sys, torch, minivit
from safetensors.torch import save_file
torch.manual_seed(0)
model = minivit.ViT(minivit.ViTConfig.preset("B/16"))
torch.nn.init.normal_(model.head.weight, std=0.5)
model.labels = {index: f"name {index}" for index in range(1000)}
model.image_spec = minivit.ImageSpec(resize=(224, 224))
minivit.save(model, sys.argv[1])
folder = pathlib.Path(sys.argv[1], "timm")
folder.mkdir()
tensors = {name.replace("patch_embed.", "patch_embed.proj."): t for name, t in model.state_dict().items()}
save_file(tensors, folder / "model.safetensors")
pictures = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
pictures |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 1000, "classifier": "head"}
config = {"architecture": "vit_base_patch16_224", "num_classes": 1000, "pretrained_cfg": pictures}
(folder / "config.json").write_text(json.dumps(config))
"""


def check(arms: dict[str, list[str]], model: str, image: str) -> None:
    """All say the same before any is timed."""
    ours = json.loads(run(filled(MINIVIT, model, image))[2])["top"][0]
    for name in arms.keys() - {"import torch", "minivit classify"}:
        label, _, score = run(filled(arms[name], model, image))[2].strip().rpartition(" ")
        # The peers resize with torchvision, which differs from Pillow by up to one level a pixel.
        if label != ours["label"] or abs(float(score) - ours["score"]) > 2e-2:
            raise SystemExit(f"the arms disagree: minivit {ours}, {name} {label} {score}")


def filled(arm: list[str], model: str, image: str) -> list[str]:
    """An arm's command; a script in it has braces of its own."""
    return [{"{model}": model, "{image}": image}.get(part, part) for part in arm]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--runs", type=int, default=5, help="counted rounds (5)")
    parser.add_argument("--model", help="a checkpoint folder instead of the random ViT-B/16")
    parser.add_argument("--json", metavar="FILE", help="write all raw samples there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not args.model:
            run(["-c", CHECKPOINT, scratch])
        model = args.model or scratch
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) / 2**20
        arms = {name: arm for name, arm in ARMS.items() if not (args.model and name == "timm")}
        check(arms, model, args.image)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for round_number in range(args.runs + 1):
            for name, arm in arms.items():
                seconds, megabytes, _ = run(filled(arm, model, args.image))
                if round_number:
                    samples[name].append((seconds, megabytes))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}")
    print(f"weights {weights:.0f} MiB, {args.runs} rounds after one warm-up, whole processes")
    base = [statistics.median(values) for values in zip(*samples["import torch"], strict=True)]
    print(
        f"{'arm':<24}{'median s':>10}{'min-max s':>14}{'over torch s':>14}{'peak MiB':>10}{'over torch / weights':>22}"
    )
    for name, values in samples.items():
        seconds, megabytes = zip(*values, strict=True)
        middle, peak = statistics.median(seconds), statistics.median(megabytes)
        print(
            f"{name:<24}{middle:>10.2f}{min(seconds):>8.2f}-{max(seconds):.2f}{middle - base[0]:>13.2f}"
            f"{peak:>10.0f}{(peak - base[1]) / weights:>22.2f}"
        )
    ours = samples["minivit classify"]
    for name in list(arms)[2:]:
        ratios = [b[0] / a[0] for a, b in zip(ours, samples[name], strict=True)]
        print(f"{name} takes {statistics.median(ratios):.2f} times as long as minivit (round by round: "
              f"{min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps({"samples": samples, "weights_mib": weights}, indent=1) + "\n")


if __name__ == "__main__":
    main()
