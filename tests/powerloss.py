"""A disk whose power fails: what a real command did to it, and what of that may be left afterwards.

`record` traces the calls of a command that change files. `Disk` does them again in memory and knows of each
what has been synced. `Disk.left` is what a POSIX file system may show after a power failure at that moment:

- of a file: what `fsync` brought to the disk; of the rest any pages, or zeros in their place, or nothing
- of names: what the `fsync` of a folder brought to the disk; of the other changes any, each whole or not at
  all (a rename is one change); but one name keeps the order of its changes, and a folder has never two names

Nothing is assumed that only some file systems give, such as names that come with the content they lead to.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults import Place, Ran

PAGE = 4096
CALLS = (
    "openat,write,pwrite64,writev,pwritev,ftruncate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sendfile,copy_file_range"
)
LONGEST = 8 << 20  # bytes of one write that are recorded


@dataclass(frozen=True)
class Call:
    """A system call that worked, on absolute paths, in the words of strace."""

    name: str
    paths: tuple[str, ...]
    words: str  # its arguments without texts
    data: bytes
    descriptor: int
    result: int

    def changes(self, root: Path) -> bool:
        """Whether it may change or sync what lies below a folder."""
        inside = [Path(path).is_relative_to(root) for path in self.paths]
        assert any(inside) == all(inside) or self.name == "symlink", f"{self} leads out of {root}"
        return any(inside) and not (self.name == "openat" and "O_RDONLY" in self.words)

    @property
    def numbers(self) -> list[int]:
        return [int(word) for word in re.findall(r"(?<=, )\d+\b", self.words)]


@dataclass(eq=False)
class File:
    """`data` is what processes see, `synced` what is on the disk."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    def write(self, data: bytes, offset: int) -> None:
        self.data.extend(bytes(max(offset - len(self.data), 0)))
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))


@dataclass(eq=False)
class Folder:
    """`names` is what processes see, `synced` what is on the disk."""

    names: "dict[str, Node]" = field(default_factory=dict)
    synced: "dict[str, Node]" = field(default_factory=dict)


Node = File | Folder


@dataclass(frozen=True, eq=False)
class Change:
    """Names that get another meaning, all of them or none; None: the name goes."""

    meanings: tuple[tuple[Folder, str, Node | None], ...]
    moved: tuple[Node, ...]

    def touches(self, folder: Folder) -> bool:
        return any(place is folder for place, _, _ in self.meanings)

    def comes_before(self, other: "Change") -> bool:
        """Whether `other`, which came later, cannot be on the disk without this one."""
        names = {(id(place), name) for place, name, _ in self.meanings}
        same_name = any((id(place), name) in names for place, name, _ in other.meanings)
        return same_name or any(isinstance(node, Folder) and node in other.moved for node in self.moved)


@dataclass(frozen=True)
class Way:
    """How much of what was not synced is left: the share of names, and what of each file.

    `content` is none, zeros (the size came to the disk and the bytes did not), pages (some of them), all, or
    any of these for each file.
    """

    names: float
    content: str
    seed: int = 0


EXTREMES = [Way(names, content) for names in (0, 1) for content in ("none", "zeros", "all")]
Leaf = tuple[int, bytes]  # which file it is, and its content
Image = dict[str, Leaf | None]  # by relative path; None is a folder
Names = Callable[["Folder"], "dict[str, Node]"]
Syncs = Callable[[str], bool]  # whether the sync of a path is done or only said to be


