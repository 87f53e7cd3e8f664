"""Pictures of records as people see them: opened with care, upright, on white, in RGB."""

from __future__ import annotations

import dataclasses
import functools
import io
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from rdbcl_jax.data.sources import open_source
from rdbcl_jax.data.sources.rows import Source
from rdbcl_jax.messages import line_of
from rdbcl_jax.remote import fetched


@dataclasses.dataclass(frozen=True)
class OfRow:
    """A picture that stands in the row of its record, and is read when it is needed.

    Attributes:
      where, position: of the row, and of the picture among its own.
      size: in bytes.
      read_bytes: those of a picture file.
    """

    where: str
    position: int
    size: int
    read_bytes: Callable[[], bytes] = dataclasses.field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.size} bytes"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A picture in a row of a file of many, such as one of Parquet.

    Attributes:
      row: its number.
      position: in a column that holds several.
    """

    path: Path
    row: int
    column: str
    position: int = 0

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}, column {self.column!r}"

    def _source(self) -> Source:
        return _source(self.path, self.path.stat().st_mtime_ns)

    def check_place(self) -> None:
        """Raises ValueError where the file has no such row; its content is not read."""
        try:
            count = len(self._source())
        except OSError as error:
            raise ValueError(f"it cannot be read ({line_of(error)})") from None
        if not 0 <= self.row < count:
            raise ValueError(f"there is no row {self.row}, expected one of 0 to {count - 1}")

    def read_bytes(self) -> bytes:
        """The bytes of the picture's own file.

        Raises:
          ValueError: there is no such picture.
        """
        self.check_place()
        found = self._source()[self.row]
        value = found.columns.get(self.column)
        several = value if isinstance(value, list) else [value]
        one = several[self.position] if self.position < len(several) else None
        content = one.get("bytes") if isinstance(one, Mapping) else one
        if not isinstance(content, bytes):
            raise ValueError(found.problem or "no picture is there")
        return content


@functools.lru_cache(maxsize=1024)
def _source(path: Path, written: int) -> Source:
    """The file as it was written at that time: one that replaces it is another."""
    return open_source(str(path))


Picture = Image.Image | Path | bytes | OfRow | Stored  # bytes are those of a file

# raster formats alone: others that Pillow knows run programs (EPS) or draw (WMF)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MOST_PIXELS = 89_478_485  # from which Pillow warns: 256 MB decoded
_UPRIGHT = {  # the EXIF orientation, and what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # those that change places of width and height


def check_header(picture: Picture) -> None:
    """Raises ValueError for what is no picture of `FORMATS`, or none of 1 to `MOST_PIXELS` pixels.
    Nothing is decoded. Of one that is stored among others, its place alone is looked at: the whole
    of their row group would be read for each."""
    if isinstance(picture, Stored):
        picture.check_place()
        return
    with _opened(picture):
        pass


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height of the picture as people see it; all but its header is left unread. Raises
    as `check_header`."""
    with _opened(picture) as opened:
        width, height = opened.size
        return (height, width) if _orientation(opened) in _ON_ITS_SIDE else (width, height)


def decode(picture: Picture) -> Image.Image:
    """The picture in RGB, 8 bits a channel.

    | | |
    |---|---|
    | EXIF orientation | applied |
    | alpha, a transparent colour | on white |
    | 16-bit grey | 0 … 65535 becomes 0 … 255 |
    | 32-bit grey, integer or float | the least value becomes black, the greatest white |
    | palette, CMYK, YCbCr, 1 bit | as Pillow converts them |
    | several frames | the first |

    Raises:
      ValueError: as `check_header`, and for a picture whose body is damaged.
    """
    with _opened(picture) as opened:
        try:
            opened.load()
            return _rgb(_upright(opened))
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            raise ValueError(f"its body cannot be decoded ({line_of(error)})") from error


def _opened(picture: Picture) -> Image.Image:
    """A new image object: closing it leaves the record's own untouched."""
    if isinstance(picture, Stored):
        picture = picture.read_bytes()
    if isinstance(picture, Image.Image):
        image = picture.copy()
    elif isinstance(picture, bytes):
        image = _identified(io.BytesIO(picture))
    elif isinstance(picture, OfRow):
        image = _identified(io.BytesIO(picture.read_bytes()))
    else:
        try:
            regular = stat.S_ISREG(picture.stat().st_mode)
        except FileNotFoundError:
            if not fetched(picture):
                raise ValueError("there is no such file") from None
            regular = True
        except (OSError, ValueError) as error:  # the latter: a zero byte in its name
            raise ValueError(f"it cannot be read ({line_of(error)})") from None
        if not regular:  # a pipe would be waited for, a device never ends
            raise ValueError("it is no regular file")
        image = _identified(picture)
    width, height = image.size
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"found {width} x {height} pixels, expected at least 1 x 1 and at most {MOST_PIXELS:,}"
        )
    return image


def _identified(file: Path | io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:
        known = ", ".join(FORMATS)
        raise ValueError(
            f"it cannot be read as a picture, expected one of {known} ({line_of(error)})"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 for upright. Damaged EXIF leaves a picture as it is, as it does in viewers."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image) / 257.0)
    if image.mode in ("I", "F"):  # no range is known but the picture's own
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        return _grey((values - values.min()) * 255.0 / (np.ptp(values) or 1.0))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
