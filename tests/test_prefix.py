"""The cache of prefixes, beside a plain model of cells: a set of holders for each."""

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mdl.engine.prefix import NONE, Copy, Cut, Forget, Match, Own, Shared, common
from mdl.engine.scheduler import Scheduler


@dataclass(eq=False)
class Request:
    """Goes on with its prompt by `answer`."""

    tokens: list[int]
    answer: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = -1
    most: int = 10_000
    fresh: bool = False
    branch: int = 0
    cached: int = -1

    def begin(self):
        self.cached = self.computed


class Cells:
    """What llama.cpp does with a unified cache: each cell knows the slots that hold it, and its token."""

    def __init__(self):
        self.cells = []
        self.most = 0

    def do(self, moves):
        for move in moves:
            if isinstance(move, Copy):
                assert not self.of(move.target), "the target has to be empty"
                for holders, _ in self.of(move.source)[: move.length]:
                    holders.add(move.target)
            else:
                for holders, _ in self.of(move.slot):
                    holders.discard(move.slot)
        self.cells = [cell for cell in self.cells if cell[0]]
        moves.clear()

    def of(self, slot):
        return [cell for cell in self.cells if slot in cell[0]]

    def compute(self, slot, tokens):
        self.cells += [({slot}, token) for token in tokens]
        self.most = max(self.most, len(self.cells))

    def tokens(self, slot):
        return [token for _, token in self.of(slot)]


def run(scheduler, cells, steps=5000):
    """All requests to their end; what is in the cells is always what it should be."""
    for _ in range(steps):
        work = scheduler.schedule()
        cells.do(scheduler.cache.moves)
        if not work:
            return
        for request, amount in work:
            assert cells.tokens(request.slot) == request.tokens[: request.computed]
            cells.compute(request.slot, request.tokens[request.computed : request.computed + amount])
        scheduler.advance(work)
        # What has been decided meanwhile is done in the cells before the next step.
        if isinstance(cells, Cells) and not scheduler.cache.moves:
            check(scheduler.cache, cells, scheduler.running)
        for request, _ in work:
            if request.computed == len(request.tokens):
                if request.answer:
                    request.tokens.append(request.answer.pop(0))
                else:
                    scheduler.remove(request)
    raise AssertionError("no end")


def check(cache, cells, running):
    slots = {request.slot for request in running}
    assert cache.used == len(cells.cells) <= cache.cells
    assert cache.busy == sum(bool(holders & slots) for holders, _ in cells.cells)


class OwnCells:
    """What llama.cpp does where each slot has cells of its own."""

    def __init__(self):
        self.slots = {}
        self.copied = 0

    def do(self, moves):
        for move in moves:
            if isinstance(move, Copy):
                assert not self.slots.get(move.target), "the target has to be empty"
                self.slots[move.target] = self.slots[move.source][: move.length]
                self.copied += move.length
            elif isinstance(move, Cut):
                self.slots[move.slot] = self.slots.get(move.slot, [])[: move.length]
            else:
                self.slots[move.slot] = []
        moves.clear()

    def compute(self, slot, tokens):
        self.slots.setdefault(slot, []).extend(tokens)

    def tokens(self, slot):
        return self.slots.get(slot, [])


few = st.lists(st.integers(0, 2), min_size=1, max_size=30)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), few, st.lists(st.integers(0, 2), max_size=15)), min_size=1, max_size=14
    ),
    st.integers(1, 4),
    st.integers(4, 20),
    st.integers(60, 200),
    st.integers(1, 5),
    st.booleans(),
)
@example([(0, [0], []), (1, [0] * 9, [0] * 12), (1, [0] * 21, [])], 1, 4, 65, 1, True)
def test_what_is_shared_is_what_it_should_be_and_cells_are_counted(todo, slots, batch, cells, kept, whole):
    beginnings = ([], [7] * 12, [7] * 6 + [8] * 6, [9] * 10)
    scheduler = Scheduler(slots, max(batch, slots), Shared(slots + kept, cells, whole), headroom=4)
    for beginning, prompt, answer in todo:
        scheduler.add(Request(beginnings[beginning] + prompt, list(answer)))
    run(scheduler, Cells())
    assert not scheduler.running and not scheduler.waiting and scheduler.cache.busy == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), few, st.lists(st.integers(0, 2), max_size=15)), min_size=1, max_size=14
    ),
    st.integers(1, 4),
    st.integers(4, 20),
)
def test_where_each_has_its_own_cells_they_hold_what_they_should(todo, slots, batch):
    beginnings = ([], [7] * 12, [7] * 6 + [8] * 6, [9] * 10)
    scheduler = Scheduler(slots, max(batch, slots), Own(slots))
    for beginning, prompt, answer in todo:
        scheduler.add(Request(beginnings[beginning] + prompt, list(answer)))
    run(scheduler, OwnCells())
    assert not scheduler.running and not scheduler.waiting


@pytest.mark.parametrize("shared", [True, False])
def test_what_many_have_in_common_is_computed_once(shared):
    system = list(range(1000))
    requests = [Request([*system, 2000 + number], [1] * 5) for number in range(16)]
    scheduler = Scheduler(8, 512, Shared(40, 4000) if shared else Own(8))
    for request in requests:
        scheduler.add(request)
    cells = Cells() if shared else OwnCells()
    run(scheduler, cells)
    assert [request.cached for request in requests] == [0] + [1000] * 15
    if shared:
        assert cells.most < 1000 + 16 * 10


