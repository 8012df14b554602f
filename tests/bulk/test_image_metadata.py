"""Captions in the metadata of JPEG, PNG, WebP and TIFF, and in XMP sidecars: what is written, and what stays."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from captioner.bulk.outputs import containers, exif, image_metadata, iptc, xmp
from captioner.bulk.outputs.boilerplate import own_words
from captioner.errors import OutputRefused
from captioner.examples import FOLDER

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
CAT = (FOLDER / "cat.jpg").read_bytes()


def jpeg_with_exif() -> bytes:
    """A photo with the metadata of a camera: sub-directories, a maker note, a thumbnail's directory, XMP, ICC."""
    block = Image.Exif()
    block[0x010F] = "Maker"
    block[0x0112] = 6
    block.get_ifd(0x8769).update({0x927C: b"maker note" * 9, 0x9003: "2026:11:24 12:00:00"})
    block.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.5)})
    file = io.BytesIO()
    Image.open(FOLDER / "cat.jpg").save(
        file, "JPEG", exif=block, icc_profile=b"profile" * 99, comment=b"remark", progressive=True
    )
    return file.getvalue()


def made(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.open(FOLDER / "cat.jpg").resize((50, 40)).convert(mode).save(file, file_format, **options)
    return file.getvalue()


def animation() -> bytes:
    frames = [Image.new("RGBA", (30, 20), color) for color in ("red", "blue", "#0f08")]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=80, lossless=True)
    return file.getvalue()


def with_iptc(datasets: bytes) -> bytes:
    """The photo with Photoshop's resources: a resolution, the datasets, and their digest."""
    resources = b""
    for number, name, content in (
        (0x03ED, b"\0\0", b"r" * 17),
        (0x0404, b"\x03cap", datasets),
        (0x0425, b"\0\0", b"d" * 16),
    ):
        resources += b"8BIM" + struct.pack(">H", number) + name + struct.pack(">I", len(content)) + content
        resources += b"\0" * (len(content) % 2)
    segment = b"Photoshop 3.0\0" + resources
    return CAT[:2] + struct.pack(">BBH", 0xFF, 0xED, len(segment) + 2) + segment + CAT[2:]


def dataset(record: int, number: int, content: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, record, number, len(content)) + content


CAMERA = Image.open(io.BytesIO(jpeg_with_exif())).getexif()
IPTC = (
    dataset(1, 90, b"\x1b%G")
    + dataset(2, 5, b"Title")
    + dataset(2, 120, b"Written by a person")
    + dataset(2, 80, b"Me")
)
FILES = {
    "a JPEG with EXIF": jpeg_with_exif(),
    "a JPEG without": CAT,
    "a JPEG with IPTC": with_iptc(IPTC),
    "a PNG": made("PNG"),
    "a PNG with EXIF": made("PNG", exif=CAMERA),
    "a lossy WebP": made("WEBP"),
    "a lossless WebP with transparency": made("WEBP", "RGBA", lossless=True),
    "a WebP with EXIF, XMP and a profile": made(
        "WEBP", exif=CAMERA, xmp=xmp.with_description(None, "old"), icc_profile=b"p" * 99
    ),
    "an animated WebP": animation(),
    "a TIFF": made("TIFF"),
    "a compressed TIFF": made("TIFF", compression="tiff_lzw", description="old"),
}


def pixels(data: bytes) -> str:
    """A hash of the decoded pixels of every frame."""
    digest = hashlib.sha256()
    for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data))):
        digest.update(frame.convert("RGBA").tobytes())
    return digest.hexdigest()


