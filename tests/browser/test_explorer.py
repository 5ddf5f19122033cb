"""The explorer: what stands in the file, and what a real browser shows of it."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path

import pytest
import torch
from helpers.fakes import build, pixels
from PIL import Image

from minivit import study, viz
from minivit.cli import main
from minivit.errors import ShapeError, UsageError
from minivit.viz.page.data import LEVELS, STEPS

pytestmark = pytest.mark.browser

EVIL = "</script><script>document.title='broken'</script><!-- & \"'.png"
LABELS = {i: f"<b>label {i}</b> & </script>, other" for i in range(5)}
PHOTO = Image.effect_noise((200, 120), 90).convert("RGB")


def page_of(kind="cls", maps="all", dtype=torch.float64, photo=PHOTO.size, **changes):
    """A page, its model and the tensors behind it."""
    model = build(kind, dtype=dtype, **changes)
    model.labels = LABELS
    x = pixels(batch=1, dtype=dtype)
    seen = study.explore(model, x)
    page = viz.explorer(
        seen, PHOTO.resize(photo), PHOTO.resize((40, 24)), labels=LABELS, maps=maps, title=EVIL, model="<i>fake</i>",
        notes=["a note"],
    )  # fmt: skip
    return page, model, x, seen


def blocks_of(page):
    """What the page carries: its description, and the packed blocks as bytes."""
    about = re.search(r'id="about-data">(.*?)</script>', page, re.DOTALL)
    packed = re.findall(r'<script type="text/plain" id="([\w-]+)">(.*?)</script>', page, re.DOTALL)
    return json.loads(about[1]), {name: zlib.decompress(base64.b64decode(text)) for name, text in packed}


# --- the tensors


def test_explore_gathers_what_the_library_computes():
    model = build("two", dtype=torch.float64)
    x = pixels(batch=1)
    seen = study.explore(model, x, top_k=3, labels=2)
    kept = study.trace(model, x, keep=["embed.tokens", "blocks.*.resid_post", "blocks.*.q", "blocks.*.k", "logits"])
    probs, streams = kept.attention, ["embed.tokens", *(f"blocks.{i}.resid_post" for i in range(3))]
    close = {"rtol": 1e-5, "atol": 1e-6}
    best = kept["logits"][0].topk(3).indices
    assert seen.best_T.tolist() == best.tolist()
    torch.testing.assert_close(seen.scores_T, kept["logits"][0].softmax(-1)[best].float(), **close)
    most = torch.cat(list(probs))[..., 2:].amax(dim=(0, 1, 3))
    torch.testing.assert_close(seen.greatest_N, most.float(), **close)
    for i in range(3):
        torch.testing.assert_close(
            seen.rollout_Lhw[i], study.rollout(probs, seen.layout, start_layer=i)[0].float(), **close
        )
        torch.testing.assert_close(seen.entropy_LA[i], study.attention_entropy(probs[i])[0].float(), **close)
        torch.testing.assert_close(
            seen.distance_LA[i], study.attention_distance(probs[i], seen.layout, 8)[0].float(), **close
        )
        for t in range(3):
            answer = study.relevance(model, x, target=int(best[t]), start_layer=i)[0]
            torch.testing.assert_close(seen.relevance_TLhw[t, i], answer.float(), **close)
    for s, name in enumerate(streams):
        torch.testing.assert_close(seen.norms_SN[s], kept[name][0].norm(dim=-1).float(), **close)
        torch.testing.assert_close(seen.pca_Shw3[s], study.pca(kept[name], seen.layout)[0].float(), **close)
        patches = kept[name][0, 2:]
        variances = torch.linalg.svdvals(patches - patches.mean(dim=0)).square()
        torch.testing.assert_close(seen.pca_share_S[s], (variances[:3].sum() / variances.sum()).float(), **close)
        alone = study.lens(model, [kept[name]], rows=range(17))[0, 0].softmax(-1)
        torch.testing.assert_close(seen.lens_SNT[s, :17], alone[:, best].float(), **close)
        torch.testing.assert_close(seen.lens_scores_SNJ[s, :17], alone.topk(2).values.float(), **close)
        assert seen.lens_labels_SNJ[s, :17].tolist() == alone.topk(2).indices.tolist()
        head = study.lens(model, [kept[name]])[0, 0, 0].softmax(-1)
        torch.testing.assert_close(seen.lens_SNT[s, 17], head[best].float(), **close)


def test_explore_takes_one_picture_and_models_without_a_head():
    with pytest.raises(ShapeError, match="2 pictures"):
        study.explore(build(), pixels(batch=2))
    seen = study.explore(build(classes=0), pixels(batch=1))
    assert seen.best_T is None
    assert seen.relevance_TLhw is None
    assert seen.lens_SNT is None
    assert seen.rollout_Lhw.shape == (3, 3, 5)


def test_relevance_of_a_picture_of_another_size():
    """A model that takes any size: its tokens are those of the picture, not of its configuration."""
    model = build(any_size=True)
    x = pixels(batch=1, size=(16, 48))
    assert study.relevance(model, x, target=1).shape == (1, 2, 6)
    assert study.legrad(model, x, target=1).shape == study.grad_rollout(model, x, target=1).shape == (1, 2, 6)
    assert study.explore(model, x).rollout_Lhw.shape == (3, 2, 6)


# --- the file


def test_attention_as_bytes_is_within_its_bound():
    page, _, _, seen = page_of()
    about, blocks = blocks_of(page)
    assert about["packing"] == {"kind": "maps", "steps": STEPS}
    table = torch.tensor([0.0, *(2 ** ((c - 255) / STEPS) for c in range(1, 256))], dtype=torch.float64)
    for i, probs in enumerate(seen.trace.attention):
        codes = torch.frombuffer(bytearray(blocks[f"attention-{i}"]), dtype=torch.uint8).view(4, 16, 16)
        kept, exact = table[codes.long()], torch.cat([probs[0], probs[0].mean(dim=0, keepdim=True)])
        kept[3] = torch.where(codes[3] > 0, kept[3], kept[:3].mean(dim=0))
        above = exact > 2**-15.9
        assert above.any()
        assert (kept[~above] <= 2**-15.8).all()
        assert ((kept - exact).abs() <= about["error"] * exact)[above].all()
    assert about["error"] == pytest.approx(2 ** (1 / 32) - 1)


def test_the_mean_of_heads_is_within_the_bound_where_single_heads_are_too_small_for_their_bytes():
    """Heads below the smallest byte count in the mean: a mean of packed heads would be off by more."""
    seen = study.explore(build(), pixels(batch=1))
    few = torch.full((1, 3, 16, 16), 2**-16.4, dtype=torch.float64)
    few[:, 0] = 2**-15.0

    class Sharp:
        attention = (few,) * 3

    photo = Image.new("RGB", (40, 24))
    about, blocks = blocks_of(viz.explorer(dataclasses.replace(seen, trace=Sharp()), photo, photo))
    codes = torch.frombuffer(bytearray(blocks["attention-0"]), dtype=torch.uint8).view(4, 16, 16).double()
    exact = few[0].mean(dim=0)
    assert (exact > 2**-15.9).all()
    assert (codes[1:3] == 0).all()
    assert ((2 ** ((codes[3] - 255) / STEPS) - exact).abs() <= about["error"] * exact).all()


def test_attention_as_queries_and_keys_is_within_its_bound():
    """Where heads are small beside the tokens, q and k are the smaller way."""
    page, _, _, seen = page_of(heads=7, dtype=torch.float32)
    about, blocks = blocks_of(page)
    assert about["packing"] == {"kind": "qk"}
    assert about["headDim"] == 3
    numbers = {}
    offset = 0
    for name, tensor in about["tensors"].items():
        length = int(torch.tensor(tensor["shape"]).prod()) if tensor["shape"] else 1
        kind = torch.int32 if tensor["type"] == "int32" else torch.float32
        part = blocks["tensors"][offset : offset + 4 * length]
        numbers[name] = torch.frombuffer(bytearray(part), dtype=kind).view(tensor["shape"])
        offset += 4 * length
    assert offset == len(blocks["tensors"])
    worst = 0.0
    for i, probs in enumerate(seen.trace.attention):
        low, high = torch.frombuffer(bytearray(blocks[f"attention-{i}"]), dtype=torch.uint8).view(2, -1)
        whole = torch.stack([low, high], dim=1).flatten().view(torch.int16).double()
        assert whole.abs().max() == LEVELS
        q, k = (side.view(7, 16, 3) for side in whole.split([7 * 16 * 3] * 2))
        kept = (q @ k.mT * numbers["factor"][i].double()[:, None, None]).softmax(-1)
        worst = max(worst, float(((kept - probs[0]).abs() / probs[0]).max()))
    assert 0 < worst <= about["error"] <= 1.05 * worst + 2e-5


def test_the_small_tensors_are_exact():
    page, _, _, seen = page_of()
    about, blocks = blocks_of(page)
    first = about["tensors"]["distance"]["shape"]
    values = torch.frombuffer(bytearray(blocks["tensors"]), dtype=torch.float32)[: first[0] * first[1]]
    assert torch.equal(values.view(first), seen.distance_LA)
    assert list(about["tensors"]) == [
        "distance", "entropy", "greatest", "rollout", "norms", "pca", "pcaShare", "scores", "relevance", "lens",
        "lensLabels", "lensScores",
    ]  # fmt: skip


def test_text_is_escaped_and_the_network_forbidden():
    page, *_ = page_of()
    assert page.count("<script") == page.count("</script>") == 2 + 1 + 3  # data, program, blocks
    assert "document.title='broken'" in page
    assert "<script>document.title" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'")
    assert "img-src data: blob:" in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href|url\()\s*[=(]?\s*["']?(https?:)?//""", page)


