"""Sources: which images the PATHs give, in which order, under which keys, and what cannot be read."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.bulk.sources.discover import Sources
from captioner.bulk.sources.item import Item, read
from captioner.bulk.sources.sidecar_names import SidecarNames
from captioner.errors import ImageMissing, ImageTooLarge
from captioner.wire import MAX_IMAGE_BYTES

TREE = ("b.jpg", "a.PNG", "notes.md", ".hidden.jpg", "sub/c.webp", "sub/deep/d.gif", ".cache/e.jpg", "later/f.tiff")
SHOWN = ["a.PNG", "b.jpg", "later/f.tiff", "sub/c.webp", "sub/deep/d.gif"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create files whose content is their own path; make their parent the working directory."""
    for name in TREE:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def keys(*paths: object) -> list[str]:
    return [image.item.key for image in Sources([str(path) for path in paths]).find()]


def labels(*paths: object) -> list[str]:
    return [image.label for image in Sources([str(path) for path in paths]).find()]


def packed(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith(("gz", "tgz")) else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_gives_its_images_in_a_repeatable_order_without_hidden_files(tree: Path) -> None:
    assert keys(tree) == SHOWN == keys(tree)


def test_an_explicitly_named_file_is_tried_whatever_its_suffix(tree: Path) -> None:
    assert keys("photos/notes.md", "photos/.hidden.jpg") == ["notes.md", ".hidden.jpg"]


def test_labels_are_spelt_as_the_user_spelt_the_path(tree: Path) -> None:
    assert labels("photos/sub") == ["photos/sub/c.webp", "photos/sub/deep/d.gif"]
    assert labels("./photos/b.jpg") == ["./photos/b.jpg"]
    assert labels("photos/*.jpg") == ["photos/b.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["b.jpg"]),
        ("photos/*", ["a.PNG", "b.jpg"]),
        ("photos/**/*.gif", ["sub/deep/d.gif"]),
        ("photos/**", SHOWN),
        ("photos/*/[cf].*", ["later/f.tiff", "sub/c.webp"]),
        ("**/deep/*.gif", ["photos/sub/deep/d.gif"]),
        ("photos/**/deep/**/*.gif", ["sub/deep/d.gif"]),
    ],
)
def test_a_quoted_glob_gives_the_files_that_match(tree: Path, pattern: str, expected: list[str]) -> None:
    assert keys(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("10_ohwx [v2]/*.jpg", ["a.jpg"]),
        ("10_ohwx [v2]/[b]/*", ["c.jpg"]),
        ("*/*.jpg", ["10_ohwx [v2]/a.jpg", "photos/b.jpg"]),
        ("1[0-9]_ohwx */*.jpg", ["10_ohwx [v2]/a.jpg"]),
        ("{x,y}.jpg", ["{x,y}.jpg"]),
        ("photos/*.{jpg,PNG}", ["a.PNG", "b.jpg"]),
        ("photos/*.{jpg,heic}", ["b.jpg"]),
        ("photos/{sub,later}", ["later/f.tiff", "sub/c.webp", "sub/deep/d.gif"]),
        ("photos/{sub/deep/*.gif,b.jpg}", ["b.jpg", "sub/deep/d.gif"]),
        ("photos/{b.{png,jpg},later/*}", ["b.jpg", "later/f.tiff"]),
        ("~/*.jpg", ["b.jpg"]),
        ("~/sub", ["c.webp", "deep/d.gif"]),
    ],
)
def test_a_glob_takes_what_exists_as_it_is_spelt_and_expands_braces_and_the_home_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tree))
    for name in ("10_ohwx [v2]/a.jpg", "10_ohwx [v2]/[b]/c.jpg", "{x,y}.jpg", "x.jpg"):
        (tree.parent / name).parent.mkdir(exist_ok=True)
        (tree.parent / name).touch()
    if pattern == "photos/{b.{png,jpg},later/*}":
        (tree / "b.png").touch()
        expected = [*expected, "b.png"]
    assert sorted(keys(pattern)) == sorted(expected)


def test_a_pattern_of_braces_that_stands_for_too_many_paths_is_refused(tree: Path) -> None:
    with pytest.raises(ImageMissing, match="more than 1000 paths"):
        Sources(["photos/" + "{a,b}" * 40 + "/*.jpg"])


