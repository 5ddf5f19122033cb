"""Pictures, opened again, with the pixels checked where the answer is known."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from PIL import Image, ImageFont

from minivit import viz
from minivit.errors import ShapeError, UsageError
from minivit.images.preprocess import resize_and_crop, seen_box
from minivit.images.spec import ImageSpec
from minivit.viz.layout import round_ticks, wrap
from minivit.viz.style import svg

BLUE, GREEN, RED = (tuple(viz.colormap("turbo")[i].tolist()) for i in (0, 128, 255))  # min, middle, max


def reopened(image, tmp_path):
    image.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as again:
        assert again.format == "PNG"
        assert again.mode == "RGB"
        return again.copy()


def near(pixel, expected, by=3):
    return all(abs(a - b) <= by for a, b in zip(pixel, expected, strict=True))


@pytest.mark.parametrize("name", viz.COLORMAPS)
def test_colormaps_are_matplotlib_s(name):
    import matplotlib

    colors = viz.colormap(name)
    assert colors.shape == (256, 3)
    assert colors.dtype == torch.uint8
    expected = torch.tensor(matplotlib.colormaps[name](range(256))[:, :3].tolist(), dtype=torch.float64)
    assert (colors - (255 * expected).round()).abs().max() <= 1


def test_former_names_of_colormaps():
    assert viz.ramp is viz.colormap
    assert torch.equal(viz.ramp(), viz.colormap("turbo"))
    for former, name in {"blue-red": "turbo", "cubehelix": "viridis", "white-red": "Reds", "red-white-blue": "RdBu",
                         "blue-white-red": "RdBu_r"}.items():  # fmt: skip
        assert torch.equal(viz.colormap(former), viz.colormap(name))
        assert former in viz.RAMPS
        assert name in viz.RAMPS
    assert torch.equal(viz.colourise(torch.tensor([0.0, 1.0]), "Reds"), viz.colormap("Reds")[[0, 255]])
    with pytest.raises(UsageError, match="'jet'; choose from turbo, viridis"):
        viz.ramp("jet")
    gray = Image.new("RGB", (20, 10), (99, 99, 99))
    values = torch.tensor([[0.0, 1.0]])
    for draw in (viz.overlay, viz.paint):
        assert draw(gray, values, colours="cubehelix").tobytes() == draw(gray, values, cmap="viridis").tobytes()
    one = values[None, None]
    assert viz.sheet(one, [""], [""], colours="cubehelix") == viz.sheet(one, [""], [""], cmap="viridis")


def test_one_normalisation_for_all():
    unit, low, high = viz.to_unit(torch.tensor([[2.0, 4.0], [3.0, 6.0]]))
    assert (low, high) == (2.0, 6.0)
    assert unit.tolist() == [[0.0, 0.5], [0.25, 1.0]]
    assert viz.to_unit(torch.tensor([1.0, 9.0]), 2.0, 6.0)[0].tolist() == [0.0, 1.0]
    assert viz.to_unit(torch.full((2, 2), 7.0))[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.empty(0)):
        with pytest.raises(ShapeError, match="NaN or infinity"):
            viz.to_unit(bad)


def test_an_overlay_colours_every_patch_where_it_lies(tmp_path):
    photo = Image.new("RGB", (300, 200), (100, 60, 40))
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 2.0]])
    image = reopened(viz.overlay(photo, values, opacity=1.0, title="a title", width=300), tmp_path)
    assert image.width == 300
    assert image.height > 200
    assert image.getpixel((5, 5)) == BLUE
    assert image.getpixel((99, 99)) == BLUE
    assert image.getpixel((101, 101)) == RED
    assert image.getpixel((199, 199)) == RED
    assert near(image.getpixel((250, 50)), GREEN, by=5)
    assert near(image.getpixel((250, 150)), GREEN, by=5)
    half = reopened(viz.overlay(photo, values, opacity=0.5, width=300), tmp_path)
    assert near(half.getpixel((5, 5)), ((100 + 48) / 2, (60 + 18) / 2, (40 + 59) / 2))
    assert near(half.getpixel((150, 150)), ((100 + 122) / 2, (60 + 4) / 2, (40 + 3) / 2))
    none = reopened(viz.overlay(photo, values, opacity=0.0, width=300), tmp_path)
    assert none.crop((0, 0, 300, 200)).tobytes() == photo.tobytes()
    with pytest.raises(UsageError, match="opacity"):
        viz.overlay(photo, values, opacity=2)


def test_the_strip_has_a_bar_from_blue_to_red_and_text(tmp_path):
    photo = Image.new("RGB", (400, 100))
    image = reopened(viz.overlay(photo, torch.tensor([[0.25, 0.75]]), title="one\ntwo", width=400), tmp_path)
    rows = [[image.getpixel((x, y)) for x in range(400)] for y in range(101, image.height)]
    bars = [row for row in rows if BLUE in row and RED in row]
    assert len(bars) >= 9
    assert bars[0].index(BLUE) < bars[0].index(RED)
    assert any((34, 34, 34) in row for row in rows)
    quiet = viz.overlay(photo, torch.tensor([[0.25, 0.75]]), width=400)
    assert image.height > quiet.height + 20  # without the two lines of the title


def test_three_maps_are_red_green_and_blue(tmp_path):
    photo = Image.new("RGB", (60, 40))
    components = torch.zeros(2, 3, 3)
    components[0, 0, 0], components[1, 2, 1], components[0, 2, 2] = 5.0, -7.0, 0.5
    image = reopened(viz.overlay(photo, components, opacity=1.0, width=60), tmp_path)
    assert image.getpixel((10, 10)) == (255, 255, 0)  # most red; green everywhere but where it is least
    assert image.getpixel((50, 30)) == (0, 0, 0)
    assert image.getpixel((50, 10)) == (0, 255, 255)
    with pytest.raises(ShapeError):
        viz.overlay(photo, torch.zeros(2, 2, 2))
    with pytest.raises(ShapeError):
        viz.overlay(photo, torch.zeros(4))


def test_the_box_places_the_map_where_the_network_looked(tmp_path):
    """A crop sees the middle of a wide photo: the map lies there and the borders stay as they are."""
    spec = ImageSpec(resize=50, crop=(40, 40))
    photo = Image.new("RGB", (400, 200), (10, 20, 30))
    box = seen_box(photo.size, spec)
    assert box == (120.0, 20.0, 280.0, 180.0)  # of 100 x 50, pixels 30 to 70 and 5 to 45, times 4
    image = reopened(viz.overlay(photo, torch.tensor([[0.0, 1.0]]), box=box, opacity=1.0, width=400), tmp_path)
    assert image.getpixel((119, 100)) == image.getpixel((281, 100)) == image.getpixel((200, 19)) == (10, 20, 30)
    assert image.getpixel((121, 21)) == BLUE
    assert image.getpixel((279, 179)) == RED


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40), (70, 50)])
@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(resize=(40, 56)),
        ImageSpec(resize=48, crop=(40, 40)),
        ImageSpec(resize=None, crop=(40, 32)),
        ImageSpec(resize=None),
    ],
    ids=str,
)
def test_the_seen_box_is_what_the_crop_keeps(size, spec):
    """Paint what the box holds, and all the network sees is paint; its edges are not outside the box."""
    left, upper, right, lower = (round(side) for side in seen_box(size, spec))
    photo = Image.new("RGB", size, (255, 0, 0))
    inside = (max(left, 0), max(upper, 0), min(right, size[0]), min(lower, size[1]))
    photo.paste((0, 255, 0), inside)
    seen = resize_and_crop(photo, spec)
    reddest = max(seen.getpixel((x, y))[0] for x in range(seen.width) for y in range(seen.height))
    assert reddest < 140  # at most the blend of one pixel at the edge


def test_a_crop_larger_than_the_photo_sees_beyond_it():
    assert seen_box((30, 20), ImageSpec(resize=None, crop=(40, 40))) == (-5.0, -10.0, 35.0, 30.0)
    assert seen_box((90, 60), ImageSpec(resize=(30, 30)), patch=4) == (0, 0, 28 * 3, 28 * 2)


def test_a_map_that_reaches_beyond_the_photo_is_cut_there(tmp_path):
    photo = Image.new("RGB", (20, 20), (9, 9, 9))
    painted = viz.paint(photo, torch.tensor([[0.0, 1.0]]), box=(-20, -20, 40, 40), opacity=1.0)
    assert painted.size == (20, 20)
    assert painted.getpixel((9, 10)) == BLUE
    assert painted.getpixel((10, 10)) == RED


def test_smooth_interpolates_numbers_not_colours():
    painted = viz.paint(Image.new("RGB", (90, 30)), torch.tensor([[0.0, 1.0]]), smooth=True, opacity=1.0)
    assert near(painted.getpixel((45, 15)), GREEN, by=60)  # not violet


def test_small_images_are_enlarged_and_large_ones_stay():
    values = torch.tensor([[0.0, 1.0]])
    small = viz.overlay(Image.new("RGB", (100, 50)), values, box=(50, 0, 100, 50), opacity=1.0)
    assert small.width == 1000
    assert small.getpixel((490, 250)) == (0, 0, 0)
    assert small.getpixel((510, 250)) == BLUE
    assert small.getpixel((990, 490)) == RED
    assert viz.overlay(Image.new("RGB", (1234, 50)), values).width == 1234
    assert viz.overlay(Image.new("RGB", (10, 800)), values).width == 50  # not 80,000 pixels high


def test_the_query_patch_has_a_frame():
    painted = viz.paint(Image.new("RGB", (100, 50)), torch.zeros(1, 2), opacity=1.0, query=(0, 1))
    assert painted.getpixel((50, 25)) == (255, 255, 255)
    assert painted.getpixel((75, 0)) == (255, 255, 255)
    assert painted.getpixel((48, 25)) == (0, 0, 0)
    assert painted.getpixel((75, 25)) == painted.getpixel((25, 25)) == BLUE
    sheet = viz.sheet(torch.zeros(1, 2, 1, 2), ["a"], ["b", "c"], query=(0, 0), tile=100)
    assert (255, 255, 255) in {sheet.getpixel((sheet.width - 70, y)) for y in range(40, sheet.height - 60)}
    with pytest.raises(UsageError, match="1 x 2 patches"):
        viz.paint(Image.new("RGB", (9, 9)), torch.zeros(1, 2), query=(1, 0))


def test_long_titles_are_wrapped_not_cut():
    font = ImageFont.load_default(20)
    for text in ("one two three four five six", "a" * 80, "a b\n" + "long " * 30):
        lines = wrap(text, font, 150)
        assert all(font.getlength(line) <= 150 for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())
    assert wrap("", font, 150) == []
    values, photo = torch.tensor([[0.0, 1.0]]), Image.new("RGB", (1000, 10))
    one, three = (viz.overlay(photo, values, title=title).height for title in ("word", "word " * 150))
    assert three > one + 50


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.13, 0.29, [-0.1, 0, 0.1, 0.2]),
        (3, 48, [10, 20, 30, 40]),
        (0.00011, 0.00042, [0.00015, 0.0002, 0.00025, 0.0003, 0.00035, 0.0004]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert round_ticks(low, high) == expected


def test_a_sheet_is_wide():
    assert viz.sheet(torch.rand(2, 3, 4, 4), ["a", "b"], ["c", "d", "e"]).width >= 2000
    assert viz.sheet(torch.rand(1, 12, 14, 14), ["a"], [str(i) for i in range(12)]).width >= 2000


def test_a_sheet_has_every_map_in_its_place(tmp_path):
    maps = torch.zeros(2, 3, 3, 5)
    maps[..., 0, 0] = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    sheets = {
        scale: reopened(
            viz.sheet(maps, ["layer 0", "layer 1"], ["head 0", "head 1", "head 2"], scale=scale, tile=50, title="t"),
            tmp_path,
        )
        for scale in ("each", "shared")
    }
    for scale, image in sheets.items():
        tiles = find_tiles(image)
        assert len(tiles) == 6
        for (x, y), value in zip(tiles, (1, 2, 3, 4, 5, 6), strict=True):
            expected = RED if scale == "each" else tuple(viz.colormap()[round(value / 6 * 255)].tolist())
            assert near(image.getpixel((x + 4, y + 4)), expected), (scale, value)
            assert image.getpixel((x + 45, y + 25)) == BLUE
            assert image.getpixel((x + 14, y + 25)) == BLUE
    with pytest.raises(ShapeError, match="2 row and 2 column names"):
        viz.sheet(maps, ["a", "b"], ["a", "b"])
    with pytest.raises(UsageError, match="each or shared"):
        viz.sheet(maps, ["a", "b"], ["a", "b", "c"], scale="all")


def find_tiles(image):
    """Upper left corners of the 50 x 30 tiles, by their blue lower edge, row by row."""
    found = []
    for y in range(image.height - 30):
        for x in range(image.width - 50):
            bottom = image.getpixel((x, y + 29)) == BLUE == image.getpixel((x + 49, y + 29))
            paper = (255, 255, 255)
            corner = x and y and image.getpixel((x - 1, y + 29)) == paper and image.getpixel((x, y - 1)) == paper
            if bottom and corner and image.getpixel((x, y)) != paper and image.getpixel((x, y + 30)) == paper:
                found.append((x, y))
    return found


# Terminals


def test_half_blocks_are_two_pixels_a_character():
    image = Image.new("RGB", (4, 4), (0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0))
    image.putpixel((1, 1), (0, 255, 0))
    lines = viz.half_blocks(image, 4).split("\n")
    assert len(lines) == 2
    assert all(line.endswith("\x1b[0m") for line in lines)
    cells = re.findall(r"\x1b\[38;2;(\d+;\d+;\d+)m\x1b\[48;2;(\d+;\d+;\d+)m\u2580", lines[0])
    assert cells == [("0;0;255", "0;0;255"), ("255;0;0", "0;255;0"), ("0;0;255", "0;0;255"), ("0;0;255", "0;0;255")]
    few = viz.half_blocks(image, 4, colours=256)
    assert "\x1b[38;5;196m\x1b[48;5;46m\u2580" in few  # the cube's red and green


def test_without_unicode_a_pixel_is_two_blanks():
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    text = viz.half_blocks(image, 4, unicode=False)
    assert text == "\x1b[48;2;255;0;0m  \x1b[48;2;0;0;255m  \x1b[0m"
    assert text.isascii()


def test_shades_without_colours():
    values = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    assert viz.shades(values) == "  \u2591\u2591\n\u2592\u2592\u2588\u2588"
    assert viz.shades(values, unicode=False) == "  ::\n==@@"


# Block by block


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def test_cells_have_the_colours_of_their_numbers():
    values = torch.tensor([[-2.0, 0.0, 1.0], [2.0, -1.0, 0.001]])
    figure = viz.cells(values, ["a", "b"], ["c 0", "c 1", "c 2"], title="one\ntwo", label="nats")
    ax, bar = figure.axes
    mesh = ax.collections[0]
    found = mesh.to_rgba(mesh.get_array(), bytes=True)[..., :3]
    places = [[0, 128, 191], [255, 64, 128]]  # of -2, 0, 1; 2, -1, 0.001 on a scale from -2 to 2
    assert abs(found.astype(int) - viz.colormap("RdBu_r")[torch.tensor(places)].numpy()).max() <= 3
    assert texts_of(ax) == ["-2.00", "0.00", "1.00", "2.00", "-1.00", "0.00"]
    assert [text.get_color() for text in ax.texts] == ["white", "#222222", "#222222", "white", "#222222", "#222222"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["c 0", "c 1", "c 2"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylim() == (2, 0)  # the first row is above
    assert ax.get_title(loc="left") == "one\ntwo"
    assert bar.get_xlabel() == "nats"
    assert bar.get_xlim() == (-2, 2)
    with pytest.raises(ShapeError, match="2 rows, 2 columns"):
        viz.cells(values, ["a", "b"], ["c", "d"])
    with pytest.raises(ShapeError, match="NaN"):
        viz.cells(values / 0, ["a", "b"], ["c", "d", "e"])
    nothing = viz.cells(torch.zeros(1, 1), ["a"], ["b"]).axes[0].collections[0]
    assert near([int(level) for level in nothing.to_rgba(0.0, bytes=True)[:3]], (247, 247, 247))


def test_an_overlay_with_bounds_of_its_own(tmp_path):
    values = torch.tensor([[0.0, 1.0]])
    options = {"cmap": "RdBu_r", "opacity": 1.0, "bounds": (-1, 1), "width": 40}
    image = reopened(viz.overlay(Image.new("RGB", (40, 20)), values, **options), tmp_path)
    assert near(image.getpixel((5, 5)), (247, 247, 247))
    assert near(image.getpixel((35, 5)), (103, 0, 31))


def test_label_maps_have_a_colour_for_each_label(tmp_path):
    labels = torch.tensor([[[7, 7], [7, 3]], [[3, 3], [3, 7]]])
    photo = Image.new("RGB", (64, 64), (0, 0, 0))
    image = reopened(viz.label_maps(photo, labels, ["a", "b"], {3: "three"}, opacity=1.0, tile=50), tmp_path)
    first, second = (0, 114, 178), (213, 94, 0)
    top = next(y for y in range(image.height) if image.getpixel((70, y)) in (first, second))
    left = [image.getpixel((x, y)) for y in (top + 10, top + 40) for x in (6 + 56 + 10, 6 + 56 + 40)]
    right = [image.getpixel((x, y)) for y in (top + 10, top + 40) for x in (6 + 112 + 10, 6 + 112 + 40)]
    assert len(set(left)) == 2
    assert left[0] == left[1] == left[2] != left[3]
    assert right == [left[3], left[3], left[3], left[0]]  # the same label has the same colour in every tile
    many = torch.arange(16).reshape(1, 4, 4)
    grey = reopened(viz.label_maps(photo, many, ["a"], {}, opacity=1.0, tile=40), tmp_path)
    assert (150, 150, 150) in {colour for _, colour in grey.getcolors(1 << 16)}
    # Colours go by the number of patches, then by index: 15 is grey unless it is asked for.
    last = [(6 + 46 + 35, y) for y in range(grey.height)]
    asked = reopened(viz.label_maps(photo, many, ["a"], {}, always=[99, 15], opacity=1.0, tile=40), tmp_path)
    assert first not in [grey.getpixel(place) for place in last]
    assert first in [asked.getpixel(p) for p in last]
    with pytest.raises(ShapeError, match="2 names"):
        viz.label_maps(photo, many, ["a", "b"], {})


def test_dots_stand_as_high_as_their_numbers():
    values = torch.tensor([[10.0, 1.0], [5.0, 5.0], [0.5, 2.0]])
    figure = viz.dots_by_depth({"distance, pixels": values, "n": values, "m": values}, title="heads")
    assert len(figure.axes) == 3  # of the two by two, the last is taken away
    ax = figure.axes[0]
    assert ax.collections[0].get_offsets().tolist() == [[0, 10], [0, 1], [1, 5], [1, 5], [2, 0.5], [2, 2]]
    assert ax.get_ylim()[0] == 0
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("block", "distance, pixels")
    with pytest.raises(ShapeError):
        viz.dots_by_depth({"n": torch.zeros(3)})
    with pytest.raises(UsageError):
        viz.dots_by_depth({})


# Charts


def test_a_confusion_chart_shades_every_row_by_its_fractions():
    long = "a rather long name of a class <of its own>"
    figure = viz.confusion_chart("a & b", ["cat", long], [[3, 1], [0, 0]])
    ax, bar = figure.axes
    assert ax.collections[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert texts_of(ax) == ["3", "1", "0", "0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", long]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert bar.get_ylabel() == "fraction of the true class"
    with pytest.raises(ShapeError, match="2 rows of 2"):
        viz.confusion_chart("", ["cat", "dog"], [[1, 2]])
    many = viz.confusion_chart("", [str(i) for i in range(40)], [[i] * 40 for i in range(40)])
    assert texts_of(many.axes[0]) == []  # no room for numbers


def test_a_line_chart_has_its_points():
    figure = viz.line_chart("t", "epoch", {"loss": [(0, 2.0), (1, 0.5)], "accuracy": [(0, 0.1)]}, y_label="nats")
    (ax,) = figure.axes
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 2], [1, 0.5]], [[0, 0.1]]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss", "accuracy"]
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == ("t", "epoch", "nats")
    assert ax.get_ylim()[0] == 0
    (logarithmic,) = viz.line_chart("", "", {"a": [(1, 1), (10, 100)]}, log="xy").axes
    assert (logarithmic.get_xscale(), logarithmic.get_yscale()) == ("log", "log")


CURVES = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.8, 0.2]])


def test_curves_of_every_method_and_the_area_below():
    steps = torch.tensor([0.0, 0.5, 1.0])
    images = [Image.new("RGB", (40, 20), color) for color in (BLUE, RED)]
    random = (torch.full((3,), 0.3), torch.full((3,), 0.4))
    figure = viz.curve_sheet(["one", "two"], steps, CURVES, 1 - CURVES, random=random, pictures=images, title="t")
    images_drawn, panels = figure.axes[:2], figure.axes[2:]
    assert [tuple(ax.images[0].get_array()[0, 0]) for ax in images_drawn] == [BLUE, RED]
    assert [ax.get_title(loc="left") for ax in images_drawn] == ["one", "two"]
    assert [line.get_ydata() for line in panels[0].lines] == [pytest.approx(line) for line in (
        [0.3] * 3, [0.4] * 3, [1, 0.5, 0], [0, 0.5, 1])]  # fmt: skip
    # 0.5 (1 + 0.8) / 2 + 0.5 (0.8 + 0.2) / 2 = 0.7
    assert [texts_of(panel) for panel in panels] == [["AUC 0.500", "AUC 0.500"], ["AUC 0.700", "AUC 0.300"]]
    assert panels[0].get_xlabel() == "fraction of patches"
    assert panels[0].get_ylabel() == "score of the class"
    assert panels[0].get_ylim() == panels[1].get_ylim()
    with pytest.raises(ShapeError, match="1 images"):
        viz.curve_sheet(["one", "two"], steps, CURVES, CURVES, random=random, pictures=images[:1])
    with pytest.raises(ShapeError, match="3 names"):
        viz.curve_sheet(["one", "two", "three"], steps, CURVES, CURVES, random=random)


def test_every_chart_draws_into_given_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = list(figure.subplots(2, 3).flat)
    steps, row = torch.tensor([0.0, 0.5, 1.0]), torch.zeros(3)
    assert viz.cells(CURVES, ["a", "b"], ["c", "d", "e"], ax=axes[0]) is figure
    assert viz.line_chart("", "", {"a": [(0, 1)]}, ax=axes[1]) is figure
    assert viz.confusion_chart("", ["a"], [[1]], ax=axes[2]) is figure
    assert viz.dots_by_depth({"n": CURVES}, ax=axes[3:4]) is figure
    assert viz.curve_sheet(["a", "b"], steps, CURVES, CURVES, random=(row, row), ax=axes[4:]) is figure
    assert all(ax.has_data() for ax in axes)
    with pytest.raises(ShapeError, match="1 axes for 2 methods"):
        viz.curve_sheet(["a", "b"], steps, CURVES, CURVES, random=(row, row), ax=axes[:1])
    with pytest.raises(ShapeError, match="2 axes for 1 panels"):
        viz.dots_by_depth({"n": CURVES}, ax=axes[:2])


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_chart_is_saved_by_its_suffix_and_always_the_same(tmp_path, suffix, start):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        viz.save(viz.line_chart("title", "x", {"a": [(0, 1), (1, 2)]}), tmp_path / f"{name}.{suffix}")
    assert dict(matplotlib.rcParams) == before
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data.startswith(start)
    assert data == (tmp_path / f"b.{suffix}").read_bytes()
    if suffix == "png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.width == 1005  # a column of 3.35 inches at 300 dots
    if suffix == "svg":
        assert ">title<" in data.decode()  # text stays text
        assert svg(viz.line_chart("title", "x", {})).startswith("<svg ")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("minivit.viz.style.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'minivit\[plot\]'"):
        viz.line_chart("", "", {})


def test_importing_viz_and_drawing_an_overlay_need_no_matplotlib():
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch; from PIL import Image; from minivit import viz\n"
        "viz.overlay(Image.new('RGB', (8, 8)), torch.eye(2)); viz.sheet(torch.eye(2)[None, None], ['a'], ['b'])"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
