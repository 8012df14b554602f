"""The images inside a zip or tar archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from captioner.bulk.sources import archives
from captioner.bulk.sources.item import FoundImage, Item
from captioner.bulk.sources.leave_out import HIDDEN, LeaveOut, OnPassedOver, PassedOver, extension_of
from captioner.bulk.sources.sidecar_names import SidecarNames
from captioner.errors import CaptionerError
from captioner.image.formats import is_image
from captioner.image.limits import check_file_size
from captioner.wire import MAX_IMAGE_BYTES


def images_in(
    path: Path, key: str, label: str, leave_out: LeaveOut, spool: Path | None, passed_over: OnPassedOver
) -> Iterator[FoundImage]:
    """Yield the images of an archive, under `key` and `label`. Raises one of `archives.BROKEN`.

    Of members with the same name, only the first counts. `spool` and `passed_over`: see `Sources.find`.
    """
    left: set[str] = set()
    for member in archives.members(path):
        if member.path and _is_input(member.path, key, label, leave_out, passed_over):
            left.add(member.path)
    sidecars = SidecarNames(left)

    def wanted(member: archives.Member) -> bool:
        return member.path in left

    def found(member: archives.Member, copy: Path | None = None) -> FoundImage:
        name = member.path
        left.discard(name)
        item = Item(f"{key}/{name}", copy or path, None if copy else member.name, member.offset, member.size)
        stem = f"{key}/{sidecars.stem(name)}"
        return FoundImage(item, f"{label}/{name}", stem, _too_large(member.size) if copy else None, bool(copy))

    if spool is not None and archives.is_compressed_tar(path):
        for member, copy in archives.unpack(path, spool, wanted, MAX_IMAGE_BYTES):
            yield found(member, copy)
        return
    for member in archives.members(path):
        if wanted(member):
            yield found(member)


def _is_input(name: str, key: str, label: str, leave_out: LeaveOut, passed_over: OnPassedOver) -> bool:
    """Return whether a member is to be captioned. `passed_over` hears of others, but not of captions."""
    group, is_format = leave_out.member(PurePosixPath(name).parts, f"{label}/{name}"), False
    silent = group == HIDDEN and not is_image(name)
    if group is None and not is_image(name):
        group, silent, is_format = extension_of(name), name.lower().endswith(leave_out.captions), True
    if group is not None and not silent:
        passed_over(PassedOver(f"{key}/{name}", f"{label}/{name}", group, is_format))
    return group is None


def _too_large(size: int) -> CaptionerError | None:
    """Return the error of a member that was not copied out of a compressed tar."""
    if size > MAX_IMAGE_BYTES:
        try:
            check_file_size(size)
        except CaptionerError as error:
            return error
    return None
