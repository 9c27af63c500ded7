"""Images per second and core: decoding alone, the loader, and a torchvision pipeline; and memory over time.

    python benchmarks/loader.py DATA --json

DATA is a folder of images or of shards, or a pattern or URL of shards. Settings are those of a run on
ImageNet: the published recipe, JPEGs decoded smaller where its smallest crop allows. Four things are
measured, each by 1 and by 2 processes, in turns, so that a busy moment strikes all alike:

`decode`    The decoder alone, as fast as it goes: each process calls simplejpeg (for what is no JPEG, Pillow)
            on files that it has read before, at the size the loader asks for, and drops the pixels. No file
            is opened, no header looked at, nothing handed over.
`ours`      `vpt_vision.data.Loader` with that many worker processes: shuffled, files read from the source,
            checked, turned upright, packed, handed to this process, which drops them. No more is left to the
            CPU: a GPU renders the views.
`peer`      torch's `DataLoader` with that many workers, in which torchvision's v2 transforms render the views
            of the same recipe: 2 of 224 and 8 of 96 pixels, jittered, greyed, blurred, solarised and
            normalised. On uint8 tensors from torchvision's decoder.
`peer_pil`  The same on Pillow's images, as DINO's and DINOv2's own code has it.

A rate is the images of a whole number of rounds of all workers, by the wall's clock, over the workers. Memory
is what this process and its workers hold together while batches are taken, in proportional shares (PSS):
pages that several share count once, where resident sizes (RSS) would count them in each. Pages of files are
left out: they are libraries', and their share changes with whatever else runs on the machine. Its slope is
Theil and Sen's, the median over all pairs of readings, after 200 batches, in which the workers come to their
full size. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from importlib.metadata import version
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import simplejpeg
import torch
from decode import cpu
from PIL import Image
from scipy.stats import theilslopes
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from vpt_vision.config import RecipeConfig
from vpt_vision.data import Loader
from vpt_vision.data import image as our_image
from vpt_vision.data.config import DataConfig
from vpt_vision.data.stored import StoredSource
from vpt_vision.data.tools.opening import open_source
from vpt_vision.errors import UserError

WORKERS = (1, 2)
ROUNDS_BEFORE = 6  # of all workers, that nobody times: their memory comes to its size
PEER_BATCH = 16  # the peer is slow, and its rate the same for any size
FILES = 500  # that decoding alone goes through
BEFORE = 200  # batches whose memory is not looked at
EVERY = 20  # batches between two readings of memory
KINDS = ("decode", "ours", "peer", "peer_pil")


class Setting(NamedTuple):
    """What is measured."""

    source: StoredSource
    recipe: RecipeConfig
    batch_size: int
    seconds: float  # that a turn lasts at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="a folder of images or of shards, or a pattern or URL of shards")
    parser.add_argument("settings", nargs="*", help="settings of the source, such as classes=10")
    parser.add_argument("--turns", type=int, default=5, help="turns of each")
    parser.add_argument("--seconds", type=float, default=2.5, help="that each takes in a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--memory-batches", type=int, default=2000, help="0 leaves memory out")
    parser.add_argument("--memory-batch-size", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print the last line, and it alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RecipeConfig()
    try:
        source = open_source(arguments.source, arguments.settings, recipe.shorter_side())
    except UserError as error:
        parser.error(str(error))
    setting = Setting(source, recipe, arguments.batch_size, arguments.seconds)
    rates = measure(setting, arguments.turns)
    memory = watch_memory(
        setting._replace(batch_size=arguments.memory_batch_size), arguments.memory_batches, max(WORKERS)
    )
    found = {
        **{kind: {str(w): summary(rates[kind, w]) for w in WORKERS} for kind in KINDS},
        "ours_over_decode": ratios(rates, "ours", "decode"),
        "ours_over_peer": ratios(rates, "ours", "peer"),
        "memory": memory,
        "images": len(source),
        "batch_size": arguments.batch_size,
        "shorter_side": recipe.shorter_side(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "pillow", "simplejpeg", "numpy")
        },
    }
    if not arguments.json:
        print(table(found))
    print(json.dumps(found))


def measure(setting: Setting, turns: int) -> dict[tuple[str, int], list[float]]:
    """Images per second and worker of each kind and number of workers, a figure a turn."""
    ways: dict[str, Callable[[Setting, int], float]] = {
        "decode": decode_rate,
        "ours": our_rate,
        "peer": lambda setting, workers: peer_rate(setting, workers, Peer),
        "peer_pil": lambda setting, workers: peer_rate(setting, workers, PillowPeer),
    }
    rates: dict[tuple[str, int], list[float]] = {(kind, w): [] for kind in KINDS for w in WORKERS}
    for turn in range(turns):
        for kind in KINDS if turn % 2 else reversed(KINDS):
            for workers in WORKERS:
                rates[kind, workers].append(ways[kind](setting, workers))
    return rates


def decode_rate(setting: Setting, workers: int) -> float:
    context = multiprocessing.get_context("fork")  # the files are read once, and shared
    count = min(len(setting.source), FILES)
    files = [bare(setting.source.stored(index).image, setting.source.at_least) for index in range(count)]
    start, rates = context.Barrier(workers), context.SimpleQueue()

    def work() -> None:
        for decode in files[:20]:
            decode()
        start.wait()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < setting.seconds:
            files[done % count]()
            done += 1
        rates.put(done / (time.perf_counter() - began))

    processes = [context.Process(target=work) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [rates.get() for _ in processes]
    for process in processes:
        process.join()
    return statistics.mean(found)


def bare(data: bytes, at_least: int | None) -> Callable[[], Any]:
    """Decode a file by the decoder itself, to the size that the loader would ask for."""
    stored = our_image.open_image(data)
    if stored.format != "JPEG" or stored.mode == "CMYK":
        return lambda: Image.open(BytesIO(data)).convert("RGB")
    scale = our_image.jpeg_scale(stored, at_least)
    height, width = -(-stored.height // scale), -(-stored.width // scale)
    return lambda: simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)


def our_rate(setting: Setting, workers: int) -> float:
    loader = Loader(setting.source, batch_size=setting.batch_size, seed=0, workers=workers)
    with closing(iter(loader)) as batches:
        return rate(batches, setting.batch_size, workers, setting.seconds)


def peer_rate(setting: Setting, workers: int, kind: type[Peer]) -> float:
    loader = DataLoader(
        kind(setting.source, setting.recipe),
        batch_size=PEER_BATCH,
        sampler=endless(len(setting.source)),
        num_workers=workers,
    )
    batches = iter(loader)
    found = rate(batches, PEER_BATCH, workers, setting.seconds, rounds_before=1)
    del batches  # ends the workers
    return found


def rate(
    batches: Iterator[Any], batch_size: int, workers: int, seconds: float, rounds_before: int = ROUNDS_BEFORE
) -> float:
    """Images per second and worker: rounds are whole, as workers deliver in turn."""
    for _ in islice(batches, rounds_before * workers):
        pass
    began, rounds = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        for _ in islice(batches, workers):
            pass
        rounds += 1
    return rounds * batch_size / took


def endless(count: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


class Peer(Dataset[list[torch.Tensor]]):
    """All views of an image by torchvision's v2 transforms, on uint8 tensors."""

    def __init__(self, source: StoredSource, recipe: RecipeConfig) -> None:
        self.source = source
        self.views = [
            self.view(recipe, kind.size, kind.scale, kind.blur_p[view], kind.solarize_p[view])
            for kind in recipe.view_kinds()
            for view in range(kind.views)
        ]

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        image = self.read(self.source.stored(index).image)
        return [view(image) for view in self.views]

    def read(self, data: bytes) -> Any:
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    def view(
        self, recipe: RecipeConfig, size: int, scale: tuple[float, float], blur_p: float, solarize_p: float
    ) -> v2.Transform:
        crops, photometrics = recipe.crops, recipe.photometrics
        jitter = v2.ColorJitter(
            photometrics.brightness, photometrics.contrast, photometrics.saturation, photometrics.hue
        )
        steps: list[v2.Transform] = [
            v2.RandomResizedCrop(size, scale, crops.ratio, v2.InterpolationMode(crops.interpolation)),
            v2.RandomHorizontalFlip(photometrics.flip_p),
            v2.RandomApply([jitter], photometrics.jitter_p),
            v2.RandomGrayscale(photometrics.grey_p),
            v2.RandomApply([v2.GaussianBlur(9, photometrics.blur_sigma)], blur_p),
            v2.RandomSolarize(round(255 * photometrics.solarize_threshold), solarize_p),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(DataConfig.model_fields["mean"].default, DataConfig.model_fields["std"].default),
        ]
        return v2.Compose(steps)


