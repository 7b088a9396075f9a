"""What came of looking for a name: records, and the error for a name that means nothing."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from mdl.errors import NotFound
from mdl.model import Model
from mdl.reference import Reference, show

Outcome = Literal["found", "miss", "skipped", "error"]


class Step(NamedTuple):
    """One step of a resolution: what was looked at and what came of it."""

    step: str
    outcome: Outcome
    detail: str


Steps = list[Step]


class Resolution(NamedTuple):
    """How a string was decided. `model` is what is on this machine; else `reference` tells what to fetch.

    `name` is what was looked for: the text, or what it is an alias of. `others` are the places where a short
    name is looked for when the first one does not have it.
    """

    text: str
    name: str
    steps: tuple[Step, ...]
    reference: Reference | None = None
    model: Model | None = None
    others: tuple[Reference, ...] = ()
    wanted: Model | None = None  # what has only its model.json here, under `reference`

    @property
    def is_named(self) -> bool:
        """Whether the user gave it this name, by an alias or in a profile."""
        return any(step.step in ("alias", "profile") and step.outcome == "found" for step in self.steps)


def unknown(resolution: Resolution, here: Iterable[str] = ()) -> NotFound:
    """What to tell of a name that means nothing: what has that name and is no model, or the names of what is
    `here` and of the catalog that are like it."""
    passed = (step.detail for step in resolution.steps if (step.step, step.outcome) == ("path", "miss"))
    hint = "mdl list shows what is here, mdl search TERMS what there is: a remote model has at least org/name"
    return NotFound(
        f"no model is called {show(resolution.name)}",
        hint=next(passed, "") or _meant(resolution.name, here) or hint,
    )


def _meant(text: str, here: Iterable[str]) -> str:
    from difflib import get_close_matches

    from mdl.catalog import catalog

    names = {name.casefold(): name for name in (*catalog().names(), *here)}
    tried = (text.casefold(), text.casefold().partition(":")[0])
    near = next(filter(None, (get_close_matches(name, names, cutoff=0.7) for name in tried)), [])
    return f"did you mean {' or '.join(names[name] for name in near)}?" if near else ""
