"""The shape of the package: arrows of import, light start, documentation, no drawers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minivit"

# What each file or folder may import inside minivit, beside errors, which all may. The order is the way
# of the data; the command line may import everything.
ARROWS = {
    "errors": set(),
    "config": set(),
    "recipe": set(),
    "preprocess": {"config"},
    "embed": {"config"},
    "attention": {"config"},
    "block": {"config", "attention"},
    "model": {"config", "attention", "block", "embed"},
    "swin": {"config", "attention", "block", "embed"},
    "tokenizer": set(),
    "text": {"config", "attention", "block"},
    "clip": {"config", "attention", "model", "text", "tokenizer"},
    "tensorfile": set(),
    "weights": {"config", "attention", "model", "clip", "swin", "tensorfile", "tokenizer", "weights"},
    "fast": {"attention", "block", "model"},
    "labels": set(),
    "bulk": {"config", "preprocess"},
    "predict": {"bulk", "clip", "config", "labels", "model", "preprocess", "swin", "weights"},
    "records": {"bulk", "config", "model", "swin"},
    "journal": set(),
    "stores": {"journal", "weights"},
    "distributed": {"bulk", "fast", "predict", "preprocess", "records", "stores", "weights"},
    "photos": {"config", "preprocess", "recipe"},
    "train": {"config", "model", "photos", "preprocess", "recipe", "weights"},
    "evaluate": {"config", "model", "photos", "preprocess", "recipe"},
    "study": {"config", "attention", "block", "model", "study", "swin", "tensorfile"},
    "peers": {"config", "attention", "study", "weights"},
    "bench": {"attention", "model", "bench"},
    "viz": {"config", "study", "viz"},
}
FREE = {"__init__", "__main__", "cli"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The file or folder of the top level a module belongs to: weights/files.py -> weights."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if node.module == "minivit" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("minivit.")} - {"__version__"}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_the_right_way(path: Path):
    if room(path) in FREE:
        return
    assert room(path) in ARROWS, f"{path.name} has no place in the design"
    wrong = imported_rooms(path) - ARROWS[room(path)] - {"errors"}
    assert not wrong, f"{path.relative_to(PACKAGE)} may not import {sorted(wrong)}"


def test_no_drawers_and_no_prints_outside_the_command_line():
    for path in modules():
        assert path.stem not in {"utils", "util", "helpers", "misc"}, path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
        assert not printing or room(path) == "cli", f"{path} prints"


def test_no_square_root_of_a_token_count():
    for path in modules():
        assert "int(N **" not in path.read_text(), path


NAMES = """
    classify embed similar
    attention explore trace preprocess
    lens attribute ablate heads faithfulness
    info models verify diff convert
    train eval bench
"""


@pytest.mark.parametrize("command", [[], *([name] for name in NAMES.split())])
def test_help_imports_no_torch(command):
    code = (
        "import sys, minivit.cli\n"
        f"try: minivit.cli.main({[*command, '--help']!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'PIL', 'safetensors', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "usage: minivit" in result.stdout


def test_version_and_import_are_light():
    code = "import sys, minivit; minivit.ViTConfig(); assert 'torch' not in sys.modules; print(minivit.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert result.stdout.strip() == "0.1.0", result.stderr


# Packages of an extra, and the one file that may import them.
EXTRAS = {
    "distributed.py": {"ray"},
    "peers.py": {"transformers", "timm", "torchvision"},
    "stores.py": {"pyarrow"},
    "tokenizer.py": {"tokenizers"},
}


def test_classify_imports_only_the_four_packages():
    """What a run of the model needs: torch, safetensors, pillow (and the hub for downloads), nothing else by us."""
    needed = {"torch", "safetensors", "PIL", "huggingface_hub", "tqdm"}  # tqdm comes with huggingface_hub
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else names
            roots = {name.split(".")[0] for name in names} - {"minivit", *sys.stdlib_module_names}
            allowed = needed | EXTRAS.get(path.relative_to(PACKAGE).as_posix(), set())
            assert roots <= allowed, f"{path}: {roots - allowed}"


def test_every_public_thing_has_a_docstring():
    for path in modules():
        name = ".".join(["minivit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        module = import_module(name)
        assert module.__doc__, name
        for key, value in vars(module).items():
            if key.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                documented = value.__doc__ or key in {"add_parser", "run"} or key.startswith("write_")
                assert documented, f"{name}.{key} has no docstring"
