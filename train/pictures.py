"""Pictures for people: spectrograms above each other, tables of images.  Needs matplotlib, imported only to draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.audio import MelSpec


def spectrograms(path: str | Path, mels: Mapping[str, np.ndarray], spec: MelSpec, known: int = 0) -> None:
    """Writes a PNG of log-mel spectrograms [frames, mels], one row per title, on one colour scale and time axis.

    Args:
      known: frames before this one were given to the model; marked by a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(len(mel) for mel in mels.values())
    figure, axes = pyplot.subplots(
        len(mels), 1, figsize=(10, 2.2 * len(mels)), squeeze=False, sharex=True, layout="constrained"
    )
    seconds = spec.hop / spec.sample_rate
    low = min(float(mel.min()) for mel in mels.values())
    high = max(float(mel.max()) for mel in mels.values())
    for axis, (title, mel) in zip(axes[:, 0], mels.items(), strict=True):
        extent = (0.0, len(mel) * seconds, 0.0, float(mel.shape[1]))
        axis.imshow(mel.T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high, cmap="magma")
        if known:
            axis.axvline(known * seconds, color="white", linewidth=1.0, linestyle="--")
        axis.set(title=title, ylabel="mel band", xlim=(0.0, longest * seconds))
    axes[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def image_table(path: str | Path, images: np.ndarray, columns: int, scale: int = 4) -> None:
    """Writes a PNG of images [n, h, w, 1 or 3] in [-1, 1] (ink is 1, drawn white), row by row.

    Args:
      columns: images in a row.
      scale: pixels of the PNG per pixel.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height + 1, width + 1, channels), -0.5, np.float32)  # a line between neighbours
    sheet[:count, 1:, 1:] = np.clip(images, -1.0, 1.0)
    sheet = sheet.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1), channels)
    pixels = np.repeat(np.repeat(0.5 * (sheet + 1.0), scale, 0), scale, 1)
    pyplot.imsave(path, np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def boxed(path: str | Path, images: np.ndarray, boxes: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> None:
    """Writes a PNG of images [n, h, w, 3] uint8 in a row, each with its boxes [k, 4] (corners in pixels) and names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    figure, axes = pyplot.subplots(1, len(images), figsize=(3 * len(images), 3), squeeze=False, layout="constrained")
    for axis, image, found, titles in zip(axes[0], images, boxes, names, strict=True):
        axis.imshow(image)
        axis.axis("off")
        for (left, top, right, bottom), title in zip(found, titles, strict=True):
            axis.add_patch(patches.Rectangle((left, top), right - left, bottom - top, fill=False, color="lime"))
            axis.text(left, top, title, color="lime", fontsize=7, va="bottom")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
