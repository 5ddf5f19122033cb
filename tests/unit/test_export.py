"""PyTorch's own tools on our models: torch.export, torch.compile and both exporters to ONNX keep a free batch size."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.export import Dim, export

from minivit import ViT, ViTConfig
from minivit.model.config import SwinConfig
from minivit.model.swin import Swin

SIZES = {"image_size": (24, 40), "patch_size": 8, "width": 24, "depth": 2, "heads": 2, "mlp_width": 14, "classes": 5}
KINDS = {
    "plain": {},
    "registers and rotary positions": {"positions": "rope", "registers": 2},
    "any size": {"any_size": True, "registers": 2},
    "attention pool": {"pooling": "map", "cls_token": False},
    "pixels that fill no patch": {"image_size": (27, 43), "drop_rest": True},
    "distilled": {"pooling": "cls&dist", "dist_token": True},
    "no head": {"classes": 0, "norm": "pooled", "pooling": "mean"},
}
BATCHES = (1, 3, 7)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(kind: str) -> ViT | Swin:
    torch.manual_seed(3)
    if kind == "Swin":
        config = SwinConfig(image_size=(16, 24), width=8, depths=(1, 1), heads=(2, 4), window=(2, 2), classes=3)
        return Swin(config).eval()
    model = ViT(ViTConfig(**{**SIZES, **KINDS[kind]})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def pixels(model, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, *model.config.image_size, generator=generator)


@pytest.mark.parametrize("kind", [*KINDS, "Swin"])
@pytest.mark.parametrize("free", ["name", "auto"])
def test_an_exported_program_answers_as_the_model_for_every_batch_size(kind, free):
    model = build(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own tools
        program = export(model, (pixels(model, 2),), dynamic_shapes=({0: Dim("B") if free == "name" else Dim.AUTO},))
    for batch in BATCHES:
        torch.testing.assert_close(program.module()(pixels(model, batch)), model(pixels(model, batch)), **CLOSE)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_compiles_as_one_graph_that_serves_every_batch_size(kind):
    model = build(kind)
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counted, fullgraph=True, dynamic=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in (2, 3, 7):
            torch.testing.assert_close(compiled(pixels(model, batch)), model(pixels(model, batch)), **CLOSE)
    torch._dynamo.reset()
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", ["plain", "attention pool", "distilled"])
def test_the_exporter_by_torchscript_keeps_a_free_batch_size(kind, tmp_path):
    onnx(dynamo=False)
    model = build(kind)
    axes = {"pixels": {0: "batch"}, "logits": {0: "batch"}}
    check_onnx(model, tmp_path, dynamo=False, dynamic_axes=axes)


@pytest.mark.slow
@pytest.mark.parametrize("free", ["Dim", "auto", "batch"])
def test_the_exporter_by_torch_export_keeps_a_free_batch_size(free, tmp_path):
    onnx(dynamo=True)
    batch = {"Dim": Dim("B"), "auto": Dim.AUTO, "batch": "batch"}[free]
    check_onnx(build("plain"), tmp_path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)


def onnx(*, dynamo: bool) -> None:
    """Skip where a package is missing."""
    for package in ("onnx", "onnxruntime", *(["onnxscript"] if dynamo else [])):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'minivit[test]')")


def check_onnx(model, folder, **settings) -> None:
    """Export a model, and compare onnxruntime's answers with the model's."""
    onnxruntime = pytest.importorskip("onnxruntime")

    file = str(folder / "model.onnx")
    names = {"input_names": ["pixels"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels(model, 2),), file, **names, **settings)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        (answer,) = session.run(None, {"pixels": pixels(model, batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), model(pixels(model, batch)).detach(), **CLOSE)