def test_sizes_of_a_base_model_with_maps_no_packing_makes_smaller():
    """ViT-B/16 with noise in the place of attention: all maps below 8 MB, those of the class token below 1 MB."""
    from dataclasses import replace

    config = build(
        image_size=(224, 224), patch_size=16, width=12, heads=12, depth=12, mlp_width=12, classes=1000
    ).config
    layout, labels = config.layout, {i: f"a label of the usual length, {i}" for i in range(1000)}
    noise = torch.Generator().manual_seed(0)

    class Noise:
        attention = tuple((-12 * torch.rand(1, 12, 197, 197, generator=noise)).exp() for _ in range(12))

    def rand(*shape):
        return torch.rand(*shape, generator=noise)

    seen = study.Exploration(
        config=replace(config, width=768), layout=layout, trace=Noise(), distance_LA=rand(12, 12),
        entropy_LA=rand(12, 12), greatest_N=rand(197), rollout_Lhw=rand(12, 14, 14),
        norms_SN=rand(13, 197), pca_Shw3=rand(13, 14, 14, 3),
        pca_share_S=rand(13), best_T=torch.arange(5), scores_T=rand(5), relevance_TLhw=rand(5, 12, 14, 14),
        lens_SNT=rand(13, 198, 5), lens_labels_SNJ=torch.randint(0, 1000, (13, 198, 3), generator=noise),
        lens_scores_SNJ=rand(13, 198, 3),
    )  # fmt: skip
    photo = Image.effect_noise((240, 180), 50).convert("RGB").resize((1200, 900))  # as many bytes as a photo has
    sizes = {
        maps: len(viz.explorer(seen, photo, photo.resize((224, 224)), labels=labels, maps=maps))
        for maps in ("all", "cls")
    }
    assert sizes["all"] < 8e6 and sizes["cls"] < 1e6, sizes


