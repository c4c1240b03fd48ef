"""Broken input by hand: each file with what has to become of its rows.

Both levels test the same table: the reader file by file, the pipeline with all files of a kind in
one corpus. Beside them lies a good file of `GOOD` rows.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

GOOD = 12
CLASSES = 3
MEMBER_LIMIT = 1 << 30


@dataclass(frozen=True)
class Bad:
    """A file: ``make`` gives its bytes or writes it; ``bad`` maps positions to reasons.

    ``rows`` come out, at position -1 where a file is one bad row as a whole.
    """

    name: str
    make: Callable[[], bytes] | None
    rows: int
    bad: dict[int, str] = field(default_factory=dict)
    write: Callable[[Path], Any] | None = None

    def put(self, folder: Path) -> None:
        """Write the file."""
        path = folder / self.name
        if self.write is not None:
            self.write(path)
        else:
            path.write_bytes(self.make())


def whole(name: str, make: Callable[[], bytes], reason: str) -> Bad:
    """A file of which nothing can be read: one bad row stands for it."""
    return Bad(name, make, 1, {-1: reason})


def ignored(name: str, write: Callable[[Path], Any]) -> Bad:
    """What is no file of the corpus."""
    return Bad(name, None, 0, write=write)


# Tables ------------------------------------------------------------------------------------------


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def numbers(rows: int = GOOD, **columns: Any) -> pa.Table:
    made = {
        "x": pa.array(np.arange(rows) / 4),
        "y": pa.array(np.arange(rows) % 5, pa.float32()),
        "label": pa.array(np.arange(rows) % CLASSES),
    }
    made |= {name: values for name, values in columns.items() if values is not None}
    return pa.table({k: v for k, v in made.items() if columns.get(k, v) is not None})


def groups(**options: Any) -> bytes:
    """Three row groups of four rows, stored plainly."""
    return parquet(numbers(), row_group_size=4, compression="none", use_dictionary=False, **options)


def damaged_page(group: int, **options: Any) -> bytes:
    content = bytearray(parquet(numbers(), row_group_size=4, use_dictionary=False, **options))
    start = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(group).column(0).data_page_offset
    content[start : start + 24] = b"\xff" * 24
    return bytes(content)


def footer_patched(old: bytes, new: bytes, count: int = 1) -> bytes:
    """The last bytes ``old`` of the footer made ``new`` of the same length."""
    content = groups()
    size = struct.unpack("<I", content[-8:-4])[0]
    body, footer, tail = content[: -8 - size], content[-8 - size : -8], content[-8:]
    assert old in footer
    assert len(old) == len(new)
    return body + footer.replace(old, new, count) + tail


def varint(number: int) -> bytes:
    """A number as the footer's encoding writes it."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def group_of(rows: int) -> bytes:
    """The footer says that the first row group has so many rows; its columns say four."""
    size = pq.ParquetFile(io.BytesIO(groups())).metadata.row_group(0).total_byte_size
    before = b"\x16" + varint(size) + b"\x16"
    return footer_patched(before + varint(4), before + varint(rows))


def offset_beyond() -> bytes:
    offset = pq.ParquetFile(io.BytesIO(groups())).metadata.row_group(1).column(0).data_page_offset
    return footer_patched(b"\x26" + varint(offset), b"\x26" + varint(8000))


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside.parquet"
    outside.write_bytes(parquet(numbers(30)))
    path.symlink_to(outside)


def folder_of_parquet(path: Path) -> None:
    path.mkdir()
    (path / "inner.parquet").write_bytes(parquet(numbers(2)))


def all_rows(count: int, reason: str, start: int = 0) -> dict[int, str]:
    return dict.fromkeys(range(start, start + count), reason)


