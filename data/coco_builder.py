"""Images opened once: a TFDS builder (array_record, no TensorFlow) in a cache folder, read at random positions.

What is stored are the files as they are, each decoded on the way in, so that a damaged one is known before the first
step and a training on a network disk reads a few large files instead of many small ones.  The cache is keyed by what
went in: a changed folder is prepared again and an unchanged one is not.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.cache import cache_root, made_once
from data.coco import CocoImage
from data.pixels import Unreadable, load_pixels

FORMAT = 1  # raise it when the stored form changes
_SPLIT = "images"
_log = logging.getLogger(__name__)


class CocoFolder(tfds.core.GeneratorBasedBuilder):
    """``{"id", "height", "width", "file" uint8 [bytes], "boxes" float32 [n, 4] corners, "labels" int32 [n]}`` in order.

    TFDS decodes images with TensorFlow or one of its optional readers, hence the file as a tensor of bytes; and it must
    be told ``array_record``.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples: Iterable[dict[str, Any]] = (), **kwargs: Any):
        self._examples = examples
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        raw = tfds.features.Encoding.BYTES
        number = tfds.features.Tensor(shape=(), dtype=np.int64)
        example = {
            "id": number,
            "height": number,
            "width": number,
            "file": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding=raw),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32, encoding=raw),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding=raw),
        }
        features = tfds.features.FeaturesDict(example)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self._examples)


class CocoStore:
    """Random access to the prepared images.

    Attributes:
      failed: why an image could not be used, by its position among those asked for.
      kinds: how many files hold which kind of pixels.
    """

    def __init__(self, folder: Path):
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.failed = {int(i): reason for i, reason in index["failed"].items()}
        self.kinds: dict[str, int] = index["kinds"]
        self._records: Any = ()
        if self.kinds:
            builder: Any = CocoFolder(data_dir=str(folder))
            self._records = builder.as_data_source(split=_SPLIT)

    def pixels(self, i: int) -> np.ndarray:
        """[height, width, 3] uint8 of the i-th of the images that can be used."""
        record = self._records[i]
        return load_pixels(record["file"].tobytes(), (int(record["height"]), int(record["width"])))[0]


def fingerprint(images: Sequence[CocoImage]) -> str:
    """Hash of everything that decides the prepared content: boxes, and name, size and time of every file."""
    digest = hashlib.sha256(f"{FORMAT}".encode())
    for image in images:
        stat = image.file.stat()
        digest.update(f"\n{image.id}|{image.file}|{stat.st_size}|{stat.st_mtime_ns}|{image.height}".encode())
        digest.update(image.boxes.tobytes() + image.labels.tobytes())
    return digest.hexdigest()[:20]


def prepare(images: Sequence[CocoImage], cache: Path | None = None) -> CocoStore:
    """The store of these images, from the cache or made now; several processes may ask at once.

    Args:
      images: what to store; files that cannot be used end up in ``CocoStore.failed``.
      cache: folder of all prepared sets, by default in ``cache_root()``.

    Raises:
      UserError: the cache cannot be written.
    """
    folder = (cache or cache_root() / "coco") / fingerprint(images)
    made_once(folder, "index.json", lambda place: _write(images, place))
    return CocoStore(folder)


def _write(images: Sequence[CocoImage], folder: Path) -> None:
    """Prepares into ``folder``; ``index.json`` comes last, so its presence means the rest is whole."""
    failed: dict[int, str] = {}
    kinds: dict[str, int] = {}

    def examples() -> Iterator[dict[str, Any]]:
        for i, (image, found) in enumerate(zip(images, _opened(images), strict=True)):
            if isinstance(found, Unreadable):
                failed[i] = f"{image.file} {found}"
                continue
            content, kind = found
            kinds[kind] = kinds.get(kind, 0) + 1
            size = {"id": image.id, "height": image.height, "width": image.width}
            file = np.frombuffer(content, np.uint8)
            yield size | {"file": file, "boxes": image.boxes, "labels": image.labels}

    stream = examples()
    first = next(stream, None)
    if first is not None:  # TFDS refuses an empty split
        tfds.disable_progress_bar()
        builder = CocoFolder(examples=itertools.chain([first], stream), data_dir=str(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "index.json.tmp"
    temporary.write_text(json.dumps({"failed": failed, "kinds": kinds}))
    os.replace(temporary, folder / "index.json")


def _opened(images: Sequence[CocoImage], ahead: int = 64) -> Iterator[tuple[bytes, str] | Unreadable]:
    """Every file's content and kind of pixels, in order; decoded by threads, at most ``ahead`` files in memory."""

    def load(image: CocoImage) -> tuple[bytes, str] | Unreadable:
        try:
            content = image.file.read_bytes()
            return content, load_pixels(content, (image.height, image.width))[1]
        except Unreadable as error:
            return error
        except OSError as error:
            return Unreadable(f"cannot be read: {error.strerror}")

    start = last = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(images), ahead):
            yield from pool.map(load, images[i : i + ahead])
            if time.monotonic() - last > 5.0:
                last = time.monotonic()
                _log.info("prepared %d of %d images in %.0f s", min(i + ahead, len(images)), len(images), last - start)
