"""Compare JPEG decoders: images a second and core, and what they make of damaged files.

    python benchmarks/decode.py FOLDER_OR_TAR --json

Every decoder that is installed reads the same bytes into RGB on one thread, at full size and at 1/2, 1/4 and
1/8 where it can scale while it decodes. Each runs over all images in turn, in an order reversed from turn
to turn, so that a busy moment strikes all alike; counted is processor time. The last line is one JSON object.

Not required by the project, and measured where they are: `PyTurboJPEG` (it needs libturbojpeg),
`opencv-python-headless`, `torchcodec`, and nvJPEG through torchvision on a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, features
from torchvision.io import ImageReadMode, decode_image, decode_jpeg

from vpt_vision.data import image as ours

SCALES = (1, 2, 4, 8)
SUFFIXES = (".jpg", ".jpeg")
BATCH = 16  # images held at a time


class Photo(NamedTuple):
    """One JPEG and its sides."""

    data: bytes
    height: int
    width: int


class Decoder(NamedTuple):
    """One way to read JPEGs."""

    read: Callable[[list[Photo], int], list[Any]]  # photos at a scale, to [H, W, 3] or [3, H, W] uint8 each
    scales: bool  # whether it takes a scale other than 1
    clock: Callable[[], float] = time.process_time  # a core's own time: other processes do not count


def each(read: Callable[[Photo, int], Any], *, scales: bool) -> Decoder:
    return Decoder(lambda photos, scale: [read(photo, scale) for photo in photos], scales)


class Row(NamedTuple):
    """What is told of a decoder at a scale."""

    decoder: str
    scale: int
    images_per_second: float | None  # median over the turns; None where it was not measured
    p20: float | None
    p80: float | None
    largest_difference: int | None  # from Pillow's pixels, at full size
    cut_refused: float | None  # share of files refused that end halfway
    hole_refused: float | None  # share of files refused in which 500 bytes are missing in the middle
    note: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="a folder of JPEGs, or a tar of them")
    parser.add_argument("--turns", type=int, default=15, help="runs over all images, each decoder")
    parser.add_argument("--limit", type=int, default=200, help="images at most")
    parser.add_argument(
        "--turbojpeg", help="path of libturbojpeg.so, where it is not in the system's folders"
    )
    parser.add_argument("--json", action="store_true", help="print the last line as JSON, and it alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = list(read(arguments.source))[: arguments.limit]
    if not photos:
        parser.error(f"{arguments.source} holds no JPEG")
    decoders, absent = gather(arguments.turbojpeg)
    rows = measure(decoders, photos, arguments.turns) + [
        Row(name, 1, None, None, None, None, None, None, note) for name, note in absent.items()
    ]
    if not arguments.json:
        print(table(rows))
    setting = {
        "images": len(photos),
        "median_pixels": int(statistics.median(photo.height * photo.width for photo in photos)),
        "median_bytes": int(statistics.median(len(photo.data) for photo in photos)),
        "turns": arguments.turns,
        "cpu": cpu(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    print(json.dumps({**setting, "rows": [row._asdict() for row in rows]}))


def read(source: Path) -> Iterator[Photo]:
    """Read all JPEGs of a folder, or of a tar, in the order of their names."""
    if source.is_dir():
        files = [path.read_bytes() for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES]
    else:
        with tarfile.open(source) as tar:
            members = sorted(tar.getmembers(), key=lambda member: member.name)
            files = [
                file.read()
                for member in members
                if member.name.lower().endswith(SUFFIXES) and (file := tar.extractfile(member))
            ]
    for data in files:
        width, height = Image.open(BytesIO(data)).size
        yield Photo(data, height, width)


def gather(turbojpeg: str | None) -> tuple[dict[str, Decoder], dict[str, str]]:
    """Give the decoders that run here, and why the others do not."""

    def tensor(photo: Photo) -> torch.Tensor:
        return torch.frombuffer(bytearray(photo.data), dtype=torch.uint8)

    def pillow(photo: Photo, scale: int) -> Any:
        image = Image.open(BytesIO(photo.data))
        image.draft("RGB", (photo.width // scale, photo.height // scale))
        return np.asarray(image.convert("RGB"))

    def simple(photo: Photo, scale: int, **options: Any) -> Any:
        least = {"min_height": -(-photo.height // scale), "min_width": -(-photo.width // scale)}
        return simplejpeg.decode_jpeg(photo.data, "RGB", **least, **options)

    def shrunk(photo: Photo, scale: int) -> Any:
        return ours.decode_image("", photo.data, -(-min(photo.height, photo.width) // scale))

    decoders = {
        "vpt_vision decode_image": each(shrunk, scales=True),
        "simplejpeg": each(simple, scales=True),
        "simplejpeg, fast DCT and upsampling": each(
            lambda photo, scale: simple(photo, scale, fastdct=True, fastupsample=True), scales=True
        ),
        "torchvision decode_jpeg": each(
            lambda photo, _: decode_jpeg(tensor(photo), ImageReadMode.RGB), scales=False
        ),
        "torchvision decode_image with EXIF": each(
            lambda photo, _: decode_image(tensor(photo), ImageReadMode.RGB, apply_exif_orientation=True),
            scales=False,
        ),
        "Pillow": each(pillow, scales=True),
    }
    absent: dict[str, str] = {}
    try:
        import turbojpeg as peer

        turbo = peer.TurboJPEG(turbojpeg)
        decoders["PyTurboJPEG"] = each(
            lambda photo, scale: turbo.decode(
                photo.data, peer.TJPF_RGB, scaling_factor=None if scale == 1 else (1, scale)
            ),
            scales=True,
        )
    except (ImportError, OSError, RuntimeError) as error:
        absent["PyTurboJPEG"] = f"not measured: {str(error).splitlines()[0]}"
    try:
        import torchcodec.decoders

        decoders["torchcodec decode_jpeg"] = each(
            lambda photo, _: torchcodec.decoders.decode_jpeg(photo.data), scales=False
        )
    except ImportError as error:
        absent["torchcodec"] = f"not measured: {error}"
    try:
        import cv2

        cv2.setNumThreads(1)
        reduced = {
            1: cv2.IMREAD_COLOR_RGB,
            **{scale: getattr(cv2, f"IMREAD_REDUCED_COLOR_{scale}") for scale in SCALES[1:]},  # BGR
        }
        decoders["OpenCV"] = each(
            lambda photo, scale: cv2.imdecode(np.frombuffer(photo.data, np.uint8), reduced[scale]),
            scales=True,
        )
    except ImportError as error:
        absent["OpenCV"] = f"not measured: {error}"
    if torch.cuda.is_available():

        def nvjpeg(photos: list[Photo], _: int) -> list[Any]:
            found = decode_jpeg([tensor(photo) for photo in photos], ImageReadMode.RGB, device="cuda")
            return [image.cpu() for image in found]

        decoders["nvJPEG by torchvision"] = Decoder(nvjpeg, False, time.perf_counter)
    else:
        absent["nvJPEG by torchvision"] = "not measured: no GPU"
    return decoders, absent


def measure(decoders: dict[str, Decoder], photos: list[Photo], turns: int) -> list[Row]:
    cases = [(name, scale) for name in decoders for scale in SCALES if scale == 1 or decoders[name].scales]
    rates: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for turn in range(turns + 1):
        for case in cases if turn % 2 else reversed(cases):
            decoder, scale = decoders[case[0]], case[1]
            started = decoder.clock()
            for start in range(0, len(photos), BATCH):
                decoder.read(photos[start : start + BATCH], scale)
            if turn:  # the first warms up
                rates[case].append(len(photos) / (decoder.clock() - started))
    rows = []
    for name, scale in cases:
        p20, p50, p80 = np.quantile(rates[name, scale], [0.2, 0.5, 0.8])
        judged = judge(decoders[name], photos) if scale == 1 else (None, None, None)
        rows.append(Row(name, scale, round(p50, 1), round(p20, 1), round(p80, 1), *judged, ""))
    return rows


def judge(decoder: Decoder, photos: list[Photo]) -> tuple[int, float, float]:
    """Compare with Pillow's pixels, and try files cut off and files with a hole."""
    largest, cut, hole = 0, 0, 0
    for photo in photos:
        expected = np.asarray(Image.open(BytesIO(photo.data)).convert("RGB"))
        found = np.asarray(decoder.read([photo], 1)[0])
        found = found if found.shape == expected.shape else found.transpose(1, 2, 0)
        largest = max(largest, int(np.abs(found.astype(int) - expected).max()))
        half = len(photo.data) // 2
        cut += refuses(decoder, photo._replace(data=photo.data[:half]))
        hole += refuses(decoder, photo._replace(data=photo.data[:half] + photo.data[half + 500 :]))
    return largest, cut / len(photos), hole / len(photos)


