"""Sidecars of each kind: which captions count as there, which file is used, and what of a file is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captioner.bulk.outputs import containers, file_attributes, image_metadata, sidecars, xmp
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.outputs.sidecar_formats import Exif, SidecarFormat, Txt, Xmp
from captioner.bulk.sources.discover import Sources
from captioner.errors import OutputRefused
from captioner.examples import FOLDER
from tests.bulk.test_image_metadata import IPTC, with_iptc
from tests.bulk.test_outputs import captioned

CAT = FOLDER / "cat.jpg"
PERSON = "Written by a person"


def write(
    folder: Path, sidecar_format: SidecarFormat, existing: Any = "skip", separator: str = " ", **options: Any
) -> tuple[list[str], list[str], list[str]]:
    """Run a job; return the keys that were captioned and refused, and the log."""
    log: list[str] = []
    journal = None if existing == "skip" else Journal(folder / ".journal")
    edit = CaptionEdit(existing, separator=separator)
    output = sidecars.Sidecars(sidecar_format, edit, None, journal, log.append, **options)
    wanted = [image for image in Sources([str(folder)]).find() if output.wants(image)]
    failed = output.write([captioned(image, "A cat.") for image in wanted])
    output.close(finished=True, failed=bool(failed))
    refused = [image.item.key for image, _ in failed]
    return [image.item.key for image in wanted if image.item.key not in refused], refused, log


def photo(path: Path, data: bytes | None = None) -> Path:
    path.write_bytes(CAT.read_bytes() if data is None else data)
    return path


def test_an_empty_or_blank_text_file_counts_as_absent(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", b"\n"), ("c", b"  \r\n"), ("d", b"\xef\xbb\xbf"), ("e", b"a real one\n")):
        photo(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_bytes(content)
    captioned_keys, _, _ = write(tmp_path, Txt())
    assert captioned_keys == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert (tmp_path / "e.txt").read_bytes() == b"a real one\n" and (tmp_path / "b.txt").read_text() == "A cat.\n"


def test_a_description_of_the_camera_counts_as_absent_and_is_not_appended_to(tmp_path: Path) -> None:
    for number, text in enumerate(["OLYMPUS DIGITAL CAMERA   ", "SONY DSC", "DCIM\\100MEDIA\\DJI_0042.JPG", "  "]):
        photo(tmp_path / f"{number}.jpg", image_metadata.with_description(CAT.read_bytes(), text))
    kept = photo(tmp_path / "kept.jpg", image_metadata.with_description(CAT.read_bytes(), "Grandma in Olympus, Greece"))
    assert write(tmp_path, Exif())[0] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert image_metadata.description(kept.read_bytes()) == "Grandma in Olympus, Greece"
    photo(tmp_path / "0.jpg", image_metadata.with_description(CAT.read_bytes(), "SONY DSC"))
    write(tmp_path, Exif(), "append", " | ")
    assert image_metadata.description((tmp_path / "0.jpg").read_bytes()) == "A cat."
    assert image_metadata.description(kept.read_bytes()) == "Grandma in Olympus, Greece | A cat."


@pytest.mark.parametrize("sidecar_format", [Xmp(), Exif()])
def test_a_caption_in_the_xmp_or_iptc_of_the_image_counts_as_there(
    tmp_path: Path, sidecar_format: SidecarFormat
) -> None:
    photo(tmp_path / "xmp.jpg", containers.with_block(CAT.read_bytes(), "xmp", xmp.with_description(None, PERSON)))
    photo(tmp_path / "iptc.jpg", with_iptc(IPTC))
    photo(tmp_path / "none.jpg")
    assert write(tmp_path, sidecar_format)[0] == ["none.jpg"]
    write(tmp_path, sidecar_format, "append", " | ")
    for name in ("xmp", "iptc"):
        sidecar = tmp_path / f"{name}.xmp"
        image = (tmp_path / f"{name}.jpg").read_bytes()
        text = xmp.description(sidecar.read_bytes()) if sidecar.exists() else image_metadata.description(image)
        assert text == f"{PERSON} | A cat."


def test_a_caption_that_stays_in_the_image_beside_an_xmp_sidecar_is_said_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name, with_iptc(IPTC))
    done, _, log = write(tmp_path, Xmp(), "overwrite")
    assert done == ["a.jpg", "b.jpg"]
    assert log == [f"{tmp_path}/a.jpg holds a caption itself, which stays there; --to exif changes it; others likewise"]
    assert (tmp_path / "a.jpg").read_bytes() == with_iptc(IPTC)


@pytest.mark.parametrize("suffix", [".jpg.xmp", ".jpg.XMP", ".XMP", ".xmp"])
def test_an_xmp_sidecar_is_used_under_each_name_that_programs_give_it(tmp_path: Path, suffix: str) -> None:
    rated = xmp.with_description(None, "").replace(b'rdf:about=""', b'rdf:about="" xmlns:r="r" r:rating="5"')
    for name, packet in (("1", rated), ("2", xmp.with_description(None, PERSON))):
        photo(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}{suffix}").write_bytes(packet)
    assert write(tmp_path, Xmp())[0] == ["1.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["1.jpg", f"1{suffix}", "2.jpg", f"2{suffix}"])
    packet = (tmp_path / f"1{suffix}").read_bytes()
    assert xmp.description(packet) == "A cat." and b'rating="5"' in packet


def test_texts_take_another_extension(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    assert write(tmp_path, Txt(".caption"))[0] == ["a.jpg"] and write(tmp_path, Txt(".caption"))[0] == []
    assert (tmp_path / "a.caption").read_text() == "A cat.\n"
    for extension in ("caption", ".jpg", ".HEIC", ".zip", "", ".", ".a/b", ".../x", "." + "x" * 17):
        with pytest.raises(OutputRefused, match="--extension"):
            Txt(extension)


def test_a_text_with_nul_characters_is_never_joined_to(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    old = "ascii".encode("utf-16-le")
    (tmp_path / "a.txt").write_bytes(old)
    assert write(tmp_path, Txt(), "append")[:2] == ([], ["a.jpg"])
    assert (tmp_path / "a.txt").read_bytes() == old


# Attributes

KINDS: dict[str, tuple[str, SidecarFormat]] = {"txt": ("a.txt", Txt()), "exif": ("a.jpg", Exif())}


def prepare(folder: Path, name: str) -> Path:
    photo(folder / "a.jpg")
    path = folder / name
    if name == "a.txt":
        path.write_text("old\n")
    return path


def content(path: Path) -> str | None:
    return path.read_text().strip() if path.suffix == ".txt" else image_metadata.description(path.read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_mode_and_extended_attributes_stay_and_dates_on_request(tmp_path: Path, kind: str) -> None:
    name, sidecar_format = KINDS[kind]
    for keep_dates in (True, False):
        path = prepare(tmp_path, name)
        path.chmod(0o640)
        os.setxattr(path, "user.xdg.comment", b"mine")
        os.utime(path, (1_200_000_000, 1_210_000_000))
        assert write(tmp_path, sidecar_format, "overwrite", keep_dates=keep_dates)[0] == ["a.jpg"]
        status = path.stat()
        assert content(path) == "A cat."
        assert status.st_mode & 0o777 == 0o640 and os.getxattr(path, "user.xdg.comment") == b"mine"
        assert (status.st_mtime == 1_210_000_000) is keep_dates


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_stays_and_a_new_sidecar_belongs_to_the_owner_of_the_image(tmp_path: Path, kind: str) -> None:
    name, sidecar_format = KINDS[kind]
    path = prepare(tmp_path, name)
    os.chown(path, 1000, 1001)
    write(tmp_path, sidecar_format, "overwrite")
    assert (path.stat().st_uid, path.stat().st_gid) == (1000, 1001)
    photo(tmp_path / "new.jpg")
    os.chown(tmp_path / "new.jpg", 1002, 1003)
    write(tmp_path, Txt())
    assert ((tmp_path / "new.txt").stat().st_uid, (tmp_path / "new.txt").stat().st_gid) == (1002, 1003)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_links_stay_links_to_one_file(tmp_path: Path, kind: str) -> None:
    name, sidecar_format = KINDS[kind]
    path, link = prepare(tmp_path, name), tmp_path / "other name"
    os.utime(path, (1_200_000_000, 1_210_000_000))
    os.link(path, link)
    assert write(tmp_path, sidecar_format, "overwrite", keep_dates=True)[0] == ["a.jpg"]
    assert path.samefile(link) and content(path) == "A cat." and path.stat().st_mtime == 1_210_000_000
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


KILLED = """
import os, sys
from pathlib import Path
from captioner.bulk.outputs import file_attributes
written = Path.write_bytes
def torn(descriptor):
    os.ftruncate(descriptor, 7)
    os._exit(9)
real, calls = os.fsync, 0
def fsync(descriptor):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        torn(descriptor) if sys.argv[2] == "3" else os._exit(9)
    real(descriptor)
os.fsync = fsync
file_attributes.replace(Path(sys.argv[1]), b"the new content", Path(sys.argv[1]), False)
"""


@pytest.mark.parametrize("step", ["1", "2", "3"])
def test_a_file_with_hard_links_is_whole_again_after_a_kill(tmp_path: Path, step: str) -> None:
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"the old content, which is longer")
    os.link(path, link)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), step], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == 9
    if step == "3":
        assert path.read_bytes() == b"the new"
    file_attributes.complete(path)
    expected = b"the old content, which is longer" if step == "1" else b"the new content"
    assert path.read_bytes() == link.read_bytes() == expected
    shutil.copy(path, tmp_path / "c")
    file_attributes.complete(path)
    assert path.read_bytes() == expected, "it is completed once"