UNREADABLE = "unreadable file: "
TABLES = [
    whole("truncated.parquet", lambda: groups()[:-60], UNREADABLE),
    whole("wrong-magic.parquet", lambda: groups()[:-4] + b"PAR0", UNREADABLE),
    whole("encrypted.parquet", lambda: groups()[:-4] + b"PARE", UNREADABLE),
    whole("empty.parquet", lambda: b"", UNREADABLE),
    whole("only-magic.parquet", lambda: b"PAR1PAR1", UNREADABLE),
    whole("csv.parquet", lambda: b"x,y,label\n1,2,0\n" * 40, UNREADABLE),
    whole("footer-length.parquet", lambda: groups()[:-8] + b"\xff\xff\xff\x7fPAR1", UNREADABLE),
    whole("fewer-rows.parquet", lambda: group_of(3), "contradicts itself"),
    whole("more-rows.parquet", lambda: group_of(60), "contradicts itself"),
    whole("negative-rows.parquet", lambda: group_of(-3), "contradicts itself|unreadable file"),
    Bad("offset.parquet", offset_beyond, 12, all_rows(8, "file breaks off: ", 4)),
    Bad(
        "page.parquet",
        lambda: damaged_page(1, compression="none"),
        12,
        all_rows(8, "file breaks off: ", 4),
    ),
    Bad("snappy-page.parquet", lambda: damaged_page(0), 12, all_rows(12, "file breaks off: ")),
    Bad("no-rows.parquet", lambda: parquet(numbers(0)), 0),
    Bad("no-groups.parquet", lambda: parquet(numbers(0), row_group_size=1), 0),
    Bad(
        "extra.parquet",
        lambda: parquet(numbers(3, z=pa.array([1, 2, 3]))),
        3,
        all_rows(3, r"columns differ .* unexpected \['z'\]"),
    ),
    Bad(
        "missing.parquet",
        lambda: parquet(numbers(3).drop_columns(["y"])),
        3,
        all_rows(3, r"columns differ .* missing \['y'\]"),
    ),
    Bad(
        "other-type.parquet",
        lambda: parquet(numbers(3, label=pa.array(["0", "1", "2"]))),
        3,
        all_rows(3, "column 'label' is string, the corpus has int64"),
    ),
    Bad(
        "nested-type.parquet",
        lambda: parquet(numbers(2, x=pa.array([[1.0], [2.0]]))),
        2,
        all_rows(2, "column 'x' is list"),
    ),
    Bad(
        "values.parquet",
        lambda: parquet(
            numbers(
                6,
                x=pa.array([np.nan, np.inf, -np.inf, 1e300, None, 1.0]),
            )
        ),
        6,
        all_rows(4, "column 'x' is not finite"),
    ),
    Bad(
        "labels.parquet",
        lambda: parquet(numbers(5, label=pa.array([None, -1, CLASSES, 2**62, 2]))),
        5,
        {
            0: "label is null",
            1: "label -1 is outside the 3 classes",
            2: "label 3 is outside the 3 classes",
            3: f"label {2**62} is outside the 3 classes",
        },
    ),
    Bad("folder.parquet", None, 2, write=folder_of_parquet),
    ignored("_metadata", lambda path: path.write_bytes(b"junk")),
    ignored(".hidden.parquet", lambda path: path.write_bytes(parquet(numbers(7)))),
    ignored("link-outside.parquet", link_outside),
    ignored("dangling.parquet", lambda path: path.symlink_to("nowhere.parquet")),
    ignored("circular.parquet", lambda path: path.symlink_to(path)),
    ignored("pipe.parquet", os.mkfifo),
    ignored("empty-folder.parquet", lambda path: path.mkdir()),
]


# Images ------------------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def rgb(index: int = 0, size: int = 8) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)
    return Image.fromarray(pixels)


def png(index: int = 0) -> bytes:
    return encoded(rgb(index))


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def bomb(width: int, height: int, rows: int) -> bytes:
    """A PNG that declares so many pixels; of its data only some rows of zeros are there."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes((width // 8 + 2) * rows), 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=allow_pickle)
    return sink.getvalue()


class Code:
    """Unpickling it makes a file: the sign that code was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