def encoded(data: bytes) -> list[bytes]:
    """The parts of the file that hold no caption: compressed pixels, profiles, remarks."""
    if data.startswith(b"\xff\xd8"):
        segments = list(containers.jpeg_segments(data))
        own = (b"Exif", b"http", b"Phot")
        return [data[start:end] for _, start, end in segments if data[start + 4 : start + 8] not in own] + [
            data[segments[-1][2] :]
        ]
    if data.startswith(b"\x89PNG"):
        return [data[start:end] for kind, start, end in containers.png_chunks(data) if kind not in (b"eXIf", b"iTXt")]
    if data.startswith(b"RIFF"):
        chunks = containers.webp_chunks(data)
        return [data[at + 8 : at + 8 + size] for kind, at, size in chunks if kind not in (b"VP8X", b"EXIF", b"XMP ")]
    return []


@pytest.mark.parametrize("kind", FILES)
@settings(deadline=None, max_examples=20)
@given(text=TEXTS.map(str.strip).filter(own_words), again=TEXTS)
def test_metadata_holds_any_text_and_pixels_and_other_metadata_are_unchanged(kind: str, text: str, again: str) -> None:
    data = FILES[kind]
    text = text.replace("\x00", "").strip()
    new = image_metadata.with_description(image_metadata.with_description(data, again), text)
    block = containers.block(new, "exif")
    assert block is not None
    assert exif.descriptions(block) == [text, text]
    assert pixels(new) == pixels(data) and encoded(new) == encoded(data)
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(new))
    old, tags = before.getexif(), after.getexif()
    assert tags[exif.XP_COMMENT].decode("utf-16-le").rstrip("\x00") == text
    assert tags[exif.DESCRIPTION].encode("latin-1", "replace").decode("utf-8", "replace") == text or not text.isascii()
    ours = (0x8769, 0x8825, exif.DESCRIPTION, 0x02BC)
    assert {tag: tags[tag] for tag in old if tag not in ours} == {tag: old[tag] for tag in old if tag not in ours}
    for directory in (0x8769, 0x8825):
        assert dict(tags.get_ifd(directory)) == dict(old.get_ifd(directory))


@pytest.mark.parametrize("kind", FILES)
def test_every_place_that_programs_read_gets_the_caption(kind: str) -> None:
    new = image_metadata.with_description(FILES[kind], "A grey cat.")
    image = Image.open(io.BytesIO(new))
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or image.getexif()[0x02BC]
    packet = packet.encode() if isinstance(packet, str) else packet
    assert text_in(packet) == text_in(packet, xmp.IPTC, "AltTextAccessibility") == "A grey cat."
    assert image.getexif()[exif.DESCRIPTION] == "A grey cat."
    assert image_metadata.description(new) == "A grey cat."
    datasets = containers.block(new, "iptc")
    assert (datasets is not None) == (kind == "a JPEG with IPTC")
    assert datasets is None or datasets == IPTC.replace(
        dataset(2, 120, b"Written by a person"), dataset(2, 120, b"A grey cat.")
    )


@pytest.mark.parametrize("where", ["EXIF", "XPComment", "XMP", "alternative text", "IPTC"])
def test_a_caption_of_a_person_is_found_wherever_it_is_and_none_stays_when_it_is_overwritten(where: str) -> None:
    text = "Written by a person"
    packet = xmp.with_description(None, text)
    alternative = packet.replace(b"dc:description", b"dc:rights")
    data = {
        "EXIF": containers.with_block(CAT, "exif", exif.with_description(exif.EMPTY, text)),
        "XPComment": containers.with_block(
            CAT, "exif", exif.with_value(exif.EMPTY, exif.XP_COMMENT, text.encode("utf-16-le"))
        ),
        "XMP": containers.with_block(CAT, "xmp", packet.replace(b"AltTextAccessibility", b"Other")),
        "alternative text": containers.with_block(CAT, "xmp", alternative),
        "IPTC": with_iptc(IPTC),
    }[where]
    assert image_metadata.description(data) == text
    new = image_metadata.with_description(data, "A cat.")
    assert image_metadata.description(new) == "A cat."


def test_captions_that_differ_are_all_returned_and_copies_once() -> None:
    data = containers.with_block(with_iptc(IPTC), "xmp", xmp.with_description(None, "Written by a person in Rome"))
    data = containers.with_block(data, "exif", exif.with_description(exif.EMPTY, "My cat"))
    assert image_metadata.description(data) == "My cat Written by a person in Rome"


