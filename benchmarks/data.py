"""Images per second from files to training samples, one thread: unimim's path and the usual one, stores, and their ratios.

    python benchmarks/data.py [photographs.zip]

Ours is what a loader worker does for `mae`: guarded decoding, crop, bicubic resizing of uint8, mask. The usual one is Pillow and
torchvision's first transforms: RandomResizedCrop(224, bicubic), flip, ToTensor, Normalize. Both read the same bytes from
memory, in turns of one image, so that a busy machine slows both. Without an argument: made JPEGs of 500 x 375 pixels.

Then the same bytes lie in a folder, a zip and a tar shard, and are read in random order, in turns of one image: alone, and on
to a sample. All come from the page cache, so this is what a store itself costs, not a disk.

All seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from unimim import Sampling, load
from unimim.engine.data.decode import decode
from unimim.engine.data.files import Store, read_bytes
from unimim.engine.data.shards import write_shards
from unimim.engine.data.sources import open_store
from unimim.views import random_box

SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="a folder, .zip or shards of images")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = read(options.data, options.images) if options.data else made(min(options.images, 50))
    recipe = load("mae", [f"student.image_size={SIZE}"])
    sampling = Sampling(recipe, recipe.student.geometry)
    transforming(files, sampling, options.rounds)
    with tempfile.TemporaryDirectory(prefix="unimim-data-") as folder:
        storing(laid_out(files, Path(folder)), sampling, options.rounds)


def transforming(files: list[bytes], sampling: Sampling, rounds: int) -> None:
    """Ours against the usual way, from bytes in memory, and decoding by itself."""
    usual = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.manual_seed(0)
    seconds: Counter[str] = Counter()
    for number in range(rounds + 1):
        if number == 1:  # the first round warms up
            seconds.clear()
        for index, data in enumerate(files):
            with timed(seconds, "ours"):
                sampling(decode(data, "image"), number, index)
            with timed(seconds, "usual"), Image.open(io.BytesIO(data)) as image:
                usual(image.convert("RGB"))
            with timed(seconds, "decoding alone"), Image.open(io.BytesIO(data)) as image:
                image.convert("RGB").load()
            with timed(seconds, "decoding at half size"), Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", (image.width // 2, image.height // 2))
                image.convert("RGB").load()
    show(seconds, rounds * len(files), to="usual")
    share, saved = halved(files), (seconds["decoding alone"] - seconds["decoding at half size"]) / seconds["ours"]
    print(
        f"{share:.1%} of crops could be cut from JPEG's half size (draft), which would save {share * saved:.1%} of ours\n"
    )


def storing(stores: dict[str, Store], sampling: Sampling, rounds: int) -> None:
    """Stores of the same images against each other: reading alone, then reading, decoding and sampling."""
    reads: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    rng, count = np.random.default_rng(0), len(stores["files"].paths)
    for number in range(rounds + 1):
        if number == 1:
            reads.clear()
            samples.clear()
        for index in map(int, rng.permutation(count)):
            for name in rng.permutation([*stores]):
                with timed(reads, name):
                    read_bytes(stores[name], index)
            for name in rng.permutation([*stores]):
                with timed(samples, name):
                    sampling(decode(read_bytes(stores[name], index), "image"), number, index)
    show({f"reading {name}": reads[name] for name in stores}, rounds * count, to="reading files")
    show({f"sampling {name}": samples[name] for name in stores}, rounds * count, to="sampling files")


def laid_out(files: list[bytes], folder: Path) -> dict[str, Store]:
    """The same files in a folder, in a zip that does not compress, and in tar shards."""
    (folder / "files").mkdir()
    with zipfile.ZipFile(folder / "files.zip", "w") as archive:
        for number, data in enumerate(files):
            (folder / "files" / f"{number:06d}.jpg").write_bytes(data)
            archive.writestr(f"{number:06d}.jpg", data)
    write_shards(open_store(str(folder / "files")), folder / "shards")
    names = {"files": "files", "zip": "files.zip", "shards": "shards"}
    return {name: open_store(str(folder / path)) for name, path in names.items()}


@contextmanager
def timed(seconds: Counter[str], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds[name] += time.process_time() - start  # type: ignore[assignment]


def show(seconds: Mapping[str, float], images: int, to: str) -> None:
    for name, taken in seconds.items():
        print(f"{name:<22} {images / taken:>8.0f} images/s   x {seconds[to] / taken:.2f}")


def read(spec: str, count: int) -> list[bytes]:
    store = open_store(spec)
    return [read_bytes(store, place) for place in range(min(count, len(store.paths)))]


def made(count: int) -> list[bytes]:
    """JPEGs of smooth noise with edges."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (375, 500, 1))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def halved(files: list[bytes]) -> float:
    """Share of crops whose box has twice SIZE on both sides."""
    rng, found = np.random.default_rng(0), []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            boxes = [random_box(image.height, image.width, (0.2, 1.0), (3 / 4, 4 / 3), rng) for _ in range(20)]
        found += [min(height, width) >= 2 * SIZE for _, _, height, width in boxes]
    return float(np.mean(found))


if __name__ == "__main__":
    main()