class Disk:
    """What lies below `root`: at first `start`, all of it safely on the disk."""

    def __init__(self, root: Path, start: Image, syncs: Syncs = lambda _: True) -> None:
        self.root, self.syncs = root, syncs
        self.top = Folder()
        self._pending: list[Change] = []
        self._positions: dict[int, int] = {}
        files: dict[int, File] = {}
        for path, leaf in start.items():
            folder, name = self._place(root / path)
            node = files.setdefault(leaf[0], File(bytearray(leaf[1]), leaf[1])) if leaf else Folder()
            folder.names[name] = folder.synced[name] = node

    def do(self, call: Call) -> None:
        """Do a call again."""
        getattr(self, f"_{call.name}")(call)

    def seen(self) -> Image:
        """What processes see."""
        return _image(self.top, lambda folder: folder.names, lambda file: bytes(file.data))

    def left(self, way: Way) -> Image:
        """What is there after a power failure."""
        dice = random.Random(way.seed)
        known: dict[int, dict[str, Node]] = {}
        dropped: list[Change] = []

        def names(folder: Folder) -> dict[str, Node]:
            return known.setdefault(id(folder), dict(folder.synced))

        for change in self._pending:
            if dice.random() >= way.names or any(earlier.comes_before(change) for earlier in dropped):
                dropped.append(change)
            else:
                _apply(change, names)
        return _image(self.top, names, lambda file: _survives(file, way.content, dice))

    # Calls

    def _openat(self, call: Call) -> None:
        folder, name = self._place(call.paths[0])
        if "O_CREAT" in call.words and name not in folder.names:
            self._change((folder, name, File()))
        node = folder.names.get(name)
        if isinstance(node, File):
            self._positions[call.result] = len(node.data) if "O_APPEND" in call.words else 0
            if "O_TRUNC" in call.words:
                node.truncate(0)

    def _write(self, call: Call) -> None:
        position = self._positions[call.descriptor]
        self._file(call).write(call.data[: call.result], position)
        self._positions[call.descriptor] = position + call.result

    def _pwrite64(self, call: Call) -> None:
        self._file(call).write(call.data[: call.result], call.numbers[-1])

    def _ftruncate(self, call: Call) -> None:
        self._file(call).truncate(call.numbers[-1])

    def _mkdir(self, call: Call) -> None:
        self._change((*self._place(call.paths[0]), Folder()))

    def _rename(self, call: Call) -> None:
        (old, name), (new, other) = map(self._place, call.paths)
        came, went = old.names[name], new.names.get(other)
        if came is went:
            return  # two names of one file: POSIX leaves both
        swapped = went if "RENAME_EXCHANGE" in call.words else None
        self._change((old, name, swapped), (new, other, came))

    def _link(self, call: Call) -> None:
        (old, name), (new, other) = map(self._place, call.paths)
        self._change((new, other, old.names[name]))

    def _unlink(self, call: Call) -> None:
        self._change((*self._place(call.paths[0]), None))

    def _fsync(self, call: Call) -> None:
        node = self._find(call.paths[0])
        if not self.syncs(call.paths[0]):
            return
        if isinstance(node, File):
            node.synced = bytes(node.data)
        elif node:
            self._settle(node)

    _fdatasync, _mkdirat, _rmdir, _unlinkat = _fsync, _mkdir, _unlink, _unlink
    _renameat = _renameat2 = _rename
    _linkat = _link

    # Inside

    def _change(self, *meanings: tuple[Folder, str, Node | None]) -> None:
        went = [folder.names.get(name) for folder, name, _ in meanings]
        moved = {node for node in (*went, *(node for _, _, node in meanings)) if node}
        change = Change(meanings, tuple(moved))
        _apply(change, lambda folder: folder.names)
        self._pending.append(change)

    def _settle(self, folder: Folder) -> None:
        """Bring to the disk what changed in a folder, and what that cannot be without."""
        settled: list[Change] = []
        for change in reversed(self._pending):
            if change.touches(folder) or any(change.comes_before(later) for later in settled):
                settled.append(change)
        for change in reversed(settled):
            _apply(change, lambda place: place.synced)
        self._pending = [change for change in self._pending if change not in settled]

    def _place(self, path: Path | str) -> tuple[Folder, str]:
        *parents, name = Path(path).relative_to(self.root).parts
        folder = self.top
        for parent in parents:
            inner = folder.names[parent]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def _find(self, path: str) -> Node | None:
        if Path(path) == self.root:
            return self.top
        try:
            folder, name = self._place(path)
        except KeyError:
            return None  # removed while it was open
        return folder.names.get(name)

    def _file(self, call: Call) -> File:
        node = self._find(call.paths[0])
        return node if isinstance(node, File) else File()


def _apply(change: Change, names: Names) -> None:
    for folder, name, node in change.meanings:
        if node is None:
            names(folder).pop(name, None)
        else:
            names(folder)[name] = node


def _image(top: Folder, names: Names, content: Callable[[File], bytes]) -> Image:
    files: dict[File, Leaf] = {}

    def listed(folder: Folder, prefix: str) -> Iterator[tuple[str, Leaf | None]]:
        for name, node in sorted(names(folder).items()):
            if isinstance(node, Folder):
                yield prefix + name, None
                yield from listed(node, f"{prefix}{name}/")
            else:
                if node not in files:
                    files[node] = (len(files), content(node))
                yield prefix + name, files[node]

    return dict(listed(top, ""))