def refuses(decoder: Decoder, photo: Photo) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # so PyTurboJPEG tells of damage
        try:
            return decoder.read([photo], 1)[0] is None
        except Exception:
            return True


def table(rows: list[Row]) -> str:
    lines = [
        "| decoder | full size | 1/2 | 1/4 | 1/8 | off Pillow by | cut refused | hole refused |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(row.decoder for row in rows):
        found = {row.scale: row for row in rows if row.decoder == name}
        full = found[1]
        if full.images_per_second is None:
            lines.append(f"| {name} | {full.note} | | | | | | |")
            continue
        rates = [
            f"{row.images_per_second:.0f} [{row.p20:.0f}, {row.p80:.0f}]"
            if (row := found.get(scale))
            else "–"
            for scale in SCALES
        ]
        cells = [*rates, str(full.largest_difference), f"{full.cut_refused:.0%}", f"{full.hole_refused:.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cpu() -> str:
    try:
        fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor()
    known = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    return f"{known.get('model name', platform.machine())}, family {known.get('cpu family', '?')}"


def versions() -> dict[str, str]:
    found = {"Pillow's libjpeg-turbo": features.version_feature("libjpeg_turbo") or "none"}
    for name in (
        "torch",
        "torchvision",
        "pillow",
        "simplejpeg",
        "PyTurboJPEG",
        "torchcodec",
        "opencv-python-headless",
    ):
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
