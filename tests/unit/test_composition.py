"""What composes with what: maps inside interventions, compiled models, threads, other sizes, scores, inference mode."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from helpers.fakes import build, build_swin, pixels, same, state

import minivit
from minivit import study
from minivit.errors import UsageError
from minivit.model.attention import attend_reference, attention_probs
from minivit.model.classes import class_scores, score_of

CLOSE = {"rtol": 0, "atol": 1e-12}


def linear(q, k, v, *, scale):
    """A kernel that is no softmax attention."""
    weights = (q.relu() @ k.relu().mT) + 1e-3
    return weights / weights.sum(-1, keepdim=True) @ v


def explained_by_hand(model, x, target, change):
    """Probabilities and their gradients of a plain ViT; `change(block, probs, v)` returns the attention output."""
    stream, found = model.embed(x), []
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.split(block.attn.qkv(block.norm1(stream)))
        scores = q @ k.mT * block.attn.scale
        probs, output = change(i, scores, v)
        found.append(probs)
        stream = stream + block.attn.proj(output.transpose(1, 2).flatten(2))
        stream = stream + block.mlp(block.norm2(stream))
    logits = model.head(model.norm(stream)[:, 0])
    return logits, found, torch.autograd.grad(logits[:, target].sum(), found)


def relevance_by_hand(probs, grads, layout):
    rows = torch.eye(layout.count, dtype=torch.float64)
    for p, g in zip(probs, grads, strict=True):
        rows = rows + (p * g).clamp(min=0).mean(dim=1) @ rows
    return layout.to_grid(rows[:, 0] - torch.eye(layout.count, dtype=torch.float64)[0])


def without_head(i, scores, v):
    probs = scores.softmax(-1)
    output = (probs @ v).clone()
    if i == 1:
        output[:, 2] = 0
    return probs, output


def without_key(i, scores, v):
    if i == 1:
        mask = torch.zeros_like(scores)
        mask[:, :, 0, 3] = -torch.inf
        scores = scores + mask
    probs = scores.softmax(-1)
    return probs, probs @ v


@pytest.mark.parametrize(
    ("enter", "change"),
    [
        (lambda model: minivit.ablate(model, heads={(1, 2)}), without_head),
        (lambda model: study.knockout(model, "cls", 3, blocks=[1]), without_key),
    ],
    ids=["ablate", "knockout"],
)
def test_relevance_inside_an_intervention_by_hand(enter, change):
    model, x = build(), pixels()
    logits, probs, grads = explained_by_hand(model, x, 2, change)
    with enter(model):
        torch.testing.assert_close(model(x), logits, **CLOSE)
        found = study.relevance(model, x, target=2)
    torch.testing.assert_close(found, relevance_by_hand(probs, grads, model.config.layout), **CLOSE)


@pytest.mark.slow
def test_every_map_follows_an_intervention_and_is_whole_again_behind_it():
    model, x = build("two"), pixels()
    source = minivit.trace(model, pixels(1, seed=9), keep=["blocks.1.v", "blocks.0.mlp.out"])
    contexts = [lambda: study.patched(model, source), lambda: study.knockout(model, "cls", "patches", blocks=[0, 1])]
    for method in sorted(set(study.MAPS) - {"pool"}):
        for context in contexts:
            before = study.method_map(model, x, method)
            with context():
                inside = study.method_map(model, x, method)
            assert not torch.equal(before, inside), method
            assert torch.equal(before, study.method_map(model, x, method)), method


@pytest.mark.parametrize("around", [True, False])
def test_a_trace_around_or_inside_shows_what_ran(around, tmp_path):
    model, x = build(), pixels()
    names = [
        "blocks.1.q",
        "blocks.1.k",
        "blocks.1.v",
        "blocks.1.attn.scores",
        "blocks.1.attn.probs",
        "blocks.1.attn.mix",
    ]
    source = minivit.trace(model, pixels(1, seed=9), keep=["blocks.1.q[(0,0)]", "blocks.1.attn.mix[cls]"])
    opened = [minivit.trace(model, keep=names), study.patched(model, source), study.knockout(model, "cls", [3, 4])]
    first, second, third = opened if around else [*opened[1:], opened[0]]
    with first as a, second, third as b:
        model(x)
    seen = a if around else b
    q, v = seen["blocks.1.q"], seen["blocks.1.v"]
    assert torch.equal(q[:, :, 1], source["blocks.1.q[(0,0)]"][:, :, 0].expand(2, -1, -1))
    assert torch.equal(seen["blocks.1.attn.mix"][:, :, 0], source["blocks.1.attn.mix[cls]"][:, :, 0].expand(2, -1, -1))
    probs = seen["blocks.1.attn.probs"]
    assert probs[:, :, 0, 3:5].abs().max() == 0
    assert torch.equal(probs, seen.attention[1])  # computed from q and k, with the knock-out
    assert (seen["blocks.1.attn.scores"][:, :, 0, 3:5] == -torch.inf).all()
    torch.testing.assert_close((probs @ v)[:, :, 1:], seen["blocks.1.attn.mix"][:, :, 1:], **CLOSE)
    seen.save(tmp_path / "t.safetensors")
    again = study.Trace.load(tmp_path / "t.safetensors")
    assert torch.equal(again.attention[1], probs)
    assert list(again) == list(seen)


def test_knock_outs_add_up_and_the_last_key_stays():
    model, x = build(), pixels()
    with study.knockout(model, "cls", [3, 4], heads=[1]), study.knockout(model, "cls", [5], heads=[1]):
        both = model(x)
    with study.knockout(model, "cls", [3, 4, 5], heads=[1]):
        torch.testing.assert_close(both, model(x), **CLOSE)
    first, rest = list(range(8)), list(range(8, model.config.layout.count))
    with (
        study.knockout(model, "cls", first),
        study.knockout(model, "cls", rest),
        pytest.raises(UsageError, match="leaves the queries no key"),
    ):
        model(x)


@pytest.mark.parametrize("method", ["relevance", "legrad", "grad-rollout", "rollout", "raw"])
def test_maps_of_a_kernel_that_is_no_softmax_attention_are_refused(method):
    model = build(attend=linear)
    with pytest.raises(UsageError, match=r"needs softmax attention.*output is -?[\d.e-]+ where softmax.* -?[\d.e-]+;"):
        study.method_map(model, pixels(), method)
    assert all(block.attn.attend is linear for block in model.blocks)


def test_a_kernel_that_is_no_softmax_attention_elsewhere():
    model, x = build(attend=linear), pixels()
    with study.knockout(model, "cls", 3), pytest.raises(UsageError, match=r"^knockout needs softmax attention"):
        model(x)
    with pytest.raises(UsageError, match="statistic"):
        study.head_statistics(model, x)
    assert study.input_gradients(model, x).abs().max() > 0
    with minivit.ablate(model, heads={(0, 1)}):
        inside = model(x)
    assert not torch.equal(inside, model(x))


def test_a_copy_made_inside_follows_the_context_until_it_closes():
    model, x = build(), pixels()
    whole = model(x)
    with minivit.ablate(model, heads={(0, 1)}, mlps=[2]):
        other = copy.deepcopy(model)
        inside = model(x)
        assert torch.equal(other(x), inside)
        with minivit.ablate(other, heads={(2, 0)}):
            assert not torch.equal(other(x), inside)
            assert torch.equal(model(x), inside)
    assert torch.equal(other(x), whole)


def ways(model, source):
    return {
        "heads": lambda: minivit.ablate(model, heads={(0, 0)}),
        "mlps": lambda: minivit.ablate(model, mlps=[1]),
        "tokens": lambda: minivit.ablate(model, tokens="patches"),
        "patched": lambda: study.patched(model, source),
        "knockout": lambda: study.knockout(model, "cls", "patches"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapper", "in place", "block", "function", "inside"])
def test_a_compiled_model_follows(how):
    torch._dynamo.reset()
    model, x = build(dtype=torch.float32), pixels(dtype=torch.float32)
    plain = copy.deepcopy(model)
    source = minivit.trace(plain, pixels(1, dtype=torch.float32, seed=5), keep=["blocks.1.resid_post[cls]"])
    run = model
    if how == "wrapper":
        run = torch.compile(model, backend="eager", fullgraph=True)
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "block":
        model.blocks[1].mlp.compile(backend="eager")
        model.blocks[1].compile(backend="eager")
    elif how == "function":
        run = torch.compile(lambda y: model(y), backend="eager")
    with torch.no_grad():
        whole = plain(x)
        run(x)
        for (name, enter), other in zip(ways(model, source).items(), ways(plain, source).values(), strict=True):
            with other():
                wanted = plain(x)
            with enter(), minivit.trace(model, keep=["blocks.1.resid_post", "blocks.0.q"]) as seen:
                run = torch.compile(model, backend="eager") if how == "inside" else run
                torch.testing.assert_close(run(x), wanted, rtol=0, atol=1e-5, msg=name)
            assert list(seen) == ["blocks.0.q", "blocks.1.resid_post"]
            torch.testing.assert_close(run(x), whole, rtol=0, atol=1e-5, msg=name)
    stance = sys.modules["torch._dynamo.eval_frame"]._stance
    assert stance.stance == "default"
    assert type(stance).__module__ == "torch._dynamo.eval_frame"
    torch._dynamo.reset()


def test_a_compiled_kernel_stays_compiled_inside():
    torch._dynamo.reset()
    runs = []

    def backend(graph, inputs):
        def compiled(*args):
            runs.append(1)
            return graph(*args)

        return compiled

    model, x = build(dtype=torch.float32), pixels(dtype=torch.float32)
    kernel = torch.compile(attend_reference, backend=backend)
    for block in model.blocks:
        block.attn.attend = kernel
    with torch.no_grad(), minivit.trace(model, keep=["blocks.*.q"]):
        model(x)
    assert len(runs) == model.config.depth
    torch._dynamo.reset()


def in_threads(*works):
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors


def test_threads_share_a_model():
    model = build(dtype=torch.float32)
    images = [pixels(1, dtype=torch.float32, seed=seed) for seed in range(2)]
    whole, maps = [model(x) for x in images], [study.relevance(model, x, target=1) for x in images]
    with minivit.ablate(model, heads={(0, 1)}, mlps=[1]):
        ablated = model(images[0])
    before = state(model)

    def explain(i):
        return lambda: [torch.testing.assert_close(study.relevance(model, images[i], target=1), maps[i])
                        for _ in range(20)]  # fmt: skip

    def plain():
        for _ in range(60):
            torch.testing.assert_close(model(images[0]), whole[0])

    def ablating():
        for _ in range(20):
            with minivit.ablate(model, heads={(0, 1)}, mlps=[1]), minivit.trace(model, keep="logits") as seen:
                torch.testing.assert_close(model(images[0]), ablated)
            torch.testing.assert_close(seen["logits"], ablated)

    in_threads(explain(0), explain(1), plain, ablating)
    assert same(before, state(model))


@pytest.mark.parametrize("first_out", [0, 1])
def test_contexts_that_overlap_in_threads_or_close_out_of_order(first_out):
    model, x = build(), pixels()
    whole, before = model(x), state(model)
    opened = [minivit.ablate(model, heads={(0, 1)}, mlps=[0]), study.knockout(model, "cls", 3)]
    for context in opened:
        context.__enter__()
    opened.pop(first_out).__exit__(None, None, None)
    assert not torch.equal(model(x), whole)
    in_threads(lambda: torch.testing.assert_close(model(x), whole, **CLOSE))  # another thread runs the whole model
    opened.pop().__exit__(None, None, None)
    assert torch.equal(model(x), whole)
    assert same(before, state(model))


def test_windows_in_threads():
    model = build_swin()
    images = [pixels(1, size=(40, 56)), pixels(1, seed=2, size=(40, 56))]
    wanted = [study.window_attention(model, x, 3).probs for x in images]

    def look(i):
        return lambda: [torch.testing.assert_close(study.window_attention(model, images[i], 3).probs, wanted[i])
                        for _ in range(10)]  # fmt: skip

    in_threads(look(0), look(1))


FUNCTIONS = {
    "grad_rollout": study.grad_rollout,
    "relevance": study.relevance,
    "legrad": study.legrad,
    "input_gradients": study.input_gradients,
    "integrated_gradients": lambda model, x, **more: study.integrated_gradients(model, x, steps=2, **more),
    "relevance_by_start": lambda model, x, **more: study.relevance_by_start(model, x, [1], **more),
    **{method: (lambda model, x, method=method, **more: study.method_map(model, x, method, **more))
       for method in study.MAPS if method != "pool"},
    "compute": lambda model, x, **more: study.maps.compute(model, x, "relevance", **more).values,
    "scan": study.scan,
    "scan_effect": lambda model, x, **more: study.scan_effect(model, x, 1, "patches", **more).change,
    "attribute": lambda model, x, **more: study.attribute(model, x, **more).heads,
    "head_statistics": lambda model, x, **more: study.head_statistics(model, x, **more)["distance"],
    "summarise_heads": lambda model, x, **more: study.summarise_heads(model, [x], **more).means["distance"],
    "explore": lambda model, x, **more: study.explore(model, x, **more).relevance_TLhw,
    "lens_reading": lambda model, x, **more: study.lens_reading(model, x, patches=True, **more).score,
    "ablation_effect": lambda model, x, **more: study.ablation_effect(model, x, 1, mlps=[1], source=-x, **more).after,
    "map_score": lambda model, x, **more: torch.tensor(study.map_score(model, x, torch.rand(4, 5), **more).deletion),
    "faithfulness": lambda model, x, **more: study.faithfulness(model, [x, x], methods=["raw"], **more).maps,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_images_of_another_size(name):
    """resample=True is the same as a model that takes any size; without it the message is true."""
    x, free = pixels(1, size=(32, 40)), build(any_size=True)
    model = build()
    torch.manual_seed(0)
    wanted = FUNCTIONS[name](free, x)
    torch.manual_seed(0)
    torch.testing.assert_close(FUNCTIONS[name](model, x, resample=True), wanted, equal_nan=True)
    with pytest.raises(minivit.errors.ShapeError, match="resample=True"):
        FUNCTIONS[name](model, x)


@pytest.mark.parametrize(
    "name", ["relevance", "legrad", "grad_rollout", "gradients", "integrated_gradients", "explore"]
)
def test_gradients_under_inference_mode(name):
    model = build()
    with torch.inference_mode():
        x = pixels(1)
        with pytest.raises(UsageError, match=r"torch\.inference_mode\(\) turns them off"):
            FUNCTIONS[name](model, x)
    FUNCTIONS[name](model, x)  # an image that was made in it is fine
    with torch.inference_mode():
        model = build()
    with pytest.raises(UsageError, match="loaded in"):
        FUNCTIONS[name](model, x)


def test_a_map_with_nan_is_refused():
    model, x = build(), pixels(1)
    bad = torch.rand(1, 3, 5)
    bad[0, 1, 2] = torch.nan
    for score in (
        lambda: study.curves(model, x, bad),
        lambda: study.map_score(model, x, bad[0]),
        lambda: study.pointing(bad, (0, 0, 1, 1)),
        lambda: study.spearman(bad, torch.rand(1, 3, 5)),
    ):
        with pytest.raises(UsageError, match=r"^1 of \d+ values of the maps are nan"):
            score()


@pytest.mark.parametrize(("score", "classes"), [("softmax", 5), ("sigmoid", 5), ("softmax", 1), ("sigmoid", 1)])
def test_scores_are_those_of_the_checkpoint(score, classes):
    model, x = build(score=score, classes=classes), pixels(1)
    logits = model(x)[0]
    logits = logits.detach()
    wanted = logits.sigmoid() if score == "sigmoid" else logits.softmax(-1) if classes > 1 else logits
    torch.testing.assert_close(study.explore(model, x).scores_T.double(), wanted.sort(descending=True).values,
                               rtol=0, atol=1e-6)  # fmt: skip
    best, reading = int(logits.argmax()), study.lens_reading(model, x)
    torch.testing.assert_close(reading.final, wanted, **CLOSE)
    torch.testing.assert_close(reading.score[-1, 0], wanted[best], **CLOSE)
    areas = study.curves(model, x, torch.rand(1, 3, 5))
    torch.testing.assert_close(areas.insertion_curves[0, -1].double(), wanted[best], rtol=0, atol=1e-6)
    assert areas.deletion_curves.std() > 0
    effect = study.ablation_effect(model, x, best, mlps=[1])
    torch.testing.assert_close(effect.rows()[0][1][0], float(wanted[best]), **CLOSE)
    found = study.faithfulness(model, [x], methods=["raw"], random=2)
    torch.testing.assert_close(found.probabilities[0], float(wanted[best]), **CLOSE)
    if classes == 1 and score == "softmax":
        assert reading.kl.isnan().all()
    else:
        assert reading.kl[-1] == 0
        assert (reading.kl[:-1] > 0).all()


def test_divergence_of_sigmoids_by_hand():
    a, b = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.5])
    p, q = a.double().sigmoid(), b.double().sigmoid()
    wanted = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum()
    torch.testing.assert_close(study.divergence(a, b, "sigmoid"), wanted, **CLOSE)
    assert torch.equal(class_scores(a, "none"), a.double())
    assert score_of(build(classes=1)) == "none"


def test_legrad_of_an_attention_pool_by_hand():
    """The gradient by the pool's attention, as in the authors' compute_legrad_siglip."""
    model, x = build("none", pooling="map"), pixels()
    pool, total = model.attn_pool, 0
    for i in range(1, model.config.depth):
        (stream,) = minivit.trace(model, x, keep=f"blocks.{i}.resid_post").values()
        tokens = model.norm(stream)
        q = pool.qkv(pool.latent)[..., :21].unflatten(-1, (3, -1)).transpose(1, 2)
        k, v = (pool.qkv(tokens)[..., s : s + 21].unflatten(-1, (3, -1)).transpose(1, 2) for s in (21, 42))
        probs = attention_probs(q.expand(2, -1, -1, -1), k, scale=pool.scale)
        y = pool.proj((probs @ v).transpose(1, 2).flatten(1))
        logit = model.head(y + pool.mlp(pool.norm(y)))[:, 1].sum()
        total = total + torch.autograd.grad(logit, probs)[0].clamp(min=0).mean(dim=(1, 2))
    wanted = model.config.layout.to_grid(total / (model.config.depth - 1))
    torch.testing.assert_close(study.legrad(model, x, target=1, start_layer=1), wanted, **CLOSE)


def test_positions_of_every_kind_of_prefix():
    for positions in ("learned", "learned_all", "learned_patches"):
        model = build("two", registers=2, positions=positions)
        patches = model.pos_embed[0, model.config.positioned_prefix :]
        wanted = torch.cosine_similarity(patches[3], patches, dim=-1).unflatten(0, (3, 5))
        found = study.position_similarity(model.pos_embed, model.config.layout)
        torch.testing.assert_close(found[0, 3], wanted, **CLOSE)
    with pytest.raises(minivit.errors.ShapeError, match="14 positions"):
        study.position_similarity(model.pos_embed[:, 1:], model.config.layout)
