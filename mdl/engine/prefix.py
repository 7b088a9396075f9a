"""Which cached tokens a new prompt can start from, and how many cells that leaves. Knows no llama.cpp.

There are two kinds of cache. In the shared one sequences that begin with the same tokens share the cells of
these: with those that run and with those that have finished, which are kept until their cells or their slot
are needed, the least recently used going first. A cell is free when no sequence holds it any more. In the
other one each slot has cells of its own, which hold what it computed last until it is used again, and what
another one has is copied. What is done here is told by `moves`, in order, for whoever has the real cells.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeVar


class Holder(Protocol):
    """A running sequence: its tokens, of which the first `computed` lie in the cells of `slot`."""

    tokens: list[int]
    computed: int
    slot: int


H = TypeVar("H", bound=Holder)


class Copy(NamedTuple):
    """The empty slot `target` begins with the first `length` cells of `source`."""

    source: int
    target: int
    length: int


class Forget(NamedTuple):
    """The slot is empty."""

    slot: int


class Cut(NamedTuple):
    """The slot keeps its first `length` cells."""

    slot: int
    length: int


class Match(NamedTuple):
    """A slot that begins with the first `length` tokens of a prompt. None has 0."""

    slot: int
    length: int


NONE = Match(-1, 0)


class Span:
    """Cells in a row, after those of `parent`, held by `users` sequences of which `runners` run.

    The sequences are the leaves of a tree of spans; what two of them share is on the way of both to the root.
    """

    __slots__ = ("cells", "parent", "runners", "users")

    def __init__(self, cells: int, parent: "Span | None", users: int = 0, runners: int = 0) -> None:
        self.cells = cells
        self.parent = parent
        self.users = users
        self.runners = runners

    def path(self) -> "Iterator[Span]":
        """From here to the root."""
        span: Span | None = self
        while span is not None:
            yield span
            span = span.parent

    def split(self, cells: int) -> "Span":
        """The first of its cells as a span of their own, the rest stays here."""
        upper = Span(cells, self.parent, self.users, self.runners)
        self.parent = upper
        self.cells -= cells
        return upper


class Kept:
    """What is left of a finished sequence."""

    __slots__ = ("computed", "slot", "tokens")

    def __init__(self, slot: int, tokens: list[int]) -> None:
        self.slot = slot
        self.tokens = tokens
        self.computed = len(tokens)


class Cache(Protocol):
    """What the scheduler asks of either kind. `cells` is what there is room for, `busy` what those take who
    run; where a state is `whole`, a sequence can only be gone on with where it ends."""

    cells: int
    moves: list[Copy | Forget | Cut]
    whole: bool

    @property
    def busy(self) -> int: ...

    def match(self, tokens: list[int]) -> Match: ...

    def branch(self, tokens: list[int]) -> int: ...

    def held(self, match: Match) -> int: ...

    def start(self, sequence: Holder, match: Match = NONE) -> None: ...

    def grow(self, sequence: Holder, cells: int) -> None: ...

    def save(self, sequence: Holder) -> None: ...

    def make_room(self, cells: int) -> bool: ...

    def keep(self, sequence: Holder) -> None: ...

    def drop(self, sequence: Holder) -> None: ...

    def clear(self) -> bool: ...


class Own:
    """`slots` sequences, each with cells of its own, enough for any request."""

    def __init__(self, slots: int) -> None:
        self.cells = 1 << 62  # of which nobody takes any from another one
        self.busy = 0
        self.whole = False
        self.moves: list[Copy | Forget | Cut] = []
        self._running: dict[int, Holder] = {}
        # The least recently used first; to begin with there is nothing in them.
        self._kept: dict[int, Kept] = {slot: Kept(slot, []) for slot in range(slots)}

    def match(self, tokens: list[int]) -> Match:
        """The slot that has most of a prompt; of several, one that is free."""
        return max(_matches(self._kept, tokens), _matches(self._running, tokens), key=lambda m: m.length)

    def branch(self, tokens: list[int]) -> int:  # noqa: ARG002 - the other kind looks
        return 0

    def held(self, match: Match) -> int:  # noqa: ARG002 - nothing is held by others
        return 0

    def start(self, sequence: Holder, match: Match = NONE) -> None:
        """In the slot of the match, where it is free and little in it is lost; else in the least recently
        used one, with a copy."""
        slot = self._chosen(match)
        has = self._kept.pop(slot).computed
        if slot == match.slot:
            self.moves.append(Cut(slot, match.length))
        else:
            if has:
                self.moves.append(Forget(slot))
            if match.length:
                self.moves.append(Copy(match.slot, slot, match.length))
        sequence.slot, sequence.computed = slot, match.length
        self._running[slot] = sequence

    def _chosen(self, match: Match) -> int:
        kept = self._kept.get(match.slot)
        oldest = next(iter(self._kept))
        return oldest if kept is None or match.length < kept.computed // 2 else match.slot

    def grow(self, sequence: Holder, cells: int) -> None:
        """Nobody needs to know."""

    def save(self, sequence: Holder) -> None:
        """Where a prompt branches off, its tokens are there anyway."""

    def make_room(self, cells: int) -> bool:  # noqa: ARG002 - each slot has its own
        return True

    def keep(self, sequence: Holder) -> None:
        """It has finished: what is computed of it can be gone on with."""
        slot = sequence.slot
        del self._running[slot]
        self._kept[slot] = Kept(slot, sequence.tokens[: sequence.computed])
        sequence.slot = -1

    def drop(self, sequence: Holder) -> None:
        """Nothing of it is kept."""
        slot = sequence.slot
        del self._running[slot]
        self._kept = {slot: Kept(slot, []), **self._kept}
        self.moves.append(Forget(slot))
        sequence.slot, sequence.computed = -1, 0

    def clear(self) -> bool:
        """Nothing is kept. False where nothing was."""
        had = [kept.slot for kept in self._kept.values() if kept.tokens]
        self._kept = {slot: Kept(slot, []) for slot in self._kept}
        self.moves += map(Forget, had)
        return bool(had)


def _matches(holders: dict[int, H], tokens: list[int], whole: bool = False) -> Match:
    """The best of them, the most recently used of those that are as good; with `whole` only one that ends
    there."""
    best = NONE
    for slot, holder in reversed(holders.items()):
        length = common(holder.tokens, tokens, min(holder.computed, len(tokens) - 1))
        if length > best.length and not (whole and length < holder.computed):
            best = Match(slot, length)
    return best


class Shared:
    """`cells` tokens in at most `slots` sequences. With `whole`, a sequence can only be gone on with where it
    ends: the state of recurrent models is one, and not one for each token.

    `used` cells hold something, `busy` ones something of a sequence that runs.
    """

    def __init__(self, slots: int, cells: int, whole: bool = False) -> None:
        self.cells = cells
        self.used = 0
        self.busy = 0
        self.moves: list[Copy | Forget | Cut] = []
        self.whole = whole
        self._free = list(range(slots))
        self._running: dict[int, Holder] = {}
        self._kept: dict[int, Kept] = {}  # the least recently used first
        self._leaves: dict[int, Span] = {}

    def match(self, tokens: list[int]) -> Match:
        """The slot that has most of a prompt; all but its last token, which has to be computed, to be gone on
        from."""
        running = _matches(self._running, tokens, self.whole)
        return max(running, _matches(self._kept, tokens, self.whole), key=lambda match: match.length)

    def branch(self, tokens: list[int]) -> int:
        """How much of a prompt others began with too, wherever they ended: where a state is whole, there it
        is worth keeping."""
        holders = (*self._running.values(), *self._kept.values())
        most = len(tokens) - 1
        return max((common(holder.tokens, tokens, most) for holder in holders), default=0)

    def held(self, match: Match) -> int:
        """How many of its cells a running sequence holds anyway."""
        if not match.length:
            return 0
        end = sum(span.cells for span in self._leaves[match.slot].path())
        for span in self._leaves[match.slot].path():
            if span.runners:
                return min(end, match.length)
            end -= span.cells
        return 0

    def start(self, sequence: Holder, match: Match = NONE) -> None:
        """Gives it a slot, and what the match has of it as computed."""
        kept = self._kept.get(match.slot)
        if kept is not None and match.length > kept.computed // 2:  # a few words in common are no use of it
            self._kept[match.slot] = self._kept.pop(match.slot)
        if not self._free:
            self._evict(next(slot for slot in self._kept if slot != match.slot))
        slot = sequence.slot = self._free.pop()
        sequence.computed = match.length
        leaf = self._leaves[slot] = Span(0, self._shared(match))
        for span in leaf.path():
            span.users += 1
            self._count_runner(span, 1)
        self._running[slot] = sequence
        if match.length:
            self.moves.append(Copy(match.slot, slot, match.length))

    def grow(self, sequence: Holder, cells: int) -> None:
        """So many more of its tokens are computed."""
        self._leaves[sequence.slot].cells += cells
        self.used += cells
        self.busy += cells

    def save(self, sequence: Holder) -> None:
        """Keeps what a running sequence has now, beside what it will be; if there is a slot."""
        if not self._free and self._kept:
            self._evict(next(iter(self._kept)))
        if self._free:
            saved = Kept(-1, sequence.tokens[: sequence.computed])
            self.start(saved, Match(sequence.slot, sequence.computed))
            self.keep(saved)

    def make_room(self, cells: int) -> bool:
        """Forgets what is kept until so many cells are free; False where that is not enough."""
        while self.cells - self.used < cells and self._kept:
            self._evict(next(iter(self._kept)))
        return self.cells - self.used >= cells

    def keep(self, sequence: Holder) -> None:
        """It has finished: what is computed of it can be gone on with. What it went on with itself is not
        needed any more, unless a state is whole: then it is the only way back."""
        slot, tokens = sequence.slot, sequence.tokens[: sequence.computed]
        if not tokens:
            self.drop(sequence)
            return
        if not self.whole:
            for other in [other for other, kept in self._kept.items() if _begins(tokens, kept.tokens)]:
                self._evict(other)
        del self._running[slot]
        for span in self._leaves[slot].path():
            self._count_runner(span, -1)
        self._kept[slot] = Kept(slot, tokens)
        sequence.slot = -1

    def drop(self, sequence: Holder) -> None:
        """Nothing of it is kept."""
        slot = sequence.slot
        del self._running[slot]
        for span in self._leaves[slot].path():
            self._count_runner(span, -1)
        self._release(slot)
        sequence.slot = -1
        sequence.computed = 0

    def clear(self) -> bool:
        """Nothing is kept. False where nothing was."""
        had = list(self._kept)
        for slot in had:
            self._evict(slot)
        return bool(had)

    def _evict(self, slot: int) -> None:
        del self._kept[slot]
        self._release(slot)

    def _release(self, slot: int) -> None:
        for span in self._leaves.pop(slot).path():
            span.users -= 1
            if not span.users:
                self.used -= span.cells
        self._free.append(slot)
        self.moves.append(Forget(slot))

    def _count_runner(self, span: Span, change: int) -> None:
        before = span.runners > 0
        span.runners += change
        self.busy += span.cells * ((span.runners > 0) - before)

    def _shared(self, match: Match) -> Span | None:
        """The span that ends where the match does."""
        if not match.length:
            return None
        leaf = self._leaves[match.slot]
        end = sum(span.cells for span in leaf.path())
        for span in leaf.path():
            start = end - span.cells
            if start < match.length:
                # A leaf may go on to grow, which those that share it do not.
                whole = match.length == end and span is not leaf
                return span if whole else span.split(match.length - start)
            end = start
        raise AssertionError("no slot has more tokens than cells")


def common(one: list[int], other: list[int], most: int) -> int:
    """How many tokens both begin with, at most `most`. Slices are compared in C, and halve the search."""
    if one[:most] == other[:most]:
        return min(most, len(one), len(other))
    low, high = 0, min(most, len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _begins(tokens: list[int], beginning: list[int]) -> bool:
    return len(beginning) <= len(tokens) and tokens[: len(beginning)] == beginning
