"""Looked at before the first byte: may this volume be written, is it one file system, is there room."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nimpull.core.abilities import Abilities, WriteMode
from nimpull.core.names import STATE_DIRECTORY, SafePath, display
from nimpull.core.units import show_bytes
from nimpull.errors import ListingError, NoSpaceError, NotWritableError, StoreError
from nimpull.store.durable import share_with_group, store_error
from nimpull.store.tree import INGESTS, PROBE, TEMPORARY, Tree
from nimpull.store.trial import try_out

#: Kept free beside what is needed: directories, journals, the report (bytes).
RESERVE: Final = 16 << 20
_STATE_INODES: Final = 16  # of .nimpull, while a run writes
_NAME_A_STORE: Final = "Name a directory that can be made (nimpull: --store), or mount the volume there."
_NAME_A_FILE: Final = "Name a file whose directory can be made with --manifest-file (NIM_MANIFEST_PATH)."
_NO_DIRECTORY: Final = frozenset(
    {errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)


@dataclass(frozen=True, slots=True)
class Room:
    """Free for this user; None: the file system does not say (inodes: btrfs, many network ones)."""

    bytes: int | None
    inodes: int | None


def probe(root: str) -> Abilities:
    """Make the root, write and remove a file where ingests go and where files end up, and try out the rest.

    Raises NotWritableError with uid, gid and the mode of what refused, NoSpaceError, StoreIOError.
    """
    try:
        _make_directory(os.path.abspath(root))
    except OSError as error:
        raise _explained(error, root) from error
    tree = Tree(root)
    try:
        check_one_file_system(tree, (f"{name}/" for name in tree.names("")))
        abilities = try_out(tree)
        final = f"{PROBE}{secrets.token_hex(8)}"
        if abilities.mode is WriteMode.SEQUENTIAL:
            tree.create(final, b"probe")
        else:
            tree.write(final, b"probe", durable=False)
        tree.unlink(final)
        return abilities
    except NotWritableError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _explained(cause, root) from error
        raise


def make_scratch(place: str, root: str) -> str:
    """A private directory for files of the store ``root`` that are assembled outside of it, below ``place``.

    Its name is the store's, so that the next run goes on with what is there. NotWritableError.
    """
    name = hashlib.sha256(os.path.abspath(root).encode()).hexdigest()[:16]
    scratch = os.path.join(place, f"nimpull-{name}")
    try:
        os.makedirs(scratch, 0o700, exist_ok=True)
        status = os.lstat(scratch)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "it is another user's")
        for each in (INGESTS, TEMPORARY):
            os.makedirs(os.path.join(scratch, each), 0o700, exist_ok=True)
    except OSError as error:
        raise NotWritableError(
            f"{display(root, 300)} takes files only whole and in order, and they cannot be assembled in "
            f"{display(scratch, 300)}: {error.strerror}",
            hint="Name a writable directory with room for the largest file in NIMPULL_SCRATCH (in a pod: the "
            "mount of an emptyDir).",
        ) from error
    return scratch


def probe_place(path: str) -> None:
    """Make the directory of a file that is written beside the store's own. Raises StoreError as above."""
    above = os.path.dirname(os.path.abspath(path))
    try:
        _make_directory(above)
        if not os.access(above, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _explained(error, above, "a directory for the manifest", _NAME_A_FILE) from error


def _make_directory(path: str) -> None:
    """OSError; FileExistsError for what is no directory and stands in its place."""
    if os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path))
    try:
        os.mkdir(path)
        share_with_group(path)
    except FileExistsError:
        if not os.path.isdir(path):  # not another pod's
            raise


def _explained(
    error: OSError, root: str, purpose: str = "the store", hint: str = _NAME_A_STORE
) -> StoreError:
    """A refusal with the facts that a cluster's operator needs: who asks, who owns, which mode."""
    place = os.path.abspath(root)
    while not os.path.lexists(place) and place != "/":
        place = os.path.dirname(place)
    shown = display(place, 300)
    if error.errno in _NO_DIRECTORY:
        if os.path.isdir(place):
            reason = f"no directory can be made in {shown}: {error.strerror}"
        elif os.path.islink(place):
            reason = f"{shown} is a link to “{display(os.readlink(place), 200)}”, which leads to no directory"
        else:
            reason = f"{shown} is a file, not a directory"
        return NotWritableError(f"{display(root, 300)} cannot be {purpose}: {reason}", hint=hint)
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return store_error(error, f"make {purpose}", root)
    try:
        status = os.stat(place)
        owner = f"owner {status.st_uid}:{status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"
    except OSError as unreadable:
        owner = f"owner unknown: {unreadable.strerror}"
    writer = f"uid {os.geteuid()}, gid {os.getegid()}"
    groups = ",".join(str(group) for group in os.getgroups()) or "none"
    read_only = error.errno == errno.EROFS
    return NotWritableError(
        f"{shown} cannot be written: {error.strerror} ({writer}, groups {groups}; {owner})",
        hint="The volume is mounted read-only: set readOnly to false, or use a volume that may be written."
        if read_only
        else f"Set runAsUser and fsGroup (NIMCache: spec.userID, spec.groupID) so that {writer} may "
        "write there; some NFS servers ignore fsGroup or squash root: then change the owner on the server.",
    )


