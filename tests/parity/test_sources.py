"""Models that are known by name, the labels and the preprocessing that come with them, and the commands about them."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.references import CASES, pixels_of, run_reference
from PIL import Image
from safetensors.torch import load_file, save_file

import minivit
from minivit.cli import main
from minivit.errors import CheckpointError, ModelUnavailableError, UsageError
from minivit.images.spec import ImageSpec
from minivit.weights import files
from minivit.weights.catalog import CATALOG
from minivit.weights.families.labels import imagenet_labels
from minivit.weights.families.registry import FAMILIES
from minivit.weights.families.torchvision import models as torchvision_models
from minivit.weights.preprocessing import read_image_spec
from minivit.weights.writer import convert_files

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def made(id: str, folder: Path):
    return next(case for case in CASES if case.id == id).make(folder)


# --- labels ---------------------------------------------------------------------------------------------------


def test_labels_are_torchvisions():
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    labels = imagenet_labels()
    assert list(labels) == list(range(1000))
    assert list(labels.values()) == _IMAGENET_CATEGORIES
    assert len(set(labels.values())) == 1000


def test_labels_agree_with_timms_synsets():
    from timm.data import ImageNetInfo

    described = ImageNetInfo()
    labels = imagenet_labels()
    for index, name in labels.items():
        synonyms = [word.strip() for word in described.index_to_description(index).split(",")]
        # Two synsets share their first word with another's; torchvision tells them apart.
        assert name in synonyms or name in ("crane bird", "maillot tank suit"), (index, name, synonyms)


def test_labels_agree_with_the_published_list(shared):
    published = (shared / "imagenet_classes.txt").read_text().splitlines()
    different = [i for i, name in imagenet_labels().items() if published[i] != name]
    assert len(published) == 1000
    assert different in ([], [134, 639])


# --- torchvision ----------------------------------------------------------------------------------------------


def test_every_torchvision_enum_is_listed_with_its_own_preset():
    import torchvision.models as models

    listed = {}
    for name, weights in torchvision_models.WEIGHTS.items():
        enum = models.get_model_weights(name)
        assert {entry.name for entry in enum} == set(weights)
        assert enum.DEFAULT.name == next(iter(weights))
        for entry in enum:
            file, size, edge, resample = weights[entry.name]
            preset = entry.transforms()
            assert entry.url == torchvision_models.URL + file
            assert (preset.crop_size, preset.resize_size) == ([size], [edge])
            assert preset.interpolation.value == {2: "bilinear", 3: "bicubic"}[resample]
            assert (preset.mean, preset.std) == IMAGENET
            assert entry.meta["min_size"] == (size, size)
            config, preprocessor, _ = torchvision_models.named(f"{name}.{entry.name}")
            source = files.Source(name=name, revision=None, config=config, preprocessor=preprocessor, shards=())
            from minivit.weights.configs import read_config

            read, _ = read_config(source, FAMILIES[config["model_type"]], dict.fromkeys(map(str, range(99)), ()))
            listed[entry.name] = read
            parameters = sum(p.numel() for p in _on_meta(read).parameters())
            assert parameters == entry.meta["num_params"], (name, entry.name)
    assert len(listed) == 3


def _on_meta(config):
    from minivit.weights.convert import MODELS

    with torch.device("meta"):
        return MODELS[type(config)](config)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A small "vit_b_16" on 127.0.0.1 in the place of torchvision's server, and an empty download folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    reference = made("torchvision-old-names", folder)
    digest = hashlib.sha256((folder / "model.pth").read_bytes()).hexdigest()[:8]
    shutil.move(folder / "model.pth", folder / f"vit_b_16-{digest}.pth")
    sizes = {"patch_size": 8, "hidden_size": 91, "num_hidden_layers": 3, "num_attention_heads": 7}
    sizes["intermediate_size"] = 101  # no multiple of the width, as torchvision's are
    monkeypatch.setitem(torchvision_models.SIZES, "vit_b_16", sizes)
    entry = {"IMAGENET1K_V1": (f"vit_b_16-{digest}.pth", 40, 47, 2)}
    monkeypatch.setitem(torchvision_models.WEIGHTS, "vit_b_16", entry)
    monkeypatch.setattr(torchvision_models, "imagenet_labels", lambda: {i: f"thing {i}" for i in range(11)})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(torchvision_models, "URL", f"http://127.0.0.1:{http.server_port}/")
    yield reference, folder, entry
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_torchvision_name_is_downloaded_once_checked_and_complete(server, tmp_path):
    reference, folder, entry = server
    model = minivit.load("torchvision/vit_b_16", dtype=torch.float64)
    assert model.labels == {i: f"thing {i}" for i in range(11)}
    means, deviations = map(tuple, IMAGENET)
    assert model.image_spec == ImageSpec(
        resize=47, crop=(40, 40), resample="bilinear", crop_rounding="even", mean=means, std=deviations
    )
    pixels = pixels_of((40, 40))
    with torch.no_grad():
        logits = model(pixels)
    assert (logits - run_reference(reference, pixels, torch.float64)["logits"]).abs().max() <= 1e-9
    kept = tmp_path / "home" / "hub" / "checkpoints" / entry["IMAGENET1K_V1"][0]
    assert kept.is_file()
    # The second time the server is not asked.
    shutil.rmtree(folder)
    minivit.load("torchvision/vit_b_16.IMAGENET1K_V1")


def test_a_download_with_another_digest_is_refused_and_not_kept(server, tmp_path):
    _, folder, entry = server
    (folder / entry["IMAGENET1K_V1"][0]).write_bytes(b"something else")
    with pytest.raises(ModelUnavailableError, match="invalid hash value"):
        minivit.load("torchvision/vit_b_16")
    assert not list((tmp_path / "home").rglob("*.pth"))


def test_a_torchvision_name_offline_says_what_to_fetch(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=r"HF_HUB_OFFLINE is set; fetch http://127\.0\.0\.1"):
        minivit.load("torchvision/vit_b_16")


@pytest.mark.parametrize(
    "name, said",
    [
        ("torchvision/vit_x_9", "known are vit_b_16, vit_b_32"),
        ("torchvision/vit_l_32.IMAGENET1K_SWAG_E2E_V1", "known are IMAGENET1K_V1"),
    ],
)
def test_an_unknown_torchvision_name_lists_the_known(name, said):
    with pytest.raises(UsageError, match=said):
        minivit.load(name)


# --- files without config.json --------------------------------------------------------------------------------


def test_a_local_file_of_torchvision_needs_the_name(server, tmp_path):
    reference, folder, entry = server
    (folder / "config.json").unlink()
    path = folder / entry["IMAGENET1K_V1"][0]
    with pytest.raises(CheckpointError, match=r"config\.json: missing.*name the family: torchvision/MODEL"):
        minivit.load(path)
    model = minivit.load(path, family="torchvision/vit_b_16", dtype=torch.float64)
    pixels = pixels_of((40, 40))
    with torch.no_grad():
        assert (model(pixels) - run_reference(reference, pixels, torch.float64)["logits"]).abs().max() <= 1e-9
    assert model.image_spec.crop == (40, 40)


def test_a_local_file_of_timm_needs_the_name(tmp_path):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=11).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    model = minivit.load(tmp_path / "weights.safetensors", family="timm/test_vit.r160_in1k")
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), theirs(pixels), rtol=0, atol=1e-5)
    assert model.labels is None
    assert model.image_spec is None


def test_an_unknown_family_lists_the_known(tmp_path):
    made("vit-classifier", tmp_path)
    with pytest.raises(UsageError, match="no family 'resnet'; known are clip, clip_vision_model, deit"):
        minivit.load(tmp_path, family="resnet")


def test_facebooks_files_bring_the_transform_of_their_evaluation(tmp_path):
    reference = made("facebook-dinov2", tmp_path)
    spec = minivit.load(reference.path, family="facebook").image_spec
    assert (spec.resize, spec.crop, spec.resample) == (256, (224, 224), "bicubic")


def test_timms_labels(tmp_path):
    from minivit.weights.configs import read_labels

    def labels(classes, **config):
        source = files.Source(name="x", revision=None, config=config, preprocessor=None, shards=())
        return read_labels(source, FAMILIES["timm"], classes)

    assert labels(1000, architecture="vit_tiny_patch16_224")[207] == "golden retriever"
    assert labels(21841, architecture="vit_tiny_patch16_224") is None
    named = {"label_names": ["n1", "n2"], "label_descriptions": {"n2": "a thing"}}
    assert labels(2, architecture="vit_tiny_patch16_224", **named) == {0: "n1", 1: "a thing"}
    with pytest.raises(CheckpointError, match="0 to 2"):
        labels(3, architecture="vit_tiny_patch16_224", **named)


def test_quickgelu_names_of_timm_use_the_repository_of_the_exact_ones(monkeypatch):
    asked = []

    def found(repo, revision):
        asked.append(repo)
        config = {"architecture": "vit_base_patch16_clip_224"}
        return files.Source(name=repo, revision="abc", config=config, preprocessor=None, shards=())

    monkeypatch.setattr(files, "_find_on_hub", found)
    source = files.find("timm/vit_base_patch16_clip_quickgelu_224.openai")
    assert asked == ["timm/vit_base_patch16_clip_224.openai"]
    assert source.config["architecture"] == "vit_base_patch16_clip_quickgelu_224"
    assert source.name == "timm/vit_base_patch16_clip_quickgelu_224.openai"
    assert source.revision == "abc"


# --- preprocessing --------------------------------------------------------------------------------------------


def pictures(seed: int = 3) -> list[Image.Image]:
    """Generated pictures of odd and even sizes, wide and tall, smooth and noisy."""
    rng = np.random.default_rng(seed)
    result = []
    for height, width in [(61, 97), (97, 61), (50, 50), (40, 41), (131, 64), (47, 300)]:
        noise = rng.integers(0, 256, (height, width, 3))
        ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
        result.append(Image.fromarray(((noise + ramp) / 2).astype(np.uint8)))
    return result


PROCESSED = [
    ("ViTImageProcessorPil", {"size": {"height": 40, "width": 48}}),
    ("DeiTImageProcessorPil", {"size": {"height": 47, "width": 47}, "crop_size": {"height": 40, "width": 40}}),
    ("BitImageProcessorPil", {"size": {"shortest_edge": 47}, "crop_size": {"height": 40, "width": 40}}),
    ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}),
    ("SiglipImageProcessorPil", {"size": {"height": 40, "width": 40}}),
    ("DINOv3ViTImageProcessor", {"size": {"height": 40, "width": 48}}),
    ("DINOv3ViTImageProcessor", {"size": {"height": 70, "width": 64}, "resample": 3}),
]


@pytest.mark.parametrize("kind, changes", PROCESSED, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(PROCESSED)])
def test_pixels_equal_transformers(kind, changes, request):
    import transformers

    processor = getattr(transformers, kind)(**changes)
    spec = read_image_spec(json.loads(processor.to_json_string()), kind)
    for picture in all_pictures(request):
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(minivit.preprocess(picture, spec), theirs)


def all_pictures(request) -> list[Image.Image]:
    photos = request.getfixturevalue("photos") if _shared_is_here() else []
    return pictures() + [Image.open(path).convert("RGB") for path in photos[:12]]


def _shared_is_here() -> bool:
    from conftest import SHARED

    return SHARED.is_dir()


@pytest.mark.parametrize("kind", ["DeiT", "Bit", "CLIP", "Siglip", "DINOv3ViT"])
def test_a_processor_without_values_has_transformers_defaults(kind):
    import transformers

    name = f"{kind}ImageProcessor" + ("" if kind == "DINOv3ViT" else "Pil")
    processor = getattr(transformers, name)()
    full = read_image_spec(json.loads(processor.to_json_string()), name)
    assert read_image_spec({"image_processor_type": f"{kind}ImageProcessor"}, name) == full


@pytest.mark.parametrize("model, enum", [("vit_b_16", "IMAGENET1K_V1"), ("vit_l_16", "IMAGENET1K_V1")])
@pytest.mark.parametrize("interpolation", ["as published", "bicubic"])
def test_pixels_equal_torchvisions_preset(model, enum, interpolation, request):
    import torchvision.models as models
    from torchvision.transforms import InterpolationMode

    preset = models.get_model_weights(model)[enum].transforms()
    _, preprocessor, _ = torchvision_models.named(f"{model}.{enum}")
    if interpolation == "bicubic":
        preset.interpolation, preprocessor["resample"] = InterpolationMode.BICUBIC, 3
    spec = read_image_spec(preprocessor, model)
    for picture in all_pictures(request):
        assert torch.equal(minivit.preprocess(picture, spec), preset(picture))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 0.95, "interpolation": "bilinear"},
        {"crop_pct": 1.0, "crop_mode": "squash"},
        {"crop_mode": "squash", "input_size": [3, 40, 48], "interpolation": "lanczos"},
        {"crop_pct": 0.875, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    ],
)
def test_pixels_equal_timms_transform(changes, request):
    from timm.data import create_transform, resolve_data_config

    from minivit.weights.families.timm import shared

    pretrained = {"input_size": [3, 40, 40], "crop_pct": 0.9, "interpolation": "bicubic", **changes}
    transform = create_transform(**resolve_data_config(pretrained_cfg=pretrained), is_training=False)
    spec = read_image_spec(shared.transform(pretrained, *pretrained["input_size"][1:]), "timm")
    for picture in all_pictures(request):
        assert torch.equal(minivit.preprocess(picture, spec), transform(picture))


@pytest.mark.parametrize("changes", [{"crop_mode": "border"}, {"interpolation": "random"}])
def test_a_timm_transform_that_cannot_be_honoured_is_refused(changes):
    from minivit.weights.families.timm.shared import transform

    with pytest.raises(CheckpointError, match="known are center"):
        transform(changes, 40, 40)


# --- commands -------------------------------------------------------------------------------------------------


def test_models_lists_every_family_with_sources(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    # Not published by themselves: an image tower taken out of a pair, another layout of CLIP's weights, and a
    # classifier that people fine-tune on a tower.
    asked_for = {"clip_vision_model", "siglip_vision_model", "open_clip", "siglip_classifier"}
    assert {row["family"] for row in rows} == set(FAMILIES) - asked_for
    assert all(row["source"] and row["licence"] and row["image_size"] for row in rows)
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CATALOG) + 1
    assert lines[0].startswith("family")
    assert "81.072" in "".join(lines)


def test_models_names_only_what_can_be_resolved():
    from minivit.weights.families.timm.architectures import ARCHITECTURES

    for row in CATALOG:
        owner, _, name = row.id.partition("/")
        if owner == "torchvision":
            config, _, _ = torchvision_models.named(name)
            assert config["image_size"] == row.image_size
        elif row.family == "timm":
            assert name.partition(".")[0] in ARCHITECTURES


def test_models_top1_is_torchvisions_own():
    import torchvision.models as models

    for row in CATALOG:
        if row.family == "torchvision":
            name, _, enum = row.id.partition("/")[2].partition(".")
            weights = models.get_model_weights(name)
            entry = weights[enum] if enum else weights.DEFAULT
            assert entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] == row.top1


def test_verify_proves_a_checkpoint_and_reads_no_weight(tmp_path, capsys, monkeypatch):
    reference = made("vit-classifier", tmp_path)
    # NaN everywhere: load would refuse it, verify does not look.
    poisoned = {name: torch.full_like(t, torch.nan) for name, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(poisoned, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(reference.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["good"]
    assert facts["family"] == "vit"
    assert facts["dtypes"] == ["F32"]
    assert facts["head"] == {"outputs": 11, "labels": 0}
    assert facts["preprocessing"]["from"] == "found"
    assert facts["tensors"] == {"in file": 56, "used": 56, "dropped": 0}
    assert main(["verify", str(reference.path)]) == 0
    assert "good" in capsys.readouterr().out


def test_verify_falls_short_with_every_fault(tmp_path, capsys):
    made("clip_vision_model-out-of-both", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["vision_model.pre_layernorm.weight"] = tensors.pop("vision_model.pre_layrnorm.weight")
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].T.contiguous()
    tensors["vision_model.post_layernorm.bias"] = tensors["vision_model.post_layernorm.bias"].to(torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(tmp_path), "--family", "clip_vision_model", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["missing"] == ["pre_layrnorm.weight"]
    assert facts["unexpected"] == ["vision_model.pre_layernorm.weight"]
    assert facts["mismatched"] == [
        "vision_model.post_layernorm.bias is U8, expected F64/F32/F16/BF16",
        "visual_projection.weight is [91, 53], expected [53, 91]",
    ]
    assert facts["tensors"]["dropped"] > 20
    assert main(["verify", str(tmp_path), "--family", "clip_vision_model"]) == 1
    out = capsys.readouterr().out
    assert "faulty" in out
    assert "pre_layernorm.weight" in out


def test_verify_of_labels_that_do_not_fit_the_head(tmp_path, capsys):
    made("vit-classifier", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"thing {i}" for i in range(1, 12)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(tmp_path)]) == 1
    assert "id2label keys that are not 0 to 10" in capsys.readouterr().err


def test_verify_of_nothing_is_another_matter(tmp_path):
    assert main(["verify", str(tmp_path)]) == 1
    assert main(["verify", str(tmp_path / "gone")]) == 4


def test_verify_says_where_preprocessing_is_assumed(tmp_path, capsys):
    reference = made("jax-npz", tmp_path)
    assert main(["verify", str(reference.path), "--family", "jax", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["preprocessing"]["from"] == "assumed"
    assert "40 x 40" in facts["preprocessing"]["steps"]


def test_convert_writes_what_transformers_loads(tmp_path, capsys):
    import transformers

    reference = made("jax-npz", tmp_path)
    assert main(["convert", str(reference.path), str(tmp_path / "out"), "--family", "jax"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out", dtype=torch.float64)
    pixels = pixels_of((40, 40))
    expected = run_reference(reference, pixels, torch.float64)["logits"]
    with torch.no_grad():
        assert (theirs.eval()(pixel_values=pixels).logits - expected).abs().max() <= 1e-9
    processor = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    spec = minivit.load(tmp_path / "out").image_spec
    picture = pictures()[0]
    theirs_pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(theirs_pixels, minivit.preprocess(picture, spec))


def test_convert_files_returns_what_it_wrote(tmp_path):
    made("jax-npz", tmp_path)
    done = convert_files(tmp_path / "model.npz", tmp_path / "out", dtype=torch.float64, family="jax")
    assert (done.folder, done.dtype) == (tmp_path / "out", torch.float64)
    assert done.preprocessing
    assert not done.moved_crop
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float64}
    with pytest.raises(UsageError, match="holds SRC itself"):
        convert_files(tmp_path / "model.npz", tmp_path, family="jax")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file; DST is a folder"):
        convert_files(tmp_path / "model.npz", tmp_path / "file", family="jax")


def npz_of(folder: Path, edit) -> Path:
    """A small .npz of JAX with its arrays edited."""
    made("jax-npz", folder)
    with np.load(folder / "model.npz") as arrays:
        changed = dict(arrays)
    edit(changed)
    np.savez(folder / "model.npz", **changed)
    return folder / "model.npz"


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_a_npz_in_any_order_of_memory_and_in_bfloat16_loads(write, tmp_path):
    def as_bfloat16(array: np.ndarray) -> np.ndarray:
        # As ml_dtypes writes it: two bytes without a type.
        return torch.from_numpy(array).bfloat16().view(torch.uint16).numpy().view("V2")

    made("jax-npz", tmp_path)
    whole = minivit.load(tmp_path / "model.npz", family="jax")
    with np.load(tmp_path / "model.npz") as arrays:
        write(tmp_path / "model.npz", **{name: np.asfortranarray(array) for name, array in arrays.items()})
    for name, tensor in minivit.load(tmp_path / "model.npz", family="jax").state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    with np.load(tmp_path / "model.npz") as arrays:
        write(tmp_path / "model.npz", **{name: as_bfloat16(array) for name, array in arrays.items()})
    for name, tensor in minivit.load(tmp_path / "model.npz", family="jax").state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name].bfloat16().float()), name
    assert minivit.weights.describe(tmp_path / "model.npz", family="jax")["weights"]["dtypes"] == ["BF16"]


@pytest.mark.parametrize(
    "dtype, said", [(">f4", "cls is >f4, expected"), ("O", r"cls is \|O, expected"), ("i8", "cls is <i8, expected")]
)
def test_a_npz_with_other_numbers_is_refused(dtype, said, tmp_path):
    path = npz_of(tmp_path, lambda arrays: arrays.update(cls=arrays["cls"].astype(dtype)))
    with pytest.raises(CheckpointError, match=said) as caught:
        minivit.load(path, family="jax")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:300], lambda data: data[:-9], lambda data: b"\x93NUMPY" + data[6:]],
    ids=["empty", "300 bytes", "without its end", "magic of .npy"],
)
def test_a_damaged_npz_is_refused_in_one_line(damage, tmp_path):
    made("jax-npz", tmp_path)
    path = tmp_path / "model.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"not readable as a \.npz") as caught:
        minivit.load(path, family="jax")
    assert "\n" not in str(caught.value)


def test_a_byte_of_a_npz_that_changed_is_found(tmp_path):
    made("jax-npz", tmp_path)
    path = tmp_path / "model.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the file is damaged|not readable as a \.npz") as caught:
        minivit.load(path, family="jax")
    assert "\n" not in str(caught.value)


def test_convert_keeps_the_dtype_of_the_file(tmp_path):
    made("deit-distilled", tmp_path)
    tensors = {name: t.bfloat16() for name, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(tensors)
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_convert_refuses_what_has_no_place_and_its_own_source(tmp_path, capsys):
    made("dinov3_vit-registers", tmp_path)
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "none of transformers' layouts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(tmp_path), str(tmp_path)]) == 2
    assert main(["convert", str(tmp_path), str(tmp_path / "config.json")]) == 2
    assert main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path)]) == 2


def test_info_describes_every_kind_of_model(tmp_path, capsys):
    for id in (
        "clip_vision_model-vision-with-projection",
        "siglip_vision_model-vision",
        "deit-distilled",
        "dinov2-giant-swiglu",
    ):
        folder = tmp_path / id
        folder.mkdir()
        made(id, folder)
        assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    for word in ("projection to 53", "attention pool", "distillation token", "gated, silu", "variable input size"):
        assert word in out


# --- pictures through the whole way ---------------------------------------------------------------------------


def test_embed_offers_what_each_model_has(tmp_path):
    folders = {id: tmp_path / id for id in ("clip_vision_model-vision-with-projection", "siglip_vision_model-vision")}
    for id, folder in folders.items():
        folder.mkdir()
        made(id, folder)
    picture = pictures()[0]
    clip = minivit.load(folders["clip_vision_model-vision-with-projection"])
    assert minivit.embed(picture, model=clip, pool="projection").shape == (1, 53)
    assert minivit.embed(picture, model=clip, pool="cls").shape == (1, 91)
    siglip = minivit.load(folders["siglip_vision_model-vision"])
    assert minivit.embed(picture, model=siglip, pool="pooler").shape == (1, 91)
    with pytest.raises(UsageError, match="use pool mean, pooler, tokens"):
        minivit.embed(picture, model=siglip, pool="cls")


def test_a_model_for_any_size_reads_its_preprocessed_pictures(tmp_path):
    import transformers

    reference = made("dinov2-1-layer", tmp_path)  # positions for 56 x 56, pictures of 40 x 40
    model = minivit.load(reference.path)
    picture = pictures()[1]
    processor = transformers.BitImageProcessorPil.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = reference.model(**processor(picture, return_tensors="pt")).logits
    best = minivit.classify(picture, model=model, top_k=1)[0][0]
    assert best.index == int(logits.argmax())
    assert best.score == pytest.approx(float(logits.double().softmax(-1).max()), abs=1e-5)
