from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.engine.prefix import Shared
from mdl.engine.scheduler import Scheduler, share


@dataclass(eq=False)
class Request:
    """Wants `answer` tokens after its prompt."""

    prompt: int
    answer: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = -1
    most: int = 10_000
    fresh: bool = False
    branch: int = 0
    begun: int = 0

    def __post_init__(self):
        self.tokens = self.tokens or [id(self)] * self.prompt  # like no other

    def begin(self):
        self.begun += 1

    @property
    def done(self):
        return len(self.tokens) == self.prompt + self.answer


def scheduling(slots, batch, cells, headroom=64):
    return Scheduler(slots, batch, Shared(slots + 3, cells), headroom)


def step(scheduler):
    """One step as the worker takes it, with what must hold in each. Returns those who finished."""
    work = scheduler.schedule()
    assert len(scheduler.running) <= scheduler.slots
    assert sum(piece.amount for piece in work) <= scheduler.batch
    assert all(piece.amount > 0 for piece in work)
    assert len({id(piece.sequence) for piece in work}) == len(work) <= len(scheduler.running)
    answering = [request for request in scheduler.running if len(request.tokens) - request.computed == 1]
    assert all(any(piece == (request, 1) for piece in work) for request in answering)
    places = [piece.sequence.slot for piece in work]
    assert places == sorted(places)  # what is out of this order llama.cpp computes by itself
    assert all(request.computed == 0 and request.slot == -1 for request in scheduler.waiting)
    scheduler.advance(work)
    assert scheduler.cache.busy <= scheduler.cache.used <= scheduler.cache.cells
    assert len({request.slot for request in scheduler.running}) == len(scheduler.running)
    return [request for request, _ in work if sample(scheduler, request)]


def sample(scheduler, request):
    assert request.computed <= len(request.tokens)
    if request.computed == len(request.tokens):
        request.tokens.append(0)
        if request.done:
            scheduler.remove(request)
    return request.done


requests = st.lists(st.builds(Request, st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=12)


@given(requests, st.integers(1, 5), st.integers(5, 40), st.integers(100, 300), st.integers(0, 64))
def test_every_request_finishes_within_the_batch_the_slots_and_the_cells(todo, slots, batch, cells, headroom):
    scheduler = scheduling(slots, batch, cells, headroom)
    for request in todo:
        scheduler.add(request)
    steps = 0
    while scheduler.running or scheduler.waiting:
        step(scheduler)
        steps += 1
        assert steps < 20_000
    assert all(request.done for request in todo)


@given(requests, st.integers(1, 4), st.integers(4, 20))
def test_the_oldest_advances_in_each_step(todo, slots, batch):
    scheduler = scheduling(slots, batch, cells=100)
    for request in todo:
        scheduler.add(request)
    while scheduler.running or scheduler.waiting:
        oldest = (scheduler.running or scheduler.waiting)[0]
        before = oldest.computed
        step(scheduler)
        assert oldest.done or oldest.computed > before


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.integers(20, 600))
def test_a_batch_is_filled_with_short_prompts_first_and_some_of_the_oldest(pendings, budget):
    prompts = [Request(pending, 1) for pending in pendings]
    got = {id(piece.sequence): piece.amount for piece in share(prompts, budget)}
    amounts = [got.get(id(prompt), 0) for prompt in prompts]
    assert sum(amounts) == min(budget, sum(pendings))
    assert amounts[0] >= min(pendings[0], budget // 4)
    others = list(zip(amounts, pendings, strict=True))[1:]
    cut = [pending for amount, pending in others if amount < pending]
    assert all(amount == pending for amount, pending in others if cut and pending < min(cut))
    assert sum(0 < amount < pending for amount, pending in others) <= 1


def test_a_step_has_the_answers_first_and_prompts_in_what_is_left():
    answering, long = Request(3, 10), Request(100, 10)
    scheduler = scheduling(slots=4, batch=16, cells=500)
    scheduler.add(answering)
    step(scheduler)
    scheduler.add(long)
    work = scheduler.schedule()
    found = {id(piece.sequence): (piece.amount, piece.samples) for piece in work}
    assert found == {id(answering): (1, True), id(long): (15, False)}


def test_requests_start_in_the_order_in_which_they_came():
    todo = [Request(5, 3) for _ in range(6)]
    scheduler = scheduling(slots=2, batch=8, cells=1000)
    for request in todo:
        scheduler.add(request)
    finished = []
    while scheduler.running or scheduler.waiting:
        finished += sorted(step(scheduler), key=todo.index)
    assert finished == todo


def test_a_short_request_behind_long_ones_is_not_kept_waiting_by_them():
    scheduler = scheduling(slots=4, batch=32, cells=10_000)
    for _ in range(3):
        scheduler.add(Request(1000, 10))
    short = Request(8, 2)
    scheduler.add(short)
    steps = 0
    while not short.done:
        step(scheduler)
        steps += 1
    assert steps == 2


def test_when_the_cells_run_out_the_youngest_waits_and_is_the_next_to_be_computed_again():
    old, young, third = todo = [Request(20, 60), Request(20, 60), Request(5, 5)]
    scheduler = scheduling(slots=2, batch=64, cells=100, headroom=0)
    for request in todo:
        scheduler.add(request)
    preempted = 0
    while scheduler.running or scheduler.waiting:
        step(scheduler)
        preempted += young in scheduler.waiting
        assert old not in scheduler.waiting
        assert not (young in scheduler.waiting and third in scheduler.running)
    assert preempted


@pytest.mark.parametrize("where", ["running", "waiting"])
def test_a_request_that_is_removed_takes_no_part_any_more(where):
    first, second = Request(5, 5), Request(5, 5)
    scheduler = scheduling(slots=1, batch=8, cells=100)
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    gone, stays = (first, second) if where == "running" else (second, first)
    scheduler.remove(gone)
    while not stays.done:
        step(scheduler)
    assert not gone.done and not scheduler.running and not scheduler.waiting