def test_a_slot_of_its_own_is_gone_on_with_in_place_and_a_long_one_is_left_alone():
    scheduler, cells = Scheduler(3, 64, Own(3)), OwnCells()

    def ask(*tokens):
        request = Request(list(tokens))
        scheduler.add(request)
        run(scheduler, cells)
        return request.cached

    talk = [1] * 50
    assert ask(*talk) == 0
    assert ask(*talk, 2, 3) == 50 and cells.copied == 0
    assert ask(*talk[:10], 4) == 10 and cells.copied == 10
    assert ask(*talk, 2, 3, 5) == 52 and cells.copied == 10
    assert ask(8, 8) == 0 and ask(*talk, 2, 3, 5, 6) == 53


def test_after_a_failure_slots_of_their_own_are_empty():
    scheduler, cells = Scheduler(2, 64, Own(2)), OwnCells()
    for start in (1, 2, 3):
        scheduler.add(Request([start] * 5, [1] * 5))
    scheduler.advance(scheduler.schedule())
    assert len(scheduler.reset()) == 2 and len(scheduler.waiting) == 1
    scheduler.cache.moves.clear()
    assert scheduler.cache.match([1] * 6) == NONE
    run(scheduler, cells)
    assert not scheduler.waiting


def test_what_has_finished_is_gone_on_with():
    scheduler = Scheduler(2, 64, Shared(8, 1000))
    cells = Cells()
    first = Request([1, 2, 3], [4, 5])
    scheduler.add(first)
    run(scheduler, cells)
    assert first.tokens == [1, 2, 3, 4, 5]
    for tokens, cached in (([1, 2, 3, 4, 5, 6, 7], 5), ([1, 2, 9], 2), ([1, 2, 3], 2), ([8], 0)):
        then = Request(tokens)
        scheduler.add(then)
        run(scheduler, cells)
        assert then.cached == cached, tokens


def test_a_conversation_takes_one_slot_however_long_it_gets():
    cache = Shared(4, 1000)
    scheduler, cells = Scheduler(1, 64, cache), Cells()
    tokens = [0]
    for turn in range(1, 20):
        request = Request([*tokens, turn], [turn])
        scheduler.add(request)
        run(scheduler, cells)
        assert request.cached == len(tokens) if turn > 1 else request.cached == 0
        tokens = request.tokens
    assert cache.used == len(tokens)
    assert len({slot for holders, _ in cells.cells for slot in holders}) == 1


def test_the_least_recently_used_goes_first():
    scheduler, cells = Scheduler(1, 64, Shared(8, 30), headroom=0), Cells()

    def ask(*tokens):
        request = Request(list(tokens))
        scheduler.add(request)
        run(scheduler, cells)
        return request.cached

    one, two, three = [1] * 10, [2] * 10, [3] * 10
    assert [ask(*one), ask(*two), ask(*three)] == [0, 0, 0]
    assert ask(*one) == 9
    ask(*([4] * 9))
    assert ask(*one) == 9
    assert ask(*two) == 0


def test_where_a_state_is_whole_only_what_ends_where_a_prompt_goes_on_is_taken():
    scheduler, cells = Scheduler(1, 64, Shared(8, 100, whole=True)), Cells()
    for tokens, cached in (([1, 2, 3], 0), ([1, 2, 3, 4], 3), ([1, 2, 9, 9], 0), ([1, 2, 3, 4], 3)):
        request = Request(tokens)
        scheduler.add(request)
        run(scheduler, cells)
        assert request.cached == cached, tokens


def test_where_a_state_is_whole_the_second_saves_what_it_has_in_common_for_the_third():
    system = list(range(100))
    scheduler, cells = Scheduler(2, 64, Shared(4, 1000, whole=True)), Cells()
    for number, cached in enumerate((0, 0, 100, 100)):
        request = Request([*system, 200 + number], [1] * 5)
        scheduler.add(request)
        run(scheduler, cells)
        assert request.cached == cached


def test_one_that_is_fresh_takes_nothing_and_leaves_what_it_has():
    scheduler, cells = Scheduler(1, 64, Shared(8, 100)), Cells()
    cached = []
    for fresh in (False, True, False):
        request = Request([1, 2, 3, 4], fresh=fresh)
        scheduler.add(request)
        run(scheduler, cells)
        cached.append(request.cached)
    assert cached == [0, 0, 3]


def test_after_a_reset_nothing_is_left():
    cache = Shared(8, 1000)
    scheduler = Scheduler(2, 64, cache)
    for start in (1, 2, 3):
        scheduler.add(Request([start] * 5, [1] * 5))
    scheduler.advance(scheduler.schedule())
    lost = scheduler.reset()
    assert len(lost) == 2 and not scheduler.running and len(scheduler.waiting) == 1
    assert (cache.used, cache.busy) == (0, 0)
    assert cache.match([1] * 6) == NONE


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 50))
def test_what_two_have_in_common(one, other, most):
    expected = 0
    while expected < min(len(one), len(other), most) and one[expected] == other[expected]:
        expected += 1
    assert common(one, other, most) == expected


@pytest.mark.parametrize("length", [1, 5, 9])
def test_a_match_may_be_anywhere_in_what_is_shared(length):
    cache = Shared(8, 100)
    first = Request(list(range(10)))
    cache.start(first)
    cache.grow(first, 10)
    first.computed = 10
    cache.keep(first)
    second = Request([*range(length), 99])
    match = cache.match(second.tokens)
    assert match == Match(0 if match.slot == 0 else match.slot, length)
    cache.start(second, match)
    assert (second.computed, cache.used, cache.busy) == (length, 10, length)
    cache.make_room(100)
    assert (cache.used, cache.busy) == (length, length)
    assert isinstance(cache.moves[-1], Forget)