def test_maps_of_the_class_token_only():
    page, *_ = page_of("two", maps="cls")
    about, blocks = blocks_of(page)
    assert about["queries"] == 2
    assert len(blocks["attention-0"]) == (3 + 1) * 2 * 17  # the heads and their mean
    with pytest.raises(UsageError, match="this model has none"):
        page_of("none", maps="cls")
    with pytest.raises(UsageError, match="must be all or cls"):
        page_of(maps="some")


def test_the_command_writes_the_page(hf_checkpoint, tmp_path, capsys, monkeypatch):
    photo = tmp_path / "a & b.png"
    PHOTO.save(photo)
    out = tmp_path / "page.html"
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert main(["explore", str(photo), "-m", str(hf_checkpoint()), "-o", str(out), "--open", "-k", "2"]) == 0
    about, _ = blocks_of(out.read_text(encoding="utf-8"))
    assert about["title"] == "a & b.png"
    assert about["grid"] == [3, 5]
    assert len(about["best"]) == 2
    assert opened == [out.as_uri()]
    assert "MB, open it in any browser" in capsys.readouterr().err
    assert main(["explore", str(photo), "-m", str(hf_checkpoint()), "-o", str(tmp_path / "page.pdf")]) == 2
    assert main(["explore", str(tmp_path / "no.png"), "-m", str(hf_checkpoint()), "-o", str(out), "--overwrite"]) == 3
    assert main(["explore", str(photo), "-m", str(hf_checkpoint()), "-o", str(tmp_path / "no" / "page.html")]) == 2