@pytest.mark.parametrize(
    "path",
    ["nowhere", "photos/*.{heic,avif}", "photos/{b,c}.jpg", "photos/nowhere.jpg", "photos/*.heic", "nowhere/**/*.jpg"],
)
def test_a_path_that_does_not_exist_is_refused_before_the_job_starts(tree: Path, path: str) -> None:
    with pytest.raises(ImageMissing, match=r"no such file|no file matches"):
        Sources([str(tree), path])


def test_keys_of_several_paths_are_relative_to_their_common_folder(tree: Path) -> None:
    (tree / "later" / "c.webp").write_text("another")
    found = keys("photos/sub", "photos/later")
    assert found == ["sub/c.webp", "sub/deep/d.gif", "later/c.webp", "later/f.tiff"]


def test_a_photo_that_several_paths_contain_is_found_once(tree: Path) -> None:
    paths = ("photos/b.jpg", "photos", "photos/sub", "photos/*.jpg", "photos/**/*.gif", "photos/b.jpg", "./photos/sub")
    found = keys(*paths)
    assert len(found) == len(set(found)) == len(SHOWN)


def test_symbolic_links_are_followed_and_link_loops_end(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "sub" / "self").symlink_to(tree / "sub")
    (tree / "elsewhere").symlink_to(tree.parent / "other")
    (tree.parent / "other").mkdir()
    (tree.parent / "other" / "g.jpg").write_text("linked")
    assert sorted(keys(tree)) == sorted([*SHOWN, "elsewhere/g.jpg"])
    assert set(keys("photos/**/*.gif")) == {"sub/deep/d.gif"}


def test_an_unreadable_folder_fails_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Path) -> object:  # root reads files of any mode, so chmod would not make the folder unreadable
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = {image.item.key: image.error for image in Sources([str(tree)]).find()}
    assert [key for key, error in found.items() if error is None] == ["a.PNG", "b.jpg", "later/f.tiff"]
    assert isinstance(found["sub"], ImageMissing) and "Permission denied" in str(found["sub"])


@pytest.mark.parametrize("name", ["some.zip", "some.tar", "some.tar.gz", "some.tgz"])
def test_an_archive_gives_its_images_with_their_bytes(tmp_path: Path, name: str) -> None:
    members = {f"shard/{number:04d}.jpg": os.urandom(3000 + number) for number in range(20)}
    extra = {"shard/0000.txt": b"words", "__MACOSX/._0000.jpg": b"no", ".hidden/x.jpg": b"no", "../../up.jpg": b"up"}
    archive = packed(tmp_path / name, members | extra)
    spool = tmp_path / "spool"
    spool.mkdir()
    contents = {}
    for image in Sources([str(archive)]).find(spool):
        assert image.error is None
        contents[image.item.key] = read(pickle.loads(pickle.dumps(image.item)))
    expected = {f"{name}/{member}": data for member, data in members.items()}
    assert contents == expected | {f"{name}/up.jpg": b"up"}
    assert len(list(Sources([str(archive)]).find())) == 21, "counting needs no spool"


def test_a_compressed_tar_is_unpacked_lazily(tmp_path: Path) -> None:
    archive = packed(tmp_path / "many.tgz", {f"{number}.jpg": os.urandom(100) for number in range(50)})
    spool = tmp_path / "spool"
    spool.mkdir()
    images = Sources([str(archive)]).find(spool)
    for _ in range(3):
        assert next(images).temporary
    assert len(list(spool.iterdir())) == 3


@pytest.mark.parametrize("name", ["cut.zip", "cut.tar", "cut.tar.gz"])
def test_a_broken_archive_fails_alone_and_the_next_path_is_read(tmp_path: Path, name: str) -> None:
    archive = packed(tmp_path / name, {f"{number}.jpg": os.urandom(5000) for number in range(9)})
    archive.write_bytes(archive.read_bytes()[:20_000])
    (tmp_path / "good.jpg").write_bytes(b"good")
    found = list(Sources([str(archive), str(tmp_path / "good.jpg")]).find(tmp_path))
    assert [each.item.key for each in found if each.error is not None] == [name]
    assert found[-1].item.key == "good.jpg" and found[-1].error is None


