"""minivit bench list and new: the kernels that minivit provides, and kernel files to start from."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from minivit.cli.shared.command import command, option
from minivit.cli.shared.console import say
from minivit.errors import UsageError


@command(
    "list",
    help="list PyTorch's attentions and the wrong kernels of the self-test",
    description="List the baselines (PyTorch's own attentions, and whether they run here), and the wrong kernels of "
    "the self-test with the checks that must refuse them.",
    options=[],
)
def list_kernels(args: argparse.Namespace) -> int:
    """Print the baselines and the mutants."""
    import torch

    from minivit.bench.checks.cases import Spec
    from minivit.bench.checks.mutants import MUTANTS
    from minivit.bench.kernels import BASELINES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = Spec(batch=1, heads=3, tokens=197, head_dim=64, dtype=torch.float16, layout="packed", device=device)
    print(f"baselines, on {device}")
    for name, baseline in BASELINES.items():
        supported = baseline.supports(spec)
        print(f"  {name:<16}{baseline.about}" + ("" if supported is True else f"  (not here: {supported})"))
    print("\nwrong on purpose, and what must refuse them")
    for name, mutant in MUTANTS.items():
        print(f"  mutant:{name:<25}{', '.join(mutant.refused_by)}")
    return 0


@command(
    "new",
    help="write a commented kernel file to start from",
    description="Write a kernel file to start from.",
    options=[
        option("form", choices=("python", "cpp", "triton"), help="the language of the kernel"),
        option("name", metavar="NAME", help="the file becomes NAME.py; cpp writes NAME.cpp beside it"),
    ],
)
def new(args: argparse.Namespace) -> int:
    """Write the files of a template; never overwrite a file."""
    name = args.name.removesuffix(".py")
    templates = files("minivit.bench") / "templates"
    targets = {Path(f"{name}.py"): templates / f"{args.form}.py.txt"}
    if args.form == "cpp":
        targets[Path(f"{name}.cpp")] = templates / "cpp.cpp"
    for target in targets:
        if target.exists():
            raise UsageError(f"{target}: exists already and is left alone; choose another name")
        if not target.parent.is_dir():
            raise UsageError(f"{target}: no folder {target.parent}; create it first")
    for target, template in targets.items():
        try:
            target.write_text(template.read_text())
        except OSError as error:
            raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
        print(target)
    say(f"check it with: minivit bench check {name}.py --quick")
    return 0
