"""What several test files need: shared photos where they are, small checkpoints written by transformers."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: two workers with a thread each share two cores better than with two threads each.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from helpers.models import HF_SIZES, randomise
from PIL import Image

# Set before huggingface_hub is first imported: no test reaches out by accident.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from minivit.weights import shards

# The pickles of the tests are their own, so that a torch may read them that minivit trusts with nobody else's.
SAFE_TO_UNPICKLE = shards.SAFE_TO_UNPICKLE
shards.SAFE_TO_UNPICKLE = (2, 6)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def seed(name: str) -> None:
    """Whatever ran before, and in whichever process: the same name draws the same numbers."""
    torch.manual_seed(zlib.crc32(name.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    seed(item.nodeid)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the photos of ../shared/data are not here")
    return SHARED


@pytest.fixture(scope="session")
def photos(shared: Path) -> list[Path]:
    """48 ImageNet photos and a dog."""
    return [*sorted((shared / "photos").iterdir()), shared / "dog.jpg"]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 x 50 pixels, noisy, so that nothing about it is symmetrical."""
    path = tmp_path_factory.mktemp("photos") / "noise.png"
    levels = torch.randint(0, 256, (100 * 50 * 3,), generator=torch.Generator().manual_seed(0))
    Image.frombytes("RGB", (100, 50), bytes(levels.tolist())).save(path)
    return str(path)


@pytest.fixture(scope="session")
def hf_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that has transformers write a random ViT with its processor, once per set of arguments."""
    made: dict[str, Path] = {}

    def make(head: bool = True, seed: int = 0, **changes) -> Path:
        from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, ViTModel

        key = repr((head, seed, sorted(changes.items())))
        if key not in made:
            config = ViTConfig(**{**HF_SIZES, **changes})
            torch.manual_seed(seed)
            model = (ViTForImageClassification if head else ViTModel)(config)
            randomise(model)
            made[key] = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(made[key])
            height, width = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
            ViTImageProcessorPil(size={"height": height, "width": width}).save_pretrained(made[key])
        return made[key]

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell in one line how many tests were skipped, and why."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        told = "; ".join(f"{count} {reason.removeprefix('Skipped: ')}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped: {told}")
