"""Image files of any common kind -> arrays [height, width, 3] uint8, by Pillow.

Grey, palette, CMYK and transparent images become RGB (transparency is dropped, not blended); 16-bit ones keep their
upper eight bits.  Pillow lets go of the interpreter while it decodes, so threads decode side by side.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError

_KINDS = {"L": "grey", "1": "black and white", "P": "palette", "LA": "grey with alpha", "RGBA": "RGB with alpha"}


class Unreadable(UserError):
    """A file that is no whole image; the message is the reason, without the file's name."""


def load_pixels(source: Path | bytes, size: tuple[int, int] | None = None) -> tuple[np.ndarray, str]:
    """Decodes an image.

    Args:
      source: a file, or what one holds.
      size: (height, width) that is expected.  A camera's orientation tag is obeyed only where that is what gives this
        size: the boxes of COCO are those of the stored pixels, and tools that turn images first write the turned size.

    Returns:
      [height, width, 3] uint8, and what kind of pixels the file has ("RGB", "grey", "16-bit", …).

    Raises:
      Unreadable: missing, truncated, no image at all, of another size, or with pixels that have no range (floats).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if size and image.size != size[::-1]:
                turned = ImageOps.exif_transpose(image)
                if turned.size != size[::-1]:
                    found, told = "x".join(map(str, image.size)), "x".join(map(str, size[::-1]))
                    raise Unreadable(f"is {found} pixels, not {told}")
                return _rgb(turned)
            return _rgb(image)
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except Unreadable:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Unreadable(str(error).replace(str(source), "file") if isinstance(source, Path) else str(error)) from None


def stored_size(file: Path) -> tuple[int, int]:
    """(height, width) as the file's header says.

    Raises:
      Unreadable: see ``load_pixels``.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Unreadable(str(error).replace(str(file), "file")) from None


def resized(pixels: np.ndarray, window: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """The window (left, top, right, bottom) of [h, w, 3] uint8 as [height, width, 3], by filtered linear sampling.

    The filter widens when the window shrinks, so fine texture is averaged and not skipped.
    """
    from PIL import Image

    if window == (0, 0, pixels.shape[1], pixels.shape[0]) and pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=window))


def encode_png(pixels: np.ndarray) -> bytes:
    """[h, w, 3] uint8 as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _rgb(image: Any) -> tuple[np.ndarray, str]:
    if image.mode.startswith("I"):  # I;16 and its byte orders; I holds 16 bits of a PNG in older Pillows
        grey = (np.clip(np.asarray(image, np.int64), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), "16-bit"
    if image.mode == "F":
        raise Unreadable("holds floating-point pixels, whose range is unknown; save it with 8 bits")
    return np.asarray(image.convert("RGB")), _KINDS.get(image.mode) or str(image.mode)