@pytest.mark.parametrize(
    "text",
    [
        "OLYMPUS DIGITAL CAMERA         ", "SONY DSC", "DCIM\\100MEDIA\\DJI_0042.JPG", "  ", "SAMSUNG CAMERA PICTURES",
        "KONICA MINOLTA DIGITAL CAMERA", "olympus digital camera", "C:\\DCIM\\100GOPRO\\G1.JPG", "Exif_JPEG_PICTURE",
        "cof", "hdrpl", "Created with GIMP", "Processed with VSCO with a6 preset", "default", "\0\0",
    ],
)  # fmt: skip
def test_what_a_camera_writes_into_every_image_is_no_caption(text: str) -> None:
    data = image_metadata.with_description(CAT, text)
    assert image_metadata.description(data) is None
    assert xmp.description(xmp.with_description(None, text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "Grandma in Olympus, Greece",
        "My digital camera on a table",
        "Sony DSC on sale",
        "hdr of a church",
        "Default route",
        "A digital camera",
        "Coffee",
        "coffee",
        "Toffee",
        "David",
        "HDR",
    ],
)
def test_a_caption_with_words_of_a_camera_is_a_caption(text: str) -> None:
    assert image_metadata.description(image_metadata.with_description(CAT, text)) == text


def test_the_old_exif_block_keeps_its_offsets_for_maker_notes_and_thumbnails() -> None:
    data = jpeg_with_exif()
    old = containers.block(data, "exif")
    new = containers.block(image_metadata.with_description(data, "a cat"), "exif")
    assert old is not None and new is not None
    assert new[8 : len(old)] == old[8:], "only the offset of the first directory may change"
    assert exif._directory(new)[2] == exif._directory(old)[2], "the thumbnail's directory is lost"


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "AVIF", "BigTIFF"])
def test_metadata_is_refused_for_other_formats(file_format: str) -> None:
    data = made("TIFF", big_tiff=True) if file_format == "BigTIFF" else made(file_format)
    with pytest.raises(OutputRefused, match="JPEG, PNG, WebP and TIFF"):
        image_metadata.with_description(data, "a cat")
    assert image_metadata.description(data) is None


def test_exif_that_is_too_large_or_broken_is_refused() -> None:
    with pytest.raises(OutputRefused, match="a JPEG segment holds 65533"):
        image_metadata.with_description(CAT, "long " * 9000)
    block = b"Exif\x00\x00MM\x00*" + struct.pack(">I", 4000)
    broken = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + CAT[2:]
    with pytest.raises(OutputRefused, match="broken"):
        image_metadata.with_description(broken, "a cat")


def test_a_broken_xmp_packet_stays_as_it_is_and_the_caption_is_written_to_exif() -> None:
    data = containers.with_block(CAT, "xmp", b"<x/>")
    new = image_metadata.with_description(data, "a cat")
    assert containers.block(new, "xmp") == b"<x/>" and image_metadata.description(new) == "a cat"


STARTS = [
    b"",
    b"\xff\xd8",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe1\x00\x40Exif\0\0",
    b"\xff\xd8\xff\xed\x00\x40Photoshop 3.0\0",
    b"\xff\xd8\xff\xed\x00\x40Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x20\x1c",
    b"RIFF\x40\0\0\0WEBP",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0",
    b"RIFF\x40\0\0\0WEBPEXIF\x20\0\0\0",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08\0\x01\x83\xbb",
]


@given(st.binary(max_size=80), st.sampled_from(STARTS))
@settings(max_examples=600)
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    image_metadata.description(start + data)
    with contextlib.suppress(OutputRefused):
        image_metadata.with_description(start + data, "a cat")


# IPTC