# --- in a browser

PATIENCE = 120  # seconds until what does not come is given up; a busy machine is slow, not wrong


def find_browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return chromium, shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of its own, without a profile."""
    selenium = pytest.importorskip("selenium", reason="the explorer's browser tests need selenium")
    from selenium import webdriver

    assert selenium
    chromium, driver = find_browser()
    if not (chromium and driver):
        pytest.skip("no chromium with its chromedriver on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage",
            "disable-background-networking", "disable-component-update", "disable-sync", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        browser.set_script_timeout(PATIENCE)
        yield browser
        browser.quit()


class Page:
    """One page in the browser, with what a person does to it."""

    def __init__(self, browser, path, model, x, seen):
        from selenium.webdriver import ActionChains

        self.browser, self.model, self.x, self.seen = browser, model, x, seen
        mouse = ActionChains(browser, duration=0)
        mouse.w3c_actions.pointer_action.move_to_location(0, 0)  # not where the test before left it, above a patch
        mouse.perform()
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(path.as_uri())
        self.until("return document.documentElement.dataset.ready === 'true'")

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, script):
        end = time.monotonic() + PATIENCE
        while not self.js(script):
            assert time.monotonic() < end, f"never true: {script}; {self.browser.get_log('browser')}"
            time.sleep(0.02)

    def one(self, css):
        return self.browser.find_element("css selector", css)

    def text(self, css):
        self.js("return new Promise((done) => requestAnimationFrame(() => done()))")
        self.until("return frame === null")  # nothing is asked for that is not drawn
        return self.one(css).text

    def point(self, row, column):
        """Move the mouse to the middle of a patch."""
        from selenium.webdriver import ActionChains

        box = self.one("#box")
        self.js("arguments[0].scrollIntoView({block: 'center'})", box)
        rows, columns = self.seen.layout.grid
        across, down = box.size["width"] / columns, box.size["height"] / rows
        left, up = (column + 0.5) * across - box.size["width"] / 2, (row + 0.5) * down - box.size["height"] / 2
        ActionChains(self.browser, duration=0).move_to_element_with_offset(box, round(left), round(up)).perform()

    def key(self, *keys, on="#photo"):
        for key in keys:
            self.one(on).send_keys(key)

    def pick(self, css):
        self.js("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", self.one(css))

    def set(self, css, value):
        self.js("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
                self.one(css), str(value))  # fmt: skip

    def choose(self, css, value):
        self.js("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))",
                self.one(css), str(value))  # fmt: skip

    def requests(self):
        """Every address asked for over a network since the last look."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:", "chrome:"))]

    def complaints(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    made = {}

    def make(kind="cls", maps="all", **changes):
        key = repr((kind, maps, sorted(changes.items())))
        if key not in made:
            page, *rest = page_of(kind, maps, **changes)
            path = tmp_path_factory.mktemp("page") / "page.html"
            path.write_text(page, encoding="utf-8")
            made[key] = path, rest
        path, rest = made[key]
        return Page(browser, path, *rest)

    return make


def numbers(text):
    """The numbers of a line, without those of a patch's place."""
    text = re.sub(r"\(\d+, \d+\)", "", text).replace("\u2212", "-")
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w|\.\d)", text)]


