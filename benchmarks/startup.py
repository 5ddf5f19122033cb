"""Whole-process time and peak memory of one classification: minivit beside its peers and beside `import torch`.

    python benchmarks/startup.py dog.jpg [--runs 5] [--model FOLDER] [--json FILE]

Every arm is a fresh process on the same photo and the same checkpoint (a random ViT-B/16 written for the
purpose, 346 MB, unless --model names another). The peers' best class and score must agree with ours
before anything is timed. Arms are interleaved, round by round, so that a drift of the machine meets all
of them; the first round warms the page cache and is not counted. Needs: pip install '.[test]'.
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

MINIVIT = ["-m", "minivit", "classify", "--model", "{model}", "--jsonl", "-k", "1", "--device", "cpu", "{image}"]

ARMS = {
    "import torch": ["-c", "import torch"],
    "minivit classify": MINIVIT,
    "transformers pipeline": ["-c", PIPELINE, "{model}", "{image}"],
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
import sys, torch, minivit
torch.manual_seed(0)
model = minivit.ViT(minivit.ViTConfig.preset("B/16"))
torch.nn.init.normal_(model.head.weight, std=0.5)
model.labels = {index: f"name {index}" for index in range(1000)}
model.image_spec = minivit.ImageSpec(resize=(224, 224))
minivit.save(model, sys.argv[1])
"""


def check(model: str, image: str) -> None:
    """Both say the same before either is timed."""
    ours = json.loads(run([part.format(model=model, image=image) for part in MINIVIT])[2])["top"][0]
    label, _, score = run(["-c", PIPELINE, model, image])[2].strip().rpartition(" ")
    # The pipeline resizes with torchvision, which differs from Pillow by up to one level a pixel.
    if label != ours["label"] or abs(float(score) - ours["score"]) > 2e-2:
        raise SystemExit(f"the arms disagree: minivit {ours}, transformers {label} {score}")


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
        check(model, args.image)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
        for round_number in range(args.runs + 1):
            for name, arm in ARMS.items():
                seconds, megabytes, _ = run([part.format(model=model, image=args.image) for part in arm])
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
    ours, theirs = samples["minivit classify"], samples["transformers pipeline"]
    ratios = [b[0] / a[0] for a, b in zip(ours, theirs, strict=True)]
    print(f"the pipeline takes {statistics.median(ratios):.2f} times as long (round by round: {min(ratios):.2f} to "
          f"{max(ratios):.2f})")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps({"samples": samples, "weights_mib": weights}, indent=1) + "\n")


if __name__ == "__main__":
    main()