def check_one_file_system(tree: Tree, paths: Iterable[str]) -> None:
    """NotWritableError if a directory above any of ``paths`` is on another file system than nimpull's own: a
    finished ingest is renamed into place."""
    with tree.directory(STATE_DIRECTORY, create=True) as state:
        device = os.fstat(state).st_dev
    for above in sorted(_directories_above(paths)):
        status = tree.lstat(above)
        if status and stat.S_ISDIR(status.st_mode) and status.st_dev != device:
            raise NotWritableError(
                f"{display(tree.absolute(above), 300)} is on another file system than "
                f"{display(tree.absolute(STATE_DIRECTORY), 300)}: no file can be renamed to there",
                hint="Mount one volume at the store's root; no mount, subPath or bind mount below it.",
            )


def _directories_above(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        above = os.path.dirname(path)
        while above and above not in found:
            found.add(above)
            above = os.path.dirname(above)
    return found


def room(root: str) -> Room:
    """What this user may still write. Raises StoreIOError."""
    try:
        status = os.statvfs(root)
    except OSError as error:
        raise store_error(error, "measure the room of", root) from error
    # some FUSE drivers answer with zeros: a volume without a block would hold no file at all
    free = status.f_bavail * status.f_frsize if status.f_blocks else None
    # nor could it have been probed without an inode: rclone counts none as free, and takes any number
    return Room(free, status.f_favail or None)


def inodes_for(tree: Tree, paths: Iterable[str], *, each: int) -> int:
    """Directory entries that files at ``paths`` need, with the directories that are not there yet.

    ``each``: how many for a file or a directory: in a hub cache a blob and its link, in a local directory a
    file and its description. State of nimpull's own comes on top (a record, a marker, a journal).
    """
    paths = tuple(paths)
    with tree.holding():
        new = sum(tree.lstat(above) is None for above in _directories_above(paths))
    return each * (len(paths) + new) + _STATE_INODES


def check_room(root: str, need: int, *, files: int = 0) -> None:
    """NoSpaceError if ``need`` bytes and ``files`` inodes do not fit; says needs, has and short by.

    ``need``: without what is already on the volume, finished or partial.
    """
    free = room(root)
    wanted = need + RESERVE if need else 0
    if free.bytes is not None and wanted > free.bytes:
        raise NoSpaceError(
            f"{display(root, 300)}: needs {show_bytes(wanted)}, has {show_bytes(free.bytes)}, "
            f"short by {show_bytes(wanted - free.bytes)}",
            hint="Enlarge the volume (NIMCache: spec.storage.pvc.size) or select fewer profiles.",
        )
    if free.inodes is not None and files > free.inodes:
        raise NoSpaceError(
            f"{display(root, 300)}: needs {files:,} inodes, has {free.inodes:,}, short by "
            f"{files - free.inodes:,} inodes",
            hint="The volume has room but no more file entries: use one made with more inodes.",
        )


def folds_names(tree: Tree) -> bool:
    """Whether this file system takes names for one that differ in case only."""
    name = f"{TEMPORARY}/Probe-{os.path.basename(tree.temporary())}"
    tree.write(name, b"", durable=False)
    try:
        return tree.lstat(f"{TEMPORARY}/{os.path.basename(name).swapcase()}") is not None
    finally:
        tree.unlink(name)


def check_names(paths: Iterable[SafePath], *, folding: bool) -> None:
    """ListingError for two names that cannot both be: a file that is also a directory, or one by case."""
    files: dict[str, SafePath] = {}
    directories: dict[str, SafePath] = {}
    for path in paths:
        key = path.collision_key if folding else str(path)
        other = files.setdefault(key, path)
        if other != path:
            raise _collision(other, path)
        segments = key.split("/")
        for depth in range(1, len(segments)):
            directories.setdefault("/".join(segments[:depth]), path)
    for key in files.keys() & directories.keys():
        raise _collision(files[key], directories[key])


def _collision(one: str, other: str) -> ListingError:
    return ListingError(
        f"“{display(one, 200)}” and “{display(other, 200)}” cannot both exist on this file system",
        hint="Use a volume that tells upper from lower case (ext4, xfs, NFS), or select one of the two.",
    )