def shown(value, exact, packed=False):
    """Whether a number of three digits says what a tensor holds, within the packing's error where it is packed."""
    return abs(value - exact) <= (0.0275 if packed else 0.0051) * abs(exact) + (2**-15.9 if packed else 0)


def test_pointing_and_keys_show_the_attention_of_the_tensors(open_page):
    from selenium.webdriver.common.keys import Keys

    page = open_page("two")
    probs = [block[0] for block in page.seen.trace.attention]  # (A, N, N)

    def says(block, head, query, target=None):
        row = probs[block][:, query].mean(0) if head == "mean" else (
            probs[block][:, query].amax(0) if head == "max" else probs[block][head, query])  # fmt: skip
        text = page.text("#readout")
        name = f"patch ({(query - 2) // 5}, {(query - 2) % 5})" if query >= 2 else ["CLS", "DIST"][query]
        assert text.startswith(name + " attends "), text
        if target is None:
            assert shown(numbers(text)[0], float(row.max()), True)
            assert shown(numbers(text)[1], float(row[query]), True)
        else:
            assert shown(numbers(text)[0], float(row[target]), True), (text, float(row[target]))
            assert shown(numbers(text)[1], float(row[target]) * 17, True)

    says(2, "mean", 0)
    page.point(1, 3)
    says(2, "mean", 2 + 8)
    page.one("#photo").click()  # keeps the middle patch, under the mouse
    page.point(0, 4)
    says(2, "mean", 2 + 7, 2 + 4)
    page.key(Keys.ESCAPE, Keys.ESCAPE, Keys.ARROW_DOWN)
    says(2, "mean", 2 + 7)
    page.key(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP)
    says(2, "mean", 2 + 0)
    page.key(Keys.ENTER, Keys.END)
    says(2, "mean", 2 + 0, 2 + 4)
    page.key("[", "[")
    says(0, "mean", 2, 6)
    page.choose("#controls select", "max")
    says(0, "max", 2, 6)
    page.choose("#controls select", 1)
    says(0, 1, 2, 6)
    page.pick(".thumbs.headed button[aria-label^='block 1, head 2']")
    says(1, 2, 2, 6)
    assert page.text("#note .what") == "How much patch (0, 0) attends to every token in block 1, head 2."
    page.key(Keys.ARROW_LEFT, on=".thumbs.headed button[aria-current]")
    assert page.text("#note .what").endswith("in block 1, head 1.")
    page.key(Keys.ARROW_DOWN, on=".thumbs.headed button[aria-current]")
    assert page.text("#note .what").endswith("in block 2, head 1.")
    page.pick(".chip:nth-of-type(2)")
    assert page.text("#note .what").startswith("How much DIST attends to")
    values = [float(value.text) for value in page.browser.find_elements("css selector", ".chip .value")]
    assert all(shown(value, float(probs[2][1, 1, i]), True) for i, value in enumerate(values))
    assert len(values) == 2
    assert page.requests() == []
    assert page.complaints() == []


