"""Two towers: texts as ids, embeddings and logits as transformers has them, labels as classes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.towers import write_clip, write_siglip
from PIL import Image

import minivit
from minivit import CheckpointError, ShapeError, UsageError
from minivit.cli import main
from minivit.model.attention import attend_causal, attend_reference
from minivit.model.clip import CLIP
from minivit.model.text import TextTower
from minivit.model.vit import ViT
from minivit.weights import describe, verify

HARD = [
    "a photo of a dog",
    "",
    "   ",
    "A  PHOTO\tof\nTwo CATS!",
    "café naïve élan",
    "cafe\u0301 nai\u0308ve e\u0301lan",  # the same accents as marks of their own
    "🐶 on grass 👩‍👩‍👧‍👦",
    "it's they're 2021: $%&/()=",
    "北京 の犬 Ωμέγα",
    "<|startoftext|> a dog <|endoftext|> a cat",
    "</s> a dog <pad>",
    "\u200bzero\u00a0width",
    "word" * 90,
    "a photo of the two small dogs on grass " * 20,
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    return path, *write_clip(path)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    path = tmp_path_factory.mktemp("siglip")
    return path, *write_siglip(path)


@pytest.fixture
def pair(request, clip, siglip):
    return {"clip": clip, "siglip": siglip}[request.param]


both = pytest.mark.parametrize("pair", ["clip", "siglip"], indirect=True)


# --- ids


def test_ids_equal_transformers_on_hard_texts(clip):
    path, _, tokenizer = clip
    model = minivit.load(path)
    theirs = tokenizer(HARD, padding=True, truncation=True, return_tensors="pt").input_ids
    ours = model.tokenize(HARD)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, theirs)
    assert ours.shape[1] == 77
    assert ours[-1, 0] == tokenizer.bos_token_id
    assert ours[-1, -1] == tokenizer.eos_token_id
    assert len({tuple(row) for row in ours.tolist()}) == len(HARD) - 2  # "" is "   ", and two spell accents alike
    for text in HARD:
        theirs = tokenizer([text], padding=True, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(model.tokenize([text]), theirs), text


def test_siglips_ids_fill_the_whole_context(siglip):
    path, _, tokenizer = siglip
    theirs = tokenizer(HARD, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ours = minivit.load(path).tokenize(HARD)
    assert ours.shape == (len(HARD), 64)
    assert torch.equal(ours, theirs)
    assert (ours[1] == 1).all()
    assert ours[-1, -1] == 1


def test_without_tokenizer_config_the_end_pads(clip, tmp_path):
    path, _, tokenizer = clip
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").unlink()
    ids = minivit.load(tmp_path).tokenize(["a dog", "a photo of a dog on grass"])
    assert ids[0, -1] == tokenizer.eos_token_id
    assert torch.equal(ids, minivit.load(path).tokenize(["a dog", "a photo of a dog on grass"]))


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("tokenizer.json", "{", "tokenizer.json: the tokenizers package cannot read it"),
        ("tokenizer_config.json", "[", "tokenizer_config.json: not readable as JSON"),
        ("tokenizer_config.json", '{"pad_token": "<none>"}', "the padding token '<none>' is not in"),
    ],
)
def test_a_damaged_tokenizer_is_named(clip, tmp_path, file, text, said):
    shutil.copytree(clip[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text(text)
    model = minivit.load(tmp_path)  # images alone do not need it
    with pytest.raises(CheckpointError, match=said) as raised:
        model.tokenize(["a dog"])
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_another_model_is_refused(clip, siglip, tmp_path):
    shutil.copytree(siglip[0], tmp_path, dirs_exist_ok=True)
    shutil.copy(clip[0] / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="has ids up to"):
        minivit.load(tmp_path).tokenize(["a dog"])


def test_no_tokenizer_and_no_package_say_so(clip, tmp_path, monkeypatch):
    shutil.copytree(clip[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        minivit.load(tmp_path).zero_shot(["a dog"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = minivit.load(clip[0])
    assert model(torch.zeros(1, 3, 40, 40), torch.tensor([[5, model.config.text.end]])).shape == (1, 1)
    with pytest.raises(UsageError, match=r"pip install 'minivit\[clip\]'"):
        model.tokenize(["a dog"])


# --- the towers


@both
def test_embeddings_and_logits_of_texts_equal_transformers_in_float64(pair):
    path, theirs, tokenizer = pair
    model = minivit.load(path, dtype=torch.float64)
    padding = True if model.config.score == "softmax" else "max_length"
    ids = tokenizer(HARD, padding=padding, truncation=True, return_tensors="pt").input_ids
    pixels = torch.randn(3, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = theirs.double()
    with torch.no_grad():
        out = theirs(pixel_values=pixels, input_ids=ids)
        logits = model(pixels, model.tokenize(HARD))
        texts = model.embed_texts(HARD, batch_size=3)
    theirs.float()
    assert logits.shape == (3, len(HARD))
    assert (logits - out.logits_per_image).abs().max() <= 1e-9
    assert (texts - out.text_embeds).abs().max() <= 1e-9
    assert (F.normalize(model.encode_image(pixels), dim=-1) - out.image_embeds).abs().max() <= 1e-9


def test_config_json_decides_what_is_loaded(clip):
    path = clip[0]
    model, tower = minivit.load(path), minivit.load(path, family="clip_vision_model")
    assert isinstance(model, CLIP)
    assert isinstance(tower, ViT)
    assert isinstance(model.image, ViT)
    assert isinstance(model.text, TextTower)
    pixels = torch.randn(2, 3, 40, 40)
    assert torch.equal(tower(pixels), model.encode_image(pixels))
    assert tower.image_spec == model.image_spec
    assert model.name == tower.name == str(path)


def test_the_users_kernel_runs_where_there_is_no_mask(clip, siglip):
    calls = []

    def attend(q, k, v, *, scale):
        calls.append(tuple(q.shape))
        return attend_reference(q, k, v, scale=scale)

    masked = minivit.load(clip[0], attend=attend)
    assert all(block.attn.attend is attend for block in masked.image.blocks)
    assert all(block.attn.attend is attend_causal for block in masked.text.blocks)
    masked.encode_text(torch.tensor([[1, masked.config.text.end]]))
    assert not calls
    masked.encode_image(torch.zeros(1, 3, 40, 40))
    assert len(calls) == 2
    free = minivit.load(siglip[0], attend=attend)
    free.encode_text(torch.ones(1, 64, dtype=torch.int64))
    assert calls[2:] == [(1, 4, 64, 6)] * 2


def test_causal_attention_by_hand():
    # Two tokens, one head of one channel, all logits 0: the first sees itself, the second the mean of both.
    q = k = torch.zeros(1, 1, 2, 1)
    v = torch.tensor([[[[3.0], [7.0]]]])
    assert attend_causal(q, k, v, scale=1.0).flatten().tolist() == [3.0, 5.0]


def test_what_stands_behind_the_end_of_a_text_changes_nothing(clip):
    model = minivit.load(clip[0], dtype=torch.float64)
    end = model.config.text.end
    short = model.encode_text(torch.tensor([[4, 9, end]]))
    padded = model.encode_text(torch.tensor([[4, 9, end, end, 3, 0]]))
    assert (short - padded).abs().max() <= 1e-12
    assert (short - model.encode_text(torch.tensor([[4, 8, end]]))).abs().max() > 1e-3


def test_the_end_that_is_called_2_means_the_greatest_id(tmp_path):
    theirs, tokenizer = write_clip(tmp_path, end=2)
    model = minivit.load(tmp_path, dtype=torch.float64)
    assert model.config.text.pooling == "argmax"
    ids = tokenizer(["a dog", 'a " cat'], padding=True, return_tensors="pt").input_ids
    ids[0, 1] = 2  # the first token called 2 is no end
    with torch.no_grad():
        expected = theirs.double().get_text_features(input_ids=ids).pooler_output
        assert (model.encode_text(ids) - expected).abs().max() <= 1e-9
        # Planted fault: reading the first 2 instead gives another answer.
        tokens = model.text.features(ids)
        assert (model.text.proj(tokens[:1, 1]) - expected[:1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "ids, error, said",
    [
        (torch.zeros(1, 78, dtype=torch.int64), ShapeError, "T from 1 to 77"),
        (torch.zeros(5, dtype=torch.int64), ShapeError, r"expected \(B, T\)"),
        (torch.tensor([[1, 10**6]]), UsageError, "the vocabulary has 0 to"),
        (torch.tensor([[1, -1]]), UsageError, "ids go from -1 to 1"),
        (torch.tensor([[1, 2, 3]]), UsageError, "a text has no end token"),
    ],
)
def test_ids_the_tower_cannot_read_are_refused(clip, ids, error, said):
    with pytest.raises(error, match=said):
        minivit.load(clip[0]).encode_text(ids)


def test_towers_with_different_embedding_sizes_are_refused(siglip, tmp_path):
    shutil.copytree(siglip[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["projection_size"] = 41
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="image embeddings have size 42 and text embeddings 41"):
        minivit.load(tmp_path)


def test_old_files_that_say_a_tower_twice_are_read_as_transformers_does(clip, tmp_path):
    shutil.copytree(clip[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = config["text_config"]
    config["text_config"] = {**config["text_config"], "num_hidden_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert minivit.load(tmp_path).config.text.depth == 2


# --- labels as classes


@both
def test_a_label_is_a_class_and_templates_are_averaged_as_embeddings(pair):
    path, theirs, tokenizer = pair
    model = minivit.load(path, dtype=torch.float64)
    labels, templates = ["dog", "two cats", "café"], ["a photo of a {}", "{} on grass", "the {}, a painting of {}"]
    zero_shot = model.zero_shot(labels, templates)
    assert isinstance(zero_shot, ViT)
    assert zero_shot.labels == dict(enumerate(labels))
    pixels = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    theirs = theirs.double()
    rows = []
    with torch.no_grad():
        for label in labels:  # as the notebook of openai/CLIP does
            texts = [template.replace("{}", label) for template in templates]
            padding = True if model.config.score == "softmax" else "max_length"
            ids = tokenizer(texts, padding=padding, return_tensors="pt").input_ids
            embedded = theirs.get_text_features(input_ids=ids).pooler_output
            mean = (embedded / embedded.norm(dim=-1, keepdim=True)).mean(dim=0)
            rows.append(mean / mean.norm())
        images = theirs.get_image_features(pixel_values=pixels).pooler_output
        images = images / images.norm(dim=-1, keepdim=True)
        expected = images @ torch.stack(rows).T * theirs.logit_scale.exp()
        if model.config.score == "sigmoid":
            expected = expected + theirs.logit_bias
        assert (zero_shot(pixels) - expected).abs().max() <= 1e-9
    theirs.float()
    # One template, the label alone: the model's own logits.
    with torch.no_grad():
        assert (model.zero_shot(labels)(pixels) - model(pixels, model.tokenize(labels))).abs().max() <= 1e-12


def test_the_zero_shot_model_shares_the_weights_of_the_tower(clip):
    model = minivit.load(clip[0])
    zero_shot = model.zero_shot(["a dog", "a cat"])
    shared = dict(model.image.named_parameters())
    own = {
        name for name, p in zero_shot.named_parameters() if p.data_ptr() != shared.get(name, p.new_empty(1)).data_ptr()
    }
    assert own == {"head.weight", "head.logit_scale", "head.logit_bias"}
    assert model.image.config.classes == 0
    assert not hasattr(model.image.head, "weight")


@pytest.mark.parametrize(
    "labels, templates, said",
    [
        ([], ["{}"], "at least one"),
        ("dog", ["{}"], "give a list"),
        (["dog", "cat", "dog"], ["{}"], "'dog' is given more than once"),
        (["dog"], ["a photo"], "no {}"),
        (["dog"], [], "give a list of at least one"),
        (["dog"], "{}", "give a list of at least one"),
    ],
)
def test_labels_and_templates_that_make_no_classes(clip, labels, templates, said):
    with pytest.raises(UsageError, match=said):
        minivit.load(clip[0]).zero_shot(labels, templates)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((64, 48), 60).convert("RGB").save(path)
    return path


@both
def test_scores_are_softmax_or_of_siglip_sigmoid(pair, photo):
    zero_shot = minivit.load(pair[0]).zero_shot(["dog", "cat", "bird"])
    top = minivit.classify(photo, model=zero_shot)[0]
    with torch.no_grad():
        logits = zero_shot(minivit.preprocess(photo, zero_shot.image_spec)[None]).double()[0]
    expected = logits.sigmoid() if "siglip" in str(pair[0]) else logits.softmax(dim=0)
    assert [p.score for p in top] == sorted(expected.tolist(), reverse=True)
    assert {p.label for p in top} == {"dog", "cat", "bird"}


# --- the command line


def test_classify_with_labels(clip, photo, tmp_path, capsys):
    names = tmp_path / "labels.txt"
    names.write_text("\ufeffa café\n\n  a bird \n", encoding="utf-8")
    arguments = ["classify", str(photo), "--model", str(clip[0]), "--jsonl", "--labels", "a dog", "a cat"]
    assert main([*arguments, "--labels-file", str(names), "--template", "{}", "--template", "a photo of {}"]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = minivit.load(clip[0]).zero_shot(["a dog", "a cat", "a café", "a bird"], ["{}", "a photo of {}"])
    best = minivit.classify(photo, model=expected)[0]
    assert [(p["label"], p["index"], p["score"]) for p in record["top"]] == [(p.label, p.index, p.score) for p in best]
    assert record["schema"] == 1
    assert record["model"] == str(clip[0])


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        ([], 5, "cannot name what it sees; use embed, or where it has a text tower --labels"),
        (["--template", "a {}"], 2, "--template needs labels"),
        (["--labels-file", "/nowhere/labels.txt"], 2, "/nowhere/labels.txt: no text file to read"),
        (["--labels", "dog", "--template", "a photo"], 2, "template 'a photo' has no {}"),
        (["--labels", "dog", "dog"], 2, "'dog' is given more than once"),
    ],
)
def test_what_is_wrong_with_labels_is_one_line(clip, photo, capsys, arguments, code, said):
    assert main(["classify", str(photo), "--model", str(clip[0]), *arguments]) == code
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_labels_for_a_model_without_texts(photo, capsys):
    for model, said in [("minivit/cifar10-vit", "has no text tower"), ("auto", "texts need a model")]:
        assert main(["classify", str(photo), "--model", model, "--labels", "a dog"]) == 2
        assert said in capsys.readouterr().err


def test_images_alone_never_import_tokenizers(clip, photo):
    code = (
        "import sys, minivit.cli\n"
        f"code = minivit.cli.main(['attention', {str(photo)!r}, '--model', {str(clip[0])!r}, '-o', 'map.npy'])\n"
        "assert code == 0 and 'tokenizers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=photo.parent)
    assert done.returncode == 0, done.stderr


@both
def test_info_and_verify_know_both_towers(pair, capsys):
    path, theirs, _ = pair
    numbers = sum(parameter.numel() for parameter in theirs.parameters())
    assert describe(path)["parameters"] == numbers
    facts = verify(path)
    assert facts["good"]
    assert facts["family"] in ("clip", "siglip")
    assert facts["parameters"] == numbers
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "text tower" in out
    assert "2 blocks of width 24, 4 heads of 6" in out
    assert f"{numbers:,}" in out


@both
def test_both_towers_are_written_with_their_tokenizer_and_preprocessing(pair, photo, tmp_path, capsys):
    from transformers import AutoImageProcessor, AutoTokenizer

    path, theirs, _ = pair
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    again, found = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values())
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    model, written = minivit.load(path), minivit.load(tmp_path / "out")
    assert written.config == model.config
    assert written.image_spec == model.image_spec
    texts = ["a dog, on grass!", "Two CATS"]
    assert torch.equal(written.tokenize(texts), model.tokenize(texts))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    padded = {"padding": "max_length", "max_length": 64} if "siglip" in str(path) else {"padding": True}
    ids = tokenizer(texts, return_tensors="pt", **padded)["input_ids"]
    assert torch.equal(ids, model.tokenize(texts))
    processor = json.loads((path / "preprocessor_config.json").read_text())["image_processor_type"]
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["image_processor_type"] == processor
    assert (
        processor.removesuffix("ImageProcessor") in type(AutoImageProcessor.from_pretrained(tmp_path / "out")).__name__
    )
    model.tokenizer.canonical = True
    with pytest.raises(UsageError, match=r"punctuation and capitals .* set model\.tokenizer = None"):
        minivit.save(model, tmp_path / "bare")
    model.tokenizer = None
    minivit.save(model, tmp_path / "bare")
    assert not (tmp_path / "bare" / "tokenizer.json").exists()


# --- texts among vectors


@both
def test_a_text_finds_images_and_an_image_finds_texts(pair, photo, tmp_path, capsys):
    model = minivit.load(pair[0])
    pool = "projection" if model.config.score == "softmax" else "pooler"
    other = tmp_path / "other.png"
    Image.new("RGB", (50, 50), "red").save(other)
    options = ["--model", str(pair[0])]
    store, texts = tmp_path / "pictures.npy", tmp_path / "texts.safetensors"
    assert main(["embed", str(photo), str(other), "--pool", pool, "-o", str(store), *options]) == 0
    assert main(["embed", "--text", "two cats", "a dog on grass", "-o", str(texts), *options]) == 0
    capsys.readouterr()
    assert main(["similar", "a dog on grass", str(store), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "no file is called 'a dog on grass': taken as a text" in err
    pictures = F.normalize(minivit.embed([photo, other], model=model, pool=pool), dim=-1)
    cosines = (pictures @ model.embed_texts(["a dog on grass"])[0]).tolist()
    found = {record["path"]: record["cosine"] for record in json.loads(out)["found"]}
    assert found == pytest.approx({str(photo): cosines[0], str(other): cosines[1]}, abs=1e-5)
    assert main(["similar", str(photo), str(texts), "--json"]) == 0
    found = {record["path"]: record["cosine"] for record in json.loads(capsys.readouterr().out)["found"]}
    cosines = (model.embed_texts(["two cats", "a dog on grass"]) @ pictures[0]).tolist()
    assert found == pytest.approx({"two cats": cosines[0], "a dog on grass": cosines[1]}, abs=1e-5)


def test_a_missing_image_file_is_not_taken_as_a_text(clip, photo, tmp_path, capsys):
    store = tmp_path / "pictures.npy"
    assert main(["embed", str(photo), "--pool", "cls", "-o", str(store), "--model", str(clip[0])]) == 0
    capsys.readouterr()
    assert main(["similar", "dgo.jpg", str(store)]) == 3
    assert "dgo.jpg" in capsys.readouterr().err
    assert main(["similar", "a dog", str(store)]) == 2
    assert "written with --pool cls, which texts do not have; embed with --pool projection" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["PHOTO", "--text", "a dog"], "--text takes texts alone"),
        (["--text", "a dog", "--pool", "cls"], "--text takes texts alone"),
    ],
)
def test_texts_and_images_are_not_mixed(clip, photo, capsys, arguments, said):
    arguments = [str(photo) if part == "PHOTO" else part for part in arguments]
    assert main(["embed", *arguments, "--model", str(clip[0])]) == 2
    assert said in capsys.readouterr().err


def test_text_vectors_are_what_the_tower_makes(clip, capsys):
    model = minivit.load(clip[0])
    assert main(["embed", "--text", "a dog", "--model", str(clip[0])]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = model.encode_text(model.tokenize(["a dog"]))[0]
    assert record["path"] == "a dog"
    assert torch.allclose(torch.tensor(record["embedding"]), expected)
    assert main(["embed", "--text", "a dog", "--norm", "l2", "--model", str(clip[0])]) == 0
    record = json.loads(capsys.readouterr().out)
    assert torch.allclose(torch.tensor(record["embedding"]), F.normalize(expected, dim=0), atol=1e-6)


def test_the_zero_shot_model_has_a_fast_equal(clip):
    zero_shot = minivit.load(clip[0]).zero_shot(["a dog", "two cats", "a bird"])
    pixels = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert (minivit.optimize(zero_shot)(pixels) - zero_shot(pixels)).abs().max() <= 1e-4
    with pytest.raises(UsageError, match=r"model\.image"):
        minivit.optimize(minivit.load(clip[0]))


# --- looking for a text


@pytest.mark.parametrize("method", ["relevance", "legrad", "grad-rollout", "gradients", "integrated-gradients"])
@both
def test_a_text_is_the_class_of_a_map(pair, photo, tmp_path, method):
    out = tmp_path / "map.json"
    options = ["attention", str(photo), "--model", str(pair[0]), "-o", str(out), "--overwrite", "--method", method]
    assert main([*options, "--labels", "a dog", "two cats", "--class", "two cats"]) == 0
    record = json.loads(out.read_text())
    assert "two cats (1)" in record["title"]
    zero_shot = minivit.load(pair[0]).zero_shot(["a dog", "two cats"])
    pixels = minivit.preprocess(photo, zero_shot.image_spec)[None]
    functions = {"gradients": "input_gradients"}
    found = getattr(minivit.study, functions.get(method, method.replace("-", "_")))(zero_shot, pixels, target=1)
    if "gradients" in method:
        found = minivit.study.per_patch(found, zero_shot.config.layout)
    assert torch.allclose(torch.tensor(record["map"]), found[0], atol=1e-6)


def test_where_siglips_pool_looks(clip, siglip, photo, tmp_path, capsys):
    out = tmp_path / "map.json"
    options = ["attention", str(photo), "-o", str(out), "--overwrite", "--model"]
    tower = minivit.load(siglip[0]).image
    pixels = minivit.preprocess(photo, tower.image_spec)[None]
    for method, settings in (("pool", {"head": 1}), ("rollout", {"query": "pool"})):
        arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        assert main([*options, str(siglip[0]), "--method", method, *arguments]) == 0
        found = minivit.study.method_map(tower, pixels, method, **settings)[0]
        assert torch.allclose(torch.tensor(json.loads(out.read_text())["map"]), found, atol=1e-6)
        assert main([*options, str(clip[0]), "--method", method, *arguments]) == 2
        assert "the model has no attention pool" in capsys.readouterr().err


def test_labels_without_a_class_to_follow_are_refused(clip, photo, capsys):
    options = ["attention", str(photo), "--model", str(clip[0])]
    assert main([*options, "--method", "rollout", "--labels", "a dog"]) == 2
    assert "--method rollout does not take --labels" in capsys.readouterr().err
    assert main([*options, "--method", "relevance"]) == 2
    assert "where it has a text tower --labels" in capsys.readouterr().err


def test_every_layer_is_read_into_the_space_of_texts(clip):
    """The lens of a text: the residual stream after any block, by the model's own final norm, projection and texts."""
    model = minivit.load(clip[0], dtype=torch.float64)
    zero_shot = model.zero_shot(["a dog", "two cats"])
    pixels = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    t = minivit.trace(zero_shot, pixels, keep=["blocks.*.resid_post", "logits"])
    texts = model.embed_texts(["a dog", "two cats"])
    with torch.no_grad():
        for i in range(2):
            cls = zero_shot.proj(zero_shot.norm(t[f"blocks.{i}.resid_post"][:, 0]))
            expected = F.normalize(cls, dim=-1) @ texts.T * model.logit_scale.exp()
            assert (zero_shot.answer(t[f"blocks.{i}.resid_post"]) - expected).abs().max() <= 1e-12
        assert (zero_shot.answer(t["blocks.1.resid_post"]) - t["logits"]).abs().max() <= 1e-12


def test_the_lens_accepts_labels_and_attribution_refuses_a_cosine(clip, photo, capsys):
    options = [str(photo), "--model", str(clip[0]), "--labels", "a dog", "two cats"]
    assert main(["lens", *options, "--class", "a dog", "--json"]) == 0
    text = capsys.readouterr().out
    assert "a dog" in text
    assert "two cats" in text
    zero_shot = minivit.load(clip[0]).zero_shot(["a dog", "two cats"])
    with pytest.raises(UsageError, match="a cosine head divides"):
        minivit.study.attribute(zero_shot, torch.zeros(1, 3, 40, 40))