@pytest.mark.parametrize(
    ("character_set", "text", "written"),
    [
        (b"\x1b%G", "Ein Käse", "Ein Käse".encode()),
        (b"", "Ein Käse", "Ein Käse".encode("latin-1")),
        (b"\x1b%G", "ä" * 1500, "ä".encode() * 1000),
        (b"", "猫", b"?"),
    ],
)
def test_iptc_keeps_its_character_set_and_its_limit(character_set: bytes, text: str, written: bytes) -> None:
    datasets = dataset(1, 90, character_set) * bool(character_set) + dataset(2, 120, b"old")
    assert iptc.with_description(datasets, text).endswith(dataset(2, 120, written))


def test_other_image_resources_are_kept_and_the_digest_of_the_old_caption_is_removed() -> None:
    new = image_metadata.with_description(with_iptc(IPTC), "A cat.")
    assert b"r" * 17 in new and b"d" * 16 not in new and b"\x03cap" in new


# XMP


def text_in(packet: bytes, namespace: str = xmp.DC, name: str = "description") -> str | None:
    """Return the caption as another program finds it: rdf:li of x-default under the property."""
    names = {"p": namespace, "rdf": xmp.RDF, "x": xmp.META}
    path = f"rdf:RDF/rdf:Description/p:{name}/rdf:Alt/rdf:li[@{{http://www.w3.org/XML/1998/namespace}}lang='x-default']"
    root = ElementTree.fromstring(packet)
    assert root.tag == f"{{{xmp.META}}}xmpmeta"
    return root.findtext(path, namespaces=names)


@given(TEXTS, TEXTS)
def test_xmp_round_trips_any_text(first: str, text: str) -> None:
    clean = xmp._NOT_XML.sub("", text)
    sidecar = xmp.with_description(xmp.with_description(None, first), text)
    assert (text_in(sidecar) or "").replace("\r", "\n") == clean.replace("\r\n", "\n").replace("\r", "\n")
    assert xmp.description(sidecar) == own_words(text_in(sidecar))
    assert sidecar.count(b"x-default") == 2


DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="{xmp.RDF}">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:darktable="http://darktable.sf.net/"
    xmp:Rating="4" darktable:history_end="3">
   <darktable:history><rdf:Seq><rdf:li darktable:operation="exposure"/></rdf:Seq></darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>"""


def test_other_properties_of_an_xmp_sidecar_are_kept() -> None:
    new = xmp.with_description(DARKTABLE.encode(), "A cat & a <dog>.")
    assert text_in(new) == "A cat & a <dog>."
    for kept in (b'xmp:Rating="4"', b'darktable:history_end="3"', b'darktable:operation="exposure"'):
        assert kept in new
    assert xmp.description(DARKTABLE.encode()) is None


@pytest.mark.parametrize(
    "written", ['dc:description="by hand">', ">\n<dc:description>by hand</dc:description>", "><dc:description/>"]
)
def test_a_description_in_another_structure_is_found_and_replaced(written: str) -> None:
    packet = xmp.with_description(None, "x").decode()
    head = packet.partition("<rdf:Description")[0].replace("<rdf:RDF", f'<rdf:RDF xmlns:dc="{xmp.DC}"', 1)
    old = f'{head}<rdf:Description rdf:about="" {written}</rdf:Description></rdf:RDF></x:xmpmeta>'.encode()
    assert xmp.description(old) == ("by hand" if b"by hand" in old else None)
    new = xmp.with_description(old, "A cat.")
    assert text_in(new) == "A cat." and b"by hand" not in new


def test_a_sidecar_that_is_not_xmp_is_refused_and_left_unchanged() -> None:
    deep = DARKTABLE.encode().replace(b"<rdf:Seq>", b"<rdf:Seq>" + b"<a>" * 5000 + b"</a>" * 5000)
    for sidecar in (b"not xml", b"<a/>", b"", b'<?xml version="1.0" encoding="nonsense"?><a/>', deep):
        with pytest.raises(OutputRefused, match="left unchanged"):
            xmp.with_description(sidecar, "a cat")