def test_pixels_of_the_map_are_those_of_the_colormap(open_page):
    page = open_page("two")
    row = page.seen.trace.attention[2][0, :, 0].mean(0)[2:]
    pixels = page.js("return [...document.getElementById('map').getContext('2d').getImageData(0, 0, 5, 3).data]")
    colours = page.js("return [...COLORMAP]")
    most = float(row.max())
    for p in range(15):
        best = min(range(256), key=lambda c: sum(abs(colours[3 * c + i] - pixels[4 * p + i]) for i in range(3)))
        assert abs(best / 255 - float(row[p]) / most) < 0.05


def test_rows_made_from_queries_and_keys(open_page):
    page = open_page(heads=7)
    assert page.js("return about.packing.kind") == "qk"
    for block, query in ((0, 0), (2, 9)):
        exact = page.seen.trace.attention[block][0, :, query]
        for head in range(7):
            row = page.js("return [...attention.row(arguments[0], arguments[1], arguments[2])]", block, head, query)
            assert (torch.tensor(row) - exact[head]).abs().max() < page.js("return about.error")
            assert sum(row) == pytest.approx(1)
        mean = page.js("return [...attention.row(arguments[0], 'mean', arguments[1])]", block, query)
        torch.testing.assert_close(torch.tensor(mean).double(), exact.mean(0), rtol=0.02, atol=1e-6)
    assert page.complaints() == []


def test_shared_and_sorted_heads(open_page):
    page = open_page("two")
    most = max(float(block[0, :, 0, 2:].max()) for block in page.seen.trace.attention)
    page.pick("input[value='shared']")
    assert shown(float(page.text("#legend .ends span:last-child")), most, True)
    page.pick("input[value='head']")
    own = float(page.seen.trace.attention[2][0, :, 0, 2:].mean(0).max())
    assert shown(float(page.text("#legend .ends span:last-child")), own, True)
    for measure, tensor in (("distance", page.seen.distance_LA), ("entropy", page.seen.entropy_LA)):
        page.pick(f"input[value='{measure}']")
        assert shown(numbers(page.text("#mark-text"))[-1], float(tensor.max()))
        if not page.js("return document.getElementById('sorted').checked"):
            page.pick("#sorted")
        names = page.js(
            "return [...document.querySelectorAll('.thumbs.headed button')]"
            ".sort((a, b) => a.style.order - b.style.order).map((b) => b.getAttribute('aria-label'))"
        )
        expected = [f"block {b}, head {a}" for b in range(3) for a in tensor[b].argsort().tolist()]
        assert [name.partition(":")[0] for name in names] == expected
        assert shown(numbers(names[0].partition(":")[2])[measure == "entropy"], float(tensor[0].min()))


def test_rollout_and_relevance_for_every_start_and_class(open_page):
    page = open_page("two")
    page.pick("#tab-rollout")
    for start in (0, 2):
        page.set(".pane:not([hidden]) input[type='range']", start)
        page.point(2, 1)
        assert shown(numbers(page.text("#readout"))[0], float(page.seen.rollout_Lhw[start, 2, 1]))
    page.pick("#tab-relevance")
    page.set(".pane:not([hidden]) input[type='range']", 1)
    page.pick(".pane:not([hidden]) .bar-row:nth-of-type(3)")
    page.point(2, 4)
    exact = page.seen.relevance_TLhw[2, 1]
    assert shown(numbers(page.text("#readout"))[0], float(exact[2, 4]))
    rank = 1 + int((exact > exact[2, 4]).sum())
    assert f"rank {rank} of 15" in page.text("#readout")
    rows = page.browser.find_elements("css selector", ".pane:not([hidden]) .bar-row .value")
    scores = [float(row.text) for row in rows]
    assert all(shown(s, float(e)) for s, e in zip(scores, page.seen.scores_T, strict=True))
    assert page.requests() == []
    assert page.complaints() == []