def test_an_unreadable_item_raises_a_typed_error(tmp_path: Path) -> None:
    empty, pipe, large = tmp_path / "empty.jpg", tmp_path / "pipe.jpg", tmp_path / "large.jpg"
    empty.touch()
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    cut = Item("cut", empty, "m", offset=0, size=10)
    (tmp_path / "short").write_bytes(b"1234")
    for item, kind in (
        (Item("a", empty), ImageMissing),
        (Item("b", pipe), ImageMissing),
        (Item("c", large), ImageTooLarge),
        (Item("d", tmp_path / "none.jpg"), ImageMissing),
        (Item("e", tmp_path), ImageMissing),
        (cut, ImageMissing),
        (Item("f", tmp_path / "short", "m", offset=2, size=10), ImageMissing),
    ):
        with pytest.raises(kind):
            read(item)


def test_a_too_large_member_of_a_zip_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    archive = packed(tmp_path / "bomb.zip", {"bomb.png": bytes(MAX_IMAGE_BYTES + 1)})
    (image,) = Sources([str(archive)]).find()
    with pytest.raises(ImageTooLarge):
        read(image.item)


def test_images_that_share_a_stem_keep_their_whole_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "sub/a.jpg", "C.JPG", "c.png", "d.jpg", "d.jpg.png", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    stems = {image.item.key: image.stem for image in Sources([str(tmp_path)]).find()}
    assert stems == {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "b.jpg": "b",
        "sub/a.jpg": "sub/a",
        "C.JPG": "C.JPG",
        "c.png": "c.png",
        "d.jpg": "d",
        "d.jpg.png": "d.jpg.png",
    }
    alone = Sources([str(tmp_path / "a.jpg")]).find()
    assert next(alone).stem == "a.jpg", "the stem depends on the folder, not on the other PATHs"


def zip_without_utf8(path: Path, names: dict[bytes, bytes], system: int = 0) -> Path:
    """A zip whose names have these bytes (and extra fields), without the flag for UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, extra in names.items():
            info = zipfile.ZipInfo("x" * len(name))
            info.create_system, info.extra = system, extra
            archive.writestr(info, b"photo")
    data = path.read_bytes()
    for name in names:
        data = data.replace(b"x" * len(name), name)
    path.write_bytes(data)
    return path


def unicode_field(raw: bytes, name: str) -> bytes:
    value = struct.pack("<BI", 1, zlib.crc32(raw)) + name.encode()
    return struct.pack("<HH", 0x7075, len(value)) + value


@pytest.mark.parametrize(
    ("raw", "extra", "name"),
    [
        (b"Zo\x89.jpg", b"", "Zoë.jpg"),
        ("Zoë.jpg".encode(), b"", "Zoë.jpg"),
        ("写真.jpg".encode(), b"", "写真.jpg"),
        ("写真.jpg".encode("cp932"), unicode_field("写真.jpg".encode("cp932"), "写真.jpg"), "写真.jpg"),
        (b"Zo\x89.jpg", unicode_field(b"another", "other.jpg"), "Zoë.jpg"),
        (b"Zo\x89.jpg", b"\x75\x70\xff", "Zoë.jpg"),
        (b"sub\\back.jpg", b"", "sub/back.jpg"),
    ],
)
def test_a_name_in_a_zip_is_read_in_its_own_encoding(tmp_path: Path, raw: bytes, extra: bytes, name: str) -> None:
    archive = zip_without_utf8(tmp_path / "a.zip", {raw: extra})
    (image,) = Sources([str(archive)]).find()
    assert image.item.key == f"a.zip/{name}"
    assert read(pickle.loads(pickle.dumps(image.item))) == b"photo"


def test_a_backslash_in_a_name_of_another_system_is_a_character(tmp_path: Path) -> None:
    archive = zip_without_utf8(tmp_path / "a.zip", {b"sub\\back.jpg": b""}, system=3)
    assert keys(archive) == ["a.zip/sub\\back.jpg"]


def test_a_link_to_itself_does_not_hide_the_other_photos_of_its_folder(tree: Path) -> None:
    (tree / "loop.jpg").symlink_to("loop.jpg")
    assert keys(tree) == ["a.PNG", "b.jpg", "loop.jpg", "later/f.tiff", "sub/c.webp", "sub/deep/d.gif"]


NAMES = st.lists(
    st.builds(
        "".join, st.lists(st.sampled_from(["a", "B", "b", ".jpg", ".png", ".JPG", ".txt", ".", "x"]), min_size=1)
    ).filter(lambda name: name.strip(".") and not name.startswith(".")),
    unique_by=str.casefold,
    max_size=12,
)


@given(NAMES)
def test_no_two_files_of_a_folder_share_a_sidecar(names: list[str]) -> None:
    sidecar_names = SidecarNames(names)
    tried = [name for name in names if not name.casefold().endswith((".txt", ".xmp"))]
    sidecars = [sidecar_names.stem(name).casefold() for name in tried]
    assert len(set(sidecars)) == len(sidecars)


class Zeros(io.RawIOBase):
    """An endless file."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    """A tar whose members have the sizes they state, filled with zeros, and a good photo after them."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for info in members:
            tar.addfile(info, Zeros() if info.size > 0 else None)
        photo = tarfile.TarInfo("good.jpg")
        photo.size = 4
        tar.addfile(photo, io.BytesIO(b"good"))
    return path