class PillowPeer(Peer):
    """The same on Pillow's images."""

    def read(self, data: bytes) -> Any:
        return Image.open(BytesIO(data)).convert("RGB")


def watch_memory(setting: Setting, count: int, workers: int) -> dict[str, float] | None:
    """How memory goes over `count` batches; None for no batch, and where the system does not tell."""
    if not count or not Path("/proc/self/smaps_rollup").exists():
        return None
    readings: list[tuple[int, float]] = []
    loader = Loader(setting.source, batch_size=setting.batch_size, seed=0, workers=workers)
    with closing(iter(loader)) as batches:
        for number, _ in enumerate(islice(batches, BEFORE + count + 1)):
            if number >= BEFORE and (number - BEFORE) % EVERY == 0:
                readings.append((number, held_mib()))
    x, y = zip(*readings, strict=True)
    slope, _, low, high = theilslopes(y, x)
    return {
        "slope_mib_per_1000_batches": round(1000 * slope, 3),
        "low": round(1000 * low, 3),  # 95 % interval
        "high": round(1000 * high, 3),
        "first_mib": round(statistics.median(y[:10]), 1),
        "last_mib": round(statistics.median(y[-10:]), 1),
        "batches": count,
        "batch_size": setting.batch_size,
        "workers": workers,
    }