def test_the_lens_of_tokens_and_its_map(open_page):
    page = open_page("two")
    page.pick("#tab-lens")
    page.pick(".lens button:nth-of-type(2)")  # after block 0
    page.point(1, 1)
    text = page.text("#readout")
    assert text.startswith("patch (1, 1) after block 0: <b>label")
    scores = [float(n) for n in re.findall(r"</b> & </script> ([\d.]+)", text)]
    assert all(shown(s, float(e)) for s, e in zip(scores, page.seen.lens_scores_SNJ[1, 2 + 6], strict=True))
    counts = page.seen.lens_labels_SNJ[1, 2:17, 0].bincount().tolist()
    legend = {kind.text for kind in page.browser.find_elements("css selector", ".kind")}
    assert legend == {f"<b>label {i}</b> & </script> {count}" for i, count in enumerate(counts) if count}
    page.pick("input[value='class']")
    assert shown(float(page.text("#legend .ends span:last-child")), float(page.seen.lens_SNT[1, 2:17, 0].max()))


def test_norms_and_components(open_page):
    page = open_page("two")
    page.pick("#tab-tokens")
    page.set(".pane:not([hidden]) input[type='range']", 1)
    page.point(0, 3)
    assert page.text("#readout").startswith("patch (0, 3) after block 0: L2 norm ")
    assert shown(float(page.text("#readout").split()[-1]), float(page.seen.norms_SN[1, 2 + 3]))
    chips = [float(value.text) for value in page.browser.find_elements("css selector", ".chip .value")]
    assert all(shown(chip, float(page.seen.norms_SN[1, i])) for i, chip in enumerate(chips))
    assert len(chips) == 2
    page.pick("input[value='pca']")
    page.point(0, 3)
    parts = numbers(page.text("#readout"))
    assert len(parts) == 3
    assert all(shown(part, float(exact)) for part, exact in zip(parts, page.seen.pca_Shw3[1, 0, 3], strict=True))


def test_the_network_s_own_picture_below_the_map(open_page):
    page = open_page("two")
    assert page.js("return document.getElementById('image').src === about.photo")
    page.pick("input[value='seen']")
    assert page.js("return document.getElementById('image').src === about.seen")
    page.point(2, 4)
    assert page.text("#readout").startswith("patch (2, 4) attends most to ")
    ratio = "const { width, height } = document.getElementById('photo').getBoundingClientRect(); return width / height"
    assert page.js(ratio) == pytest.approx(40 / 24, rel=0.02)
    page.pick("input[value='photo']")
    assert page.js(ratio) == pytest.approx(200 / 120, rel=0.02)
    long = open_page("two", photo=(600, 60))
    assert long.js("return document.getElementById('image').src === about.seen")
    long.pick("input[value='photo']")
    assert long.js(ratio) == pytest.approx(10, rel=0.05)


def test_a_page_that_scrolls_below_the_mouse_leaves_the_keyboard_its_cursor(open_page):
    from selenium.webdriver.common.keys import Keys

    page = open_page("two")
    page.point(0, 1)
    page.key(Keys.ARROW_RIGHT)
    assert page.text("#readout").startswith("patch (0, 2) ")
    # What a browser sends of itself: events at the very place where the mouse has been since.
    page.js(
        "const [screenX, screenY] = pointer.place.split(' ').map(Number);"
        "const at = { pointerType: 'mouse', screenX, screenY, clientX: 5, clientY: 5 };"
        "for (const kind of ['pointermove', 'pointerleave'])"
        "  document.getElementById('photo').dispatchEvent(new PointerEvent(kind, at));"
    )
    assert page.text("#readout").startswith("patch (0, 2) ")
    page.point(1, 4)
    assert page.text("#readout").startswith("patch (1, 4) ")


