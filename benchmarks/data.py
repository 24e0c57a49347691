"""Images per second from files to training samples, one thread: unimim's path and the usual one, and their ratio.

    python benchmarks/data.py [photographs.zip]

Ours is what a loader worker does for `mae`: guarded decoding, crop, bicubic resizing of uint8, mask. The usual one is Pillow and
torchvision's first transforms: RandomResizedCrop(224, bicubic), flip, ToTensor, Normalize. Both read the same bytes from
memory, in turns of one image, so that a busy machine slows both. Without an argument: made JPEGs of 500 x 375 pixels.
"""

from __future__ import annotations

import argparse
import io
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from unimim import Sampling, load
from unimim.engine.data.decode import decode
from unimim.engine.data.files import read_bytes
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
    usual = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.manual_seed(0)
    seconds = {"ours": 0.0, "usual": 0.0, "decoding alone": 0.0}
    for number in range(options.rounds + 1):
        if number == 1:  # the first round warms up
            seconds = dict.fromkeys(seconds, 0.0)
        for index, data in enumerate(files):
            start = time.process_time()
            sampling(decode(data, "image"), number, index)
            middle = time.process_time()
            with Image.open(io.BytesIO(data)) as image:
                usual(image.convert("RGB"))
            end = time.process_time()
            with Image.open(io.BytesIO(data)) as image:
                image.convert("RGB").load()
            seconds["decoding alone"] += time.process_time() - end
            seconds["ours"] += middle - start
            seconds["usual"] += end - middle
    total = options.rounds * len(files)
    print(", ".join(f"{name} {total / taken:.0f} images/s" for name, taken in seconds.items()))
    print(f"ratio {seconds['usual'] / seconds['ours']:.2f}, {len(files)} images x {options.rounds}")
    print(f"crops that JPEG's half size would serve: {halved(files):.1%}")


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