def held_mib() -> float:
    """Proportional shares of this process and its workers, MiB."""
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    kilobytes = 0
    for process in processes:
        rollup = (Path("/proc") / process / "smaps_rollup").read_text()
        shares = dict(line.split()[:2] for line in rollup.splitlines()[1:])
        kilobytes += int(shares["Pss_Anon:"]) + int(shares["Pss_Shmem:"])
    return kilobytes / 1024


def summary(rates: list[float]) -> dict[str, float]:
    return {
        "images_per_second_and_core": round(statistics.median(rates), 1),
        "min": round(min(rates), 1),
        "max": round(max(rates), 1),
    }


def ratios(rates: dict[tuple[str, int], list[float]], over: str, under: str) -> dict[str, dict[str, float]]:
    """Turn by turn."""
    found = {}
    for workers in WORKERS:
        pairs = zip(rates[over, workers], rates[under, workers], strict=True)
        each = [one / other for one, other in pairs]
        found[str(workers)] = {
            "median": round(statistics.median(each), 3),
            "min": round(min(each), 3),
            "max": round(max(each), 3),
        }
    return found


def table(found: dict[str, Any]) -> str:
    head = [f"{w} worker{'s' if w > 1 else ''}" for w in WORKERS]
    lines = [f"| images per second and core | {' | '.join(head)} |", "| --- | ---: | ---: |"]
    for kind in KINDS:
        cells = [
            f"{row['images_per_second_and_core']:.1f} [{row['min']:.1f}, {row['max']:.1f}]"
            for row in found[kind].values()
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for name in ("ours_over_decode", "ours_over_peer"):
        cells = [f"{row['median']:.2f} [{row['min']:.2f}, {row['max']:.2f}]" for row in found[name].values()]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    memory = found["memory"]
    if memory is not None:
        lines.append("")
        slope, low, high = (memory[key] for key in ("slope_mib_per_1000_batches", "low", "high"))
        lines.append(
            f"Memory over {memory['batches']} batches of {memory['batch_size']}, {memory['workers']} "
            f"workers: {slope:+.2f} [{low:+.2f}, {high:+.2f}] MiB per 1,000 batches, from "
            f"{memory['first_mib']} to {memory['last_mib']} MiB."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