def member(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, attributes: dict[str, str] | None = None
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = size, kind, attributes or {}
    return info


def test_a_too_large_member_of_a_compressed_tar_is_refused_and_not_unpacked(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "bomb.tar.gz", member("bomb.jpg", MAX_IMAGE_BYTES + 1))
    assert archive.stat().st_size < 100_000
    spool = tmp_path / "spool"
    spool.mkdir()
    bomb, good = Sources([str(archive)]).find(spool)
    assert sum(path.stat().st_size for path in spool.iterdir()) == 4
    with pytest.raises(ImageTooLarge, match=r"20\.0 MiB"):
        read(bomb.item)
    assert read(good.item) == b"good"


@pytest.mark.parametrize("name", ["odd.tar", "odd.tar.gz"])
def test_links_devices_and_sparse_files_in_a_tar_are_no_images(tmp_path: Path, name: str) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    odd = [member(f"{number}.jpg", kind=kind) for number, kind in enumerate(kinds)]
    for info in odd:
        info.linkname = "/etc/passwd"
    sparse = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "999999999999", "GNU.sparse.name": "sparse.jpg"}
    archive = tar_of(tmp_path / name, *odd, member("s.jpg", 512, attributes=sparse))
    assert [image.item.key for image in Sources([str(archive)]).find(tmp_path)] == [f"{name}/good.jpg"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "lie",
    [
        member("a.jpg", -512),
        member("a.jpg", attributes={"size": "-512"}),
        member("a.jpg", 2**22, tarfile.XHDTYPE),
    ],
    ids=["negative", "negative attribute", "long name"],
)
def test_a_tar_that_lies_about_sizes_is_a_broken_archive(tmp_path: Path, lie: tarfile.TarInfo, suffix: str) -> None:
    (image,) = Sources([str(tar_of(tmp_path / f"lie{suffix}", lie))]).find(tmp_path)
    assert isinstance(image.error, ImageMissing)
    assert re.search(r"size of -512 bytes|4194304 bytes; the limit is 1048576", str(image.error))


@pytest.mark.parametrize(
    ("method", "reason"), [(zipfile.ZIP_DEFLATED, "CRC"), (zipfile.ZIP_LZMA, "CRC"), (zipfile.ZIP_BZIP2, "bzip2")]
)
def test_a_zip_that_states_a_small_size_does_not_fill_the_memory(tmp_path: Path, method: int, reason: str) -> None:
    archive = tmp_path / "lie.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("a.jpg", bytes(100 * 2**20))
    data = bytearray(archive.read_bytes())
    size = data.rindex(b"PK\x01\x02") + 24  # in the central directory, which zipfile believes
    data[size : size + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(data)
    (image,) = Sources([str(archive)]).find()
    tracemalloc.start()
    with pytest.raises(ImageMissing, match=reason):
        read(image.item)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20