def _survives(file: File, way: str, dice: random.Random) -> bytes:
    """What of a file is left."""
    new = bytes(file.data)
    if way == "any":
        way = dice.choice(["none", "zeros", "pages", "all"])
    if way == "all" or new == file.synced:
        return new
    if way == "none":
        return file.synced
    size = len(new) if way == "zeros" else dice.choice([len(new), dice.randint(0, len(new))])
    left = bytearray(file.synced[:size].ljust(size, b"\0"))
    for start in range(0, size, PAGE):
        if way == "pages" and dice.random() < 0.5:
            left[start : start + PAGE] = new[start : min(start + PAGE, size)]
    return bytes(left)


def image_of(root: Path) -> Image:
    """What lies below a real folder."""
    files: dict[int, Leaf] = {}

    def leaf(path: Path) -> Leaf | None:
        return (
            None if path.is_dir() else files.setdefault(path.stat().st_ino, (len(files), path.read_bytes()))
        )

    return {str(path.relative_to(root)): leaf(path) for path in sorted(root.rglob("*"))}


def fingerprint(image: Image) -> str:
    """Tells images apart."""
    digest = hashlib.sha256()
    for path, leaf in image.items():
        digest.update(f"{path}\0{leaf and (leaf[0], len(leaf[1]))}\0".encode() + (leaf[1] if leaf else b""))
    return digest.hexdigest()


def lay_out(image: Image, root: Path) -> None:
    """Make an image a real folder."""
    root.mkdir(parents=True)
    first: dict[int, Path] = {}
    for path, leaf in image.items():
        if leaf is None:
            (root / path).mkdir()
        elif leaf[0] in first:
            (root / path).hardlink_to(first[leaf[0]])
        else:
            first[leaf[0]] = root / path
            (root / path).write_bytes(leaf[1])


# Recording


def record(place: Place, *arguments: str) -> tuple[Ran, list[Call]]:
    """Run a command; how it ended, and what it did to the files of the cache, in order."""
    logs = place.root.with_suffix(".calls")
    logs.mkdir()
    options = ["-ff", "-ttt", "-y", "-xx", "-s", str(LONGEST), "-o", str(logs / "of"), "-e", f"trace={CALLS}"]
    ran = place.run(*arguments, before=["strace", *options])
    lines = [line.partition(" ") for log in logs.iterdir() for line in log.read_text().splitlines()]
    lines.sort(key=lambda line: float(line[0]))
    calls = (_parsed(text) for _, _, text in lines)
    return ran, [call for call in calls if call and call.changes(place.cache)]


_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_OPENED = re.compile(r"<((?:\\x[0-9a-f]{2})*)>")


def _parsed(line: str) -> Call | None:
    """A call that worked; None for all else."""
    match = re.fullmatch(r"(\w+)\((.*)\) += (\d+).*", line)
    if not match:
        return None
    name, arguments, result = match[1], match[2], int(match[3])
    assert "..." not in _TEXT.sub(lambda text: text[2] or "", arguments), f"a text is too long: {name}"
    opened = [_decoded(found).decode() for found in _OPENED.findall(arguments)]
    texts = [_decoded(found) for found, _ in _TEXT.findall(arguments)]
    words = _OPENED.sub("", _TEXT.sub("", arguments))
    descriptor = int(number[0]) if (number := re.match(r"\d+", words)) else -1
    if name in ("write", "pwrite64", "ftruncate", "fsync", "fdatasync"):
        data = texts[0] if texts else b""
        return Call(name, tuple(opened), words, data, descriptor, result)
    return Call(name, _joined(opened, texts), words, b"", descriptor, result)


def _joined(folders: list[str], names: list[bytes]) -> tuple[str, ...]:
    """Paths, each below the folder that was given with it."""
    below = folders if len(folders) == len(names) else [""] * len(names)
    return tuple(str(Path(folder, name.decode())) for folder, name in zip(below, names, strict=True))


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def replayed(
    root: Path, start: Image, calls: Iterable[Call], syncs: Syncs = lambda _: True
) -> Iterator[Disk]:
    """The disk before the first of the calls, and after each."""
    disk = Disk(root, start, syncs)
    yield disk
    for call in calls:
        disk.do(call)
        yield disk