PWNED = Path("/nonexistent-dataprune")
UNDECODABLE = "image cannot be decoded"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
#: Payload, and the reason why it is bad; None where it is good.
PAYLOADS: list[tuple[bytes | None, str | None]] = [
    (png(), None),
    (None, "image is null"),
    (b"", "image has no bytes"),
    (b"\0", UNDECODABLE),
    (b"not an image", UNDECODABLE),
    (png()[:60], UNDECODABLE),
    (png()[:-30], UNDECODABLE),
    (png().replace(b"IDAT", b"IDAX"), UNDECODABLE),
    (bomb(30_000, 30_000, 30_000), "30000 x 30000 pixels exceed|exceeds limit"),
    (bomb(2**31 - 1, 2**31 - 1, 1), "pixels exceed|exceeds limit"),
    (bomb(0, 8, 1), UNDECODABLE),
    (encoded(rgb(1, 9)), r"shape \(3, 9, 9\) is not \(3, 8, 8\)"),
    (encoded(rgb(2).convert("CMYK"), "JPEG"), None),
    (encoded(rgb(3).convert("L")), None),
    (encoded(rgb(4).convert("P")), None),
    (encoded(rgb(5).convert("RGBA")), None),
    (encoded(rgb(6).convert("1")), None),
    (encoded(Image.fromarray(np.full((8, 8), 60_000, np.uint16))), None),
    (encoded(rgb(7), "GIF", save_all=True, append_images=[rgb(8), rgb(9)]), None),
    (encoded(rgb(10), "TIFF"), None),
    (encoded(rgb(11), "WEBP"), None),
    (encoded(rgb(12), "BMP")[:80], UNDECODABLE),
    (encoded(rgb(13), "JPEG")[:200], UNDECODABLE),
    (EPS, UNDECODABLE),
    (b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>", UNDECODABLE),
    (npy(np.zeros((8, 8, 3), np.uint8)), None),
    (npy(np.zeros((8, 8, 3), np.float32)), "is not a uint8 image"),
    (npy(np.array([Code(PWNED)]), allow_pickle=True), "object, not numbers"),
    (npy(np.zeros((8, 8, 3), np.uint8)).replace(b"(8, 8, 3)", b"(8, 8, 9)"), "bytes of values"),
    (npy(np.zeros((8, 8, 3), np.uint8)).replace(b"(8, 8, 3)", b"(8,-8, 3)"), UNDECODABLE),
    (npy(np.zeros((8, 8, 3), np.uint8))[:-5], "bytes of values, not 192"),
    (b"\x93NUMPY\x01\x00\xff\xff{", UNDECODABLE),
    (pickle.dumps(Code(PWNED)), UNDECODABLE),
]


def pictures(payloads: list[bytes | None]) -> pa.Table:
    labels = pa.array([i % CLASSES for i in range(len(payloads))])
    return pa.table({"image": pa.array(payloads, pa.binary()), "label": labels})


IMAGES = [
    Bad(
        "payloads.parquet",
        lambda: parquet(pictures([payload for payload, _ in PAYLOADS])),
        len(PAYLOADS),
        {i: reason for i, (_, reason) in enumerate(PAYLOADS) if reason is not None},
    )
]


# Tensors -----------------------------------------------------------------------------------------


def vectors(values: list[Any]) -> pa.Table:
    labels = pa.array([i % CLASSES for i in range(len(values))])
    return pa.table({"vector": pa.array(values, pa.list_(pa.float32())), "label": labels})


#: Value, and the reason why it is bad.
VECTORS: list[tuple[Any, str | None]] = [
    ([1.0, 2.0, 3.0, 4.0], None),
    (None, "tensor is null"),
    ([], "tensor has 0, not 4 values"),
    ([1.0, 2.0, 3.0], "tensor has 3, not 4 values"),
    ([1.0] * 5, "tensor has 5, not 4 values"),
    ([1.0, None, 3.0, 4.0], "not finite|holds a null"),
    ([1.0, float("nan"), 3.0, 4.0], "feature is not finite"),
    ([1.0, float("inf"), 3.0, 4.0], "feature is not finite"),
    ([0.0] * 4, None),
]
TENSORS = [
    Bad(
        "vectors.parquet",
        lambda: parquet(vectors([value for value, _ in VECTORS])),
        len(VECTORS),
        {i: reason for i, (_, reason) in enumerate(VECTORS) if reason is not None},
    )
]


# Archives ----------------------------------------------------------------------------------------


def archive(*members: tuple[Any, bytes | None], compression: str = "", **options: Any) -> bytes:
    """A tar of members: names with contents, or whole headers."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{compression}", **options) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is not None:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if content is not None else None)
    return sink.getvalue()


def sample(key: str, label: int = 0, index: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(index)), (f"{key}.cls", str(label).encode())]


def samples(count: int, compression: str = "") -> bytes:
    members = [m for i in range(count) for m in sample(f"s{i:03d}", i % CLASSES, i)]
    return archive(*members, compression=compression)


def special(kind: bytes) -> tuple[tarfile.TarInfo, None]:
    info = tarfile.TarInfo("special.png")
    info.type, info.linkname = kind, "../../../etc/passwd"
    return info, None


def too_large(name: str) -> bytes:
    """The header of a member over the limit, without its content."""
    info = tarfile.TarInfo(name)
    info.size = 2 * MEMBER_LIMIT
    return info.tobuf(tarfile.GNU_FORMAT)


def middle_header_spoilt() -> bytes:
    content = bytearray(samples(4))
    position = content.index(b"s002.png")
    content[position] ^= 1
    return bytes(content)


LONG = "folder/" * 60 + "x" * 120
ARCHIVES = [
    whole("cut.tar", lambda: samples(3)[:1200], "file breaks off: truncated header"),
    Bad("cut-later.tar", lambda: samples(4)[:3 * 2048 + 100], 3, {2: "truncated header"}),
    Bad("cut-content.tar", lambda: samples(4)[:3 * 2048 + 600], 4, {3: "unexpected end of data"}),
    Bad("cut-gz.tar.gz", lambda: samples(4, "gz")[:-40], 4, {3: "unexpected end of data"}),
    whole("zero.tar", lambda: b"", "file breaks off|unreadable"),
    whole("text.tar", lambda: b"hello, I am no archive\n" * 60, "file breaks off|unreadable"),
    whole("gzip-named.tar", lambda: samples(2, "gz"), "file breaks off|unreadable"),
    whole("plain-named.tar.gz", lambda: samples(2), "file breaks off|unreadable"),
    Bad("nothing-inside.tar", archive, 0),
    # The sample before may lack members: nobody can tell any more.
    Bad("header.tar", middle_header_spoilt, 2, {1: "file breaks off.*bad checksum"}),
    Bad(
        "no-label.tar",
        lambda: archive(("a.png", png()), *sample("b")),
        2,
        {0: "label is null"},
    ),
    Bad("no-image.tar", lambda: archive(("a.cls", b"1")), 1, {0: "image is null"}),
    Bad(
        "labels.tar",
        lambda: archive(
            *[m for i, text in enumerate([b"x", b"-1", b"7", b"", b"nan", b" 2\n"])
              for m in ((f"s{i}.png", png(i)), (f"s{i}.cls", text))]
        ),
        6,
        {
            0: "label 'x' is not an integer",
            1: "label -1 is outside",
            2: "label 7 is outside",
            3: "label '' is not an integer",
            4: "label 'nan' is not an integer",
        },
    ),
    Bad("repeated.tar", lambda: archive(*sample("a"), *sample("b"), *sample("a", 1)), 3,
        {2: "key is repeated in its archive: 'a'"}),
    Bad("doubled.tar", lambda: archive(*sample("a"), *sample("a", 1)), 2,
        {1: "key is repeated in its archive: 'a'"}),
    Bad("empty-image.tar", lambda: archive(("a.png", b""), ("a.cls", b"0")), 1,
        {0: "image has no bytes"}),
    Bad("escaping.tar", lambda: archive(*sample("/etc/a"), *sample("../../b"), *sample("./c")), 3),
    Bad(
        "specials.tar",
        lambda: archive(
            *(special(k) for k in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
                                   tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)),
            *sample("a"),
        ),
        1,
    ),
    Bad("long-gnu.tar", lambda: archive(*sample(LONG), format=tarfile.GNU_FORMAT), 1),
    Bad("long-pax.tar", lambda: archive(*sample(LONG), format=tarfile.PAX_FORMAT), 1),
    Bad(
        "bytes-names.tar",
        lambda: archive(*sample("\udcff\udcfe"), format=tarfile.GNU_FORMAT,
                        encoding="utf-8", errors="surrogateescape"),
        1,
    ),
    Bad("no-extension.tar", lambda: archive(("README", b"x"), (".hidden", b"x"), *sample("a")), 1),
    Bad("upper-case.tar", lambda: archive(("a.PNG", png()), ("a.CLS", b"1")), 1),
    Bad(
        "large-member.tar",
        lambda: samples(2)[:-10240 % 512 or None][: 2 * 2 * 1024] + too_large("x.png"),
        3,
        {2: f"member 'x.png' has {2 * MEMBER_LIMIT} bytes"},
    ),
    Bad(
        "bomb.tar.gz",
        lambda: gzip.compress(too_large("x.png") + bytes(4 << 20)),
        1,
        {-1: f"member 'x.png' has {2 * MEMBER_LIMIT} bytes"},
    ),
]  # fmt: skip

#: Each kind of corpus: its good file, the broken ones, and the settings.
KINDS: dict[str, tuple[str, Callable[[], bytes], list[Bad], dict[str, Any]]] = {
    "tables": ("0-good.parquet", lambda: parquet(numbers()), TABLES, {}),
    "images": (
        "0-good.parquet",
        lambda: parquet(pictures([png(i) for i in range(GOOD)])),
        IMAGES,
        {},
    ),
    "tensors": (
        "0-good.parquet",
        lambda: parquet(vectors([[float(i)] * 4 for i in range(GOOD)])),
        TENSORS,
        {},
    ),
    "archives": ("0-good.tar", lambda: samples(GOOD), ARCHIVES, {}),
}
CASES = [(kind, bad) for kind, (_, _, cases, _) in KINDS.items() for bad in cases]
