"""Pictures, opened again, with the pixels checked where the answer is known."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from minivit import viz
from minivit.errors import ShapeError, UsageError
from minivit.images.preprocess import resize_and_crop, seen_box
from minivit.images.spec import ImageSpec

BLUE, GREEN, RED = (0, 0, 255), (0, 255, 0), (255, 0, 0)


def reopened(image, tmp_path):
    image.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as again:
        assert again.format == "PNG"
        assert again.mode == "RGB"
        return again.copy()


def near(pixel, expected, by=3):
    return all(abs(a - b) <= by for a, b in zip(pixel, expected, strict=True))


def test_much_is_red_and_little_is_blue():
    ramp = viz.ramp()
    assert ramp.shape == (256, 3)
    assert ramp.dtype == torch.uint8
    assert tuple(ramp[0].tolist()) == BLUE
    assert tuple(ramp[255].tolist()) == RED
    assert near(ramp[127].tolist(), GREEN, by=5)
    with pytest.raises(UsageError, match="blue-red, cubehelix"):
        viz.ramp("jet")


def test_cubehelix_rises_evenly_in_lightness():
    ramp = viz.ramp("cubehelix").double()
    assert ramp[0].tolist() == [0, 0, 0]
    assert ramp[255].tolist() == [255, 255, 255]
    # Green 2011, equation 2: whatever the hue, the perceived brightness is the value itself.
    brightness = ramp @ torch.tensor([0.30, 0.59, 0.11], dtype=torch.float64)
    assert (brightness - torch.arange(256)).abs().max() < 2.5
    assert (brightness.diff() > 0).all()


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
    image = reopened(viz.overlay(photo, values, opacity=1.0, title="a title"), tmp_path)
    assert image.width == 300
    assert image.height > 200
    assert image.getpixel((5, 5)) == BLUE
    assert image.getpixel((99, 99)) == BLUE
    assert image.getpixel((101, 101)) == RED
    assert image.getpixel((199, 199)) == RED
    assert near(image.getpixel((250, 50)), GREEN, by=5)
    assert near(image.getpixel((250, 150)), GREEN, by=5)
    half = reopened(viz.overlay(photo, values, opacity=0.5), tmp_path)
    assert near(half.getpixel((5, 5)), (50, 30, 148))
    assert near(half.getpixel((150, 150)), (178, 30, 20))
    none = reopened(viz.overlay(photo, values, opacity=0.0), tmp_path)
    assert none.crop((0, 0, 300, 200)).tobytes() == photo.tobytes()
    with pytest.raises(UsageError, match="opacity"):
        viz.overlay(photo, values, opacity=2)


def test_the_strip_has_a_bar_from_blue_to_red_and_text(tmp_path):
    photo = Image.new("RGB", (400, 100))
    image = reopened(viz.overlay(photo, torch.tensor([[0.25, 0.75]]), title="one\ntwo"), tmp_path)
    rows = [[image.getpixel((x, y)) for x in range(400)] for y in range(101, image.height)]
    bars = [row for row in rows if BLUE in row and RED in row]
    assert len(bars) >= 9
    assert bars[0].index(BLUE) < bars[0].index(RED)
    assert any((34, 34, 34) in row for row in rows)
    quiet = viz.overlay(photo, torch.tensor([[0.25, 0.75]]))
    assert image.height > quiet.height  # one line of title less


def test_three_maps_are_red_green_and_blue(tmp_path):
    photo = Image.new("RGB", (60, 40))
    components = torch.zeros(2, 3, 3)
    components[0, 0, 0], components[1, 2, 1], components[0, 2, 2] = 5.0, -7.0, 0.5
    image = reopened(viz.overlay(photo, components, opacity=1.0), tmp_path)
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
    image = reopened(viz.overlay(photo, torch.tensor([[0.0, 1.0]]), box=box, opacity=1.0), tmp_path)
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
    assert near(painted.getpixel((45, 15)), GREEN, by=40)  # not violet


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
            expected = RED if scale == "each" else tuple(viz.ramp()[round(value / 6 * 255)].tolist())
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
    image = Image.new("RGB", (4, 4), BLUE)
    image.putpixel((1, 0), RED)
    image.putpixel((1, 1), GREEN)
    lines = viz.half_blocks(image, 4).split("\n")
    assert len(lines) == 2
    assert all(line.endswith("\x1b[0m") for line in lines)
    cells = re.findall(r"\x1b\[38;2;(\d+;\d+;\d+)m\x1b\[48;2;(\d+;\d+;\d+)m\u2580", lines[0])
    assert cells == [("0;0;255", "0;0;255"), ("255;0;0", "0;255;0"), ("0;0;255", "0;0;255"), ("0;0;255", "0;0;255")]
    few = viz.half_blocks(image, 4, colours=256)
    assert "\x1b[38;5;196m\x1b[48;5;46m\u2580" in few  # the cube's red and green


def test_without_unicode_a_pixel_is_two_blanks():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    text = viz.half_blocks(image, 4, unicode=False)
    assert text == "\x1b[48;2;255;0;0m  \x1b[48;2;0;0;255m  \x1b[0m"
    assert text.isascii()


def test_shades_without_colours():
    values = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    assert viz.shades(values) == "  \u2591\u2591\n\u2592\u2592\u2588\u2588"
    assert viz.shades(values, unicode=False) == "  ::\n==@@"


# Block by block


def test_cells_have_the_colours_of_their_numbers(tmp_path):
    values = torch.tensor([[-2.0, 0.0, 1.0], [2.0, -1.0, 0.001]])
    image = reopened(viz.cells(values, ["a", "b"], ["c 0", "c 1", "c 2"], title="one\ntwo"), tmp_path)
    blue, white, red = (tuple(viz.ramp("blue-white-red")[i].tolist()) for i in (0, 127, 255))
    assert near(blue, (33, 102, 172))
    assert near(white, (255, 255, 255))
    assert near(red, (178, 24, 43))
    half = viz.ramp("blue-white-red")[191].tolist()

    def widest(colour, by=2):
        """Where a row has most of a colour outside of the bar, which holds every colour."""
        rows = [[x for x in range(image.width) if near(image.getpixel((x, y)), colour, by)] for y in range(95)]
        row = max(rows, key=len)
        return row[0], rows.index(row), len(row)

    (x0, y0, _), (x1, y1, _), (x2, y2, _) = widest(blue), widest(red), widest(half)
    assert x0 == x1 < x2
    assert y0 == y2 < y1
    bar = [image.getpixel((x, image.height - 35)) for x in range(image.width)]
    assert blue in bar
    assert red in bar
    assert bar.index(blue) < bar.index(red)
    with pytest.raises(ShapeError, match="2 rows, 2 columns"):
        viz.cells(values, ["a", "b"], ["c", "d"])
    with pytest.raises(ShapeError, match="NaN"):
        viz.cells(values / 0, ["a", "b"], ["c", "d", "e"])
    nothing = viz.cells(torch.zeros(1, 1), ["a"], ["b"])
    assert near(nothing.getpixel((nothing.width // 2, 50)), (255, 255, 255))


def test_ramps_of_white_end_where_they_say():
    white_red, away = viz.ramp("white-red"), viz.ramp("red-white-blue")
    assert white_red[0].tolist() == [255, 255, 255]
    assert white_red[255].tolist() == [178, 24, 43]
    assert torch.equal(away.flip(0), viz.ramp("blue-white-red"))


def test_an_overlay_with_bounds_of_its_own(tmp_path):
    values = torch.tensor([[0.0, 1.0]])
    options = {"colours": "blue-white-red", "opacity": 1.0, "bounds": (-1, 1)}
    image = reopened(viz.overlay(Image.new("RGB", (40, 20)), values, **options), tmp_path)
    assert near(image.getpixel((5, 5)), (255, 255, 255))
    assert near(image.getpixel((35, 5)), (178, 24, 43))


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


def test_dots_stand_as_high_as_their_numbers(tmp_path):
    values = torch.tensor([[10.0, 1.0], [5.0, 5.0]])
    image = reopened(viz.dots_by_depth({"n": values}), tmp_path)
    dots = [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == (0, 114, 178)]
    middle = image.width / 2
    left, right = [y for x, y in dots if x < middle], [y for x, y in dots if x > middle]
    low, high = max(left), min(left)
    assert high < min(right)
    assert max(right) < low
    # 10 is the top of the axis and 1 a tenth of it: 5 stands 4/9 of the way from 1 to 10.
    assert (low - max(right)) / (max(left) - max(y for y in left if y < (low + high) / 2)) == pytest.approx(
        4 / 9, abs=0.05
    )
    with pytest.raises(ShapeError):
        viz.dots_by_depth({"n": torch.zeros(3)})
    with pytest.raises(UsageError):
        viz.dots_by_depth({})


# Charts


def test_a_confusion_chart_shades_every_row_by_its_shares():
    long = "a rather long name of a class <of its own>"
    root = ElementTree.fromstring(viz.confusion_chart("a & b", ["cat", long], [[3, 1], [0, 0]]))
    svg = "{http://www.w3.org/2000/svg}"
    cells = [rect.get("fill-opacity") for rect in root.iter(f"{svg}rect") if rect.get("fill-opacity")]
    assert cells == ["0.750", "0.250", "0.000", "0.000"]
    texts = {text.text: text for text in root.iter(f"{svg}text") if text.get("text-anchor") == "end"}
    assert list(texts) == ["cat", long]
    assert float(texts[long].get("x")) > 6 * len(long)


def test_curves_stand_where_their_numbers_are(tmp_path):
    shares = torch.linspace(0, 1, 5)
    low, high = torch.full((1, 5), 0.25), torch.full((1, 5), 1.0)
    image = reopened(
        viz.curve_sheet(["m" * 99], shares, low, high, random=(low[0] * 2, low[0] * 2), title="t" * 999), tmp_path
    )
    assert image.width == 860
    blue, red, grey = (
        [y for y in range(60, image.height) if near(image.getpixel((100, y)), colour, 40)]
        for colour in ((0, 114, 178), (213, 94, 0), (150, 150, 150))
    )
    # One tile: 1 at the top of the chart, 0.5 at its middle, 0.25 at three quarters of its 120 pixels.
    assert grey[0] - red[0] == pytest.approx(59, abs=2)
    assert blue[0] - red[0] == pytest.approx(88, abs=2)
    with pytest.raises(ShapeError, match="2 names"):
        viz.curve_sheet(["a", "b"], shares, low, high, random=(low[0], low[0]))
