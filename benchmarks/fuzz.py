"""Mutated files against the readers: no exception but the documented ones, no hang, bounded memory.

python benchmarks/fuzz.py images            2,000 images: bytes flipped, cut and spliced, of each format
python benchmarks/fuzz.py images --count 200 --seed 7

Every image is read in a child process that a timer kills after 10 s. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import signal
import sys
import time
from collections import Counter
from io import BytesIO
from typing import Any

LIMIT_S = 10
LIMIT_MIB = 1024
CHUNK = 200  # images of one child process


def seeds() -> dict[str, bytes]:
    """Return one valid file of every format, some with profiles, EXIF, alpha, 16 bits or pages."""
    from PIL import Image, ImageCms

    rng = random.Random(0)
    rgb = Image.frombytes("RGB", (48, 32), rng.randbytes(48 * 32 * 3))
    deep = Image.frombytes("I;16", (48, 32), rng.randbytes(48 * 32 * 2))
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274] = 6
    pages: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(180)]}
    files = {
        "jpeg": (rgb, "JPEG", {"icc_profile": icc, "exif": exif}),
        "progressive jpeg": (rgb, "JPEG", {"progressive": True}),
        "mpo": (rgb, "MPO", pages),
        "png": (rgb, "PNG", {"icc_profile": icc, "exif": exif}),
        "palette png": (rgb.quantize(16), "PNG", {"transparency": 3}),
        "16-bit png": (deep, "PNG", {}),
        "apng": (rgb.convert("RGBA"), "PNG", pages),
        "webp": (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        "gif": (rgb, "GIF", pages),
        "bmp": (rgb, "BMP", {}),
        "tiff": (rgb, "TIFF", {**pages, "icc_profile": icc}),
        "deflate tiff": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg tiff": (rgb, "TIFF", {"compression": "jpeg"}),
        "avif": (rgb, "AVIF", {}),
        "jpeg 2000": (rgb, "JPEG2000", {}),
        "ico": (rgb.convert("RGBA"), "ICO", {}),
        "ppm": (rgb, "PPM", {}),
        "tga": (rgb, "TGA", {}),
    }
    found = {}
    for name, (image, kind, options) in files.items():
        file = BytesIO()
        more = {key: [one.copy() for one in value] for key, value in options.items() if key == "append_images"}
        image.copy().save(file, kind, **{**options, **more})  # a save leaves settings of its format in an image
        found[name] = file.getvalue()
    return found


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return data with bytes flipped or overwritten, cut, doubled, or spliced with another file."""
    out = bytearray(data)
    way = rng.randrange(5)
    if way == 0:  # anywhere
        for _ in range(rng.choice((1, 3, 10, 50))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif way == 1:  # in the header
        for _ in range(rng.choice((1, 2, 5))):
            out[rng.randrange(min(64, len(out)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif way == 2:
        del out[rng.randrange(len(out)) :]
    elif way == 3:
        start, end = sorted(rng.randrange(len(out)) for _ in range(2))
        out[start:start] = out[start:end] * rng.choice((1, 1, 20))
    else:
        other = rng.choice(others)
        out[rng.randrange(len(out)) :] = other[rng.randrange(len(other)) :]
    return bytes(out)


def image(index: int, seed: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the format and the bytes of mutated image `index`."""
    rng = random.Random(f"{seed}/{index}")
    name = list(files)[index % len(files)]
    return name, mutated(files[name], list(files.values()), rng)


def read(start: int, stop: int, seed: int, results: Any) -> None:
    """Read images in a child process; put (index, outcome, seconds, peak MiB) of each one."""
    from minivit.errors import ImageError
    from minivit.images.decode import open_image

    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even inside a decoder
    files = seeds()
    for index in range(start, stop):
        _, data = image(index, seed, files)
        signal.alarm(LIMIT_S)
        began = time.monotonic()
        try:
            open_image(BytesIO(data), icc="convert", warn=lambda line: None)
            outcome = "read"
        except ImageError as error:
            outcome = error.code
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        signal.alarm(0)
        results.send((index, outcome, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def fuzz_images(count: int, seed: int) -> int:
    """Print every failure and one line of summary; return the exit code."""
    import torch  # noqa: F401 (part of the memory of every process that reads images)

    codes: Counter[str] = Counter()
    failures, slowest, peak, index = [], 0.0, 0, 0
    names = list(seeds())
    context = multiprocessing.get_context("fork")
    while index < count:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=read, args=(index, min(index + CHUNK, count), seed, sender))
        child.start()
        sender.close()
        try:
            while True:
                index, outcome, took, mib = receiver.recv()
                slowest, peak = max(slowest, took), max(peak, mib)
                codes[outcome.partition(":")[0]] += 1
                if ":" in outcome or mib > LIMIT_MIB:
                    failures.append(f"image {index} ({names[index % len(names)]}): {outcome}, {took:.1f} s, {mib} MiB")
                index += 1
        except EOFError:
            child.join()
        if child.exitcode:
            why = f"no end within {LIMIT_S} s" if child.exitcode == -signal.SIGALRM else f"exit {child.exitcode}"
            failures.append(f"image {index} ({names[index % len(names)]}): {why}")
            index += 1
    print("\n".join(failures), end="\n" if failures else "")
    outcomes = ", ".join(f"{number} {code}" for code, number in codes.most_common())
    print(f"seed {seed}, {count} images of {len(names)} kinds: {outcomes}; {len(failures)} failures; "
          f"slowest {slowest:.2f} s, peak {peak} MiB")  # fmt: skip
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images",))
    parser.add_argument("--count", type=int, default=2000, help="mutated files (2000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    return fuzz_images(args.count, args.seed)


if __name__ == "__main__":
    sys.exit(main())
