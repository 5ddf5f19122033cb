"""The shape of the package: arrows of import, light start, documentation, no drawers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "minivit"

# The floors from the ground up: a file imports from its own folder and from lower floors.
FLOORS = (
    {"errors"},
    {"images"},
    {"model"},
    {"weights"},
    {"inference", "training", "study"},
    {"parity", "viz", "learn"},
    {"bench"},
    {"cli"},
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """weights/files.py -> minivit.weights.files; weights/__init__.py -> minivit.weights."""
    return ".".join(["minivit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def room(module: str) -> str:
    """The folder or file of the top level: minivit.weights.files -> weights."""
    return module.split(".")[1]


@cache
def imports() -> dict[str, set[str]]:
    """Every module with the modules of the package that it imports, for types only as well."""
    names = {dotted(path) for path in modules()}
    found: dict[str, set[str]] = {}
    for path in modules():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} imports relatively"
                targets |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        # `from minivit.bench import kernels` names the module, not the folder's face.
        targets = {one for one in targets & names if not any(other.startswith(f"{one}.") for other in targets & names)}
        found[dotted(path)] = targets - {dotted(path), "minivit"}
    return found


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    todo = list(imports()[module])
    while todo:
        if (one := todo.pop()) not in seen:
            seen.add(one)
            todo += imports()[one]
    return seen


def test_no_file_imports_itself_in_a_circle():
    circles = sorted(module for module in imports() if module in reachable(module))
    assert not circles


FREE = {"minivit", "minivit.__main__"}


@pytest.mark.parametrize("module", sorted(set(map(dotted, modules())) - FREE))
def test_imports_go_down_the_floors(module: str):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert room(module) in floor, f"{module} has no place in the design"
    others = {one for one in imports()[module] if room(one) != room(module)}
    wrong = sorted(one for one in others if floor[room(one)] >= floor[room(module)])
    assert not wrong, f"{module} may not import {wrong}"


def test_no_command_imports_a_command():
    for module, targets in imports().items():
        if module.startswith("minivit.cli.") and module.count(".") == 3:
            wrong = [
                one for one in targets if one.startswith("minivit.cli.") and not one.startswith("minivit.cli.shared")
            ]
            assert not wrong, f"{module} imports {wrong}"


def test_every_folder_has_a_readme():
    bare = sorted({str(path.parent) for path in modules() if not (path.parent / "README.md").exists()} - {str(PACKAGE)})
    assert not bare


def test_the_root_of_the_package_is_bare():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


def test_a_folder_holds_about_ten_files():
    for folder in {path.parent for path in modules()}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 12, f"{folder} holds {len(files)} files"


def test_no_package_gives_a_function_the_name_of_its_module():
    for package in {dotted(path.parent / "__init__.py") for path in modules()} - {"minivit.cli"}:
        inside = {one.rpartition(".")[2] for one in imports() if one.rpartition(".")[0] == package}
        taken = {name for name in inside if not inspect.ismodule(getattr(import_module(package), name, inspect))}
        assert not taken, f"{package} hides its own {sorted(taken)}"


def test_no_drawers_and_no_prints_outside_the_command_line():
    for path in modules():
        assert path.stem not in {"utils", "util", "helpers", "misc"}, path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
        assert not printing or room(dotted(path)) == "cli", f"{path} prints"


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
    "images/formats.py": {"pillow_heif"},
    "inference/ray_engine.py": {"ray"},
    "parity/libraries.py": {"transformers", "timm", "torchvision"},
    "inference/parquet.py": {"pyarrow"},
    "model/tokenizer.py": {"tokenizers"},
    "viz/style.py": {"matplotlib"},
}


def test_classify_imports_only_the_packages_of_the_run_time():
    """What the package may import: the dependencies in pyproject.toml, and those of an extra in one file."""
    needed = {"torch", "safetensors", "numpy", "PIL", "huggingface_hub", "tqdm"}  # NumPy: safetensors[torch]
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else names
            roots = {name.split(".")[0] for name in names} - {"minivit", *sys.stdlib_module_names}
            allowed = needed | EXTRAS.get(path.relative_to(PACKAGE).as_posix(), set())
            assert roots <= allowed, f"{path}: {roots - allowed}"


def test_every_public_thing_has_a_docstring():
    for path in modules():
        name = dotted(path)
        if name.endswith("__main__"):
            continue
        module = import_module(name)
        assert module.__doc__, name
        for key, value in vars(module).items():
            if key.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__qualname__ == key:
                documented = value.__doc__ or key in {"add_parser", "run"} or key.startswith("write_")
                assert documented, f"{name}.{key} has no docstring"