def test_text_that_looks_like_markup_is_shown_as_text(open_page):
    page = open_page("two")
    assert page.text("h1") == EVIL
    assert page.text("#about").startswith("<i>fake</i>")
    assert page.js("return document.querySelectorAll('b.label, h1 *, #about *').length") == 0
    assert page.browser.title == f"{EVIL} in <i>fake</i>"


def test_the_network_is_out_of_reach_even_for_the_page_itself(open_page):
    page = open_page("two")
    outcome = page.browser.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org/').then(() => done('reached'), () => done('refused'))"
    )
    assert outcome == "refused"
    assert page.requests() == []
    assert page.js("const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                   "document.body.append(s); return window.ran === undefined")  # fmt: skip


@pytest.mark.parametrize("kind", ["none", "headless", "class token only"])
def test_other_models(open_page, kind):
    page = {
        "none": lambda: open_page("none"),
        "headless": lambda: open_page("cls", classes=0),
        "class token only": lambda: open_page("two", maps="cls"),
    }[kind]()
    tabs = [tab.text for tab in page.browser.find_elements("css selector", "[role='tab']")]
    assert tabs == ["Attention", "Rollout", *([] if kind == "headless" else ["Relevance", "Logit lens"]), "Tokens"]
    for name in page.js("return Object.keys(VIEWS)"):
        page.pick(f"#tab-{name}")
        page.point(1, 2)
        assert "patch (1, 2)" in page.text("#readout")
        assert "undefined" not in page.text("body")
        assert "NaN" not in page.text("body")
    page.pick("#tab-attention")
    page.point(0, 0)
    query = "CLS" if kind == "class token only" else "patch (0, 0)"
    assert page.text("#note .what").startswith(f"How much {query} attends to")
    if kind == "none":
        page.pick("#tab-lens")
        page.pick(".chip")
        answer = page.seen.lens_scores_SNJ[3, 15, 0]
        assert page.text("#readout").startswith("pooled output")
        assert shown(float(page.text(".lens button:last-of-type .value")), float(answer))
    assert page.requests() == []
    assert page.complaints() == []


@pytest.mark.parametrize("width", [360, 1024, 2200])
def test_nothing_reaches_beyond_the_window(open_page, width):
    page = open_page("two")
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        for name in page.js("return Object.keys(VIEWS)"):
            page.pick(f"#tab-{name}")
            assert page.js("return document.documentElement.scrollWidth") <= width, name
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_view_is_saved_as_a_picture(open_page, tmp_path):
    page = open_page("two")
    page.browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.pick("#save")
    end = time.monotonic() + PATIENCE
    while not (found := [file for file in tmp_path.glob("*.png") if file.stat().st_size]):
        assert time.monotonic() < end
        time.sleep(0.05)
    with Image.open(found[0]) as image:
        assert image.format == "PNG"
        assert image.width == 1200
        assert image.height > 720
    assert page.complaints() == []


def find_axe():
    """axe.min.js of the npm package axe-core, where AXE_CORE says it is."""
    place = Path(os.environ.get("AXE_CORE", "absent"))
    return place if place.is_file() else None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(open_page, theme):
    axe = find_axe()
    if axe is None:
        pytest.skip("axe-core of npm is not here: AXE_CORE names no axe.min.js")
    page = open_page("two")
    page.js("document.documentElement.dataset.theme = arguments[0]", theme)
    page.js(axe.read_text(encoding="utf-8"))
    for name in page.js("return Object.keys(VIEWS)"):
        page.pick(f"#tab-{name}")
        result = page.browser.execute_async_script("const done = arguments[0]; axe.run(document).then(done)")
        bad = [(v["id"], v["impact"], v["nodes"][0]["html"]) for v in result["violations"]
               if v["impact"] in ("serious", "critical")]  # fmt: skip
        assert result["passes"] and not bad, bad
