"""What of a model an engine loads, and its adapters; or why it cannot run here. Knows no names of models."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mdl.describing import identified
from mdl.errors import Busy, MdlError, NotFound, UnsupportedModel
from mdl.model import Model
from mdl.store import Store

if TYPE_CHECKING:
    from mdl.weights import Weights

Scaled = list[tuple[Path, float]]  # files of adapters, and how strongly each is applied
_ROLE_HINTS = {
    "adapter": "name its base model, and the adapter with --adapter",
    "projector": "name the model that it belongs to",
    "model": "a model goes before the adapter: mdl chat MODEL --adapter ADAPTER",
}
_GGUF_HINTS = {
    "checkpoint": "make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py, and put it beside it"
}


def weights(model: Model) -> "Weights":
    """What to load of a model. Raises UnsupportedModel, with the reason, when none of it can run here."""
    from mdl.weights import Refusal

    if model.is_api:
        raise elsewhere(model)
    if model.is_absent:
        cause = f"{model.reference} is not on this machine, only its model.json"
        raise NotFound(cause, hint=f"mdl download {model.reference}")
    if model.problem and model.place is None:
        verb = "download" if model.damaged else "rm"
        raise UnsupportedModel(f"{model.reference}: {model.problem}", f"mdl {verb} {model.reference}")
    found = identified(model)
    if isinstance(found, Refusal):
        raise found.error()
    return found


def for_engine(model: Model, kind: str = "model") -> "Weights":
    """What an engine loads of a model. Raises UnsupportedModel for what is stored here but cannot run."""
    found = weights(model)
    if found.kind != kind:
        raise UnsupportedModel(
            f"{model.reference} is of the kind {found.kind}, not {kind}", _ROLE_HINTS.get(found.kind, "")
        )
    if found.format != "gguf" and kind != "adapter":  # these are converted
        raise UnsupportedModel(
            f"{model.reference} has its weights as {found.format}, which llama.cpp does not load",
            hint=_GGUF_HINTS.get(model.summary.kind, "look for a GGUF version of this model"),
        )
    return found


def hold(store: Store, model: Model, leases: contextlib.ExitStack) -> None:
    """Keep a version from being removed as long as the leases. Raises Busy where it is too late for that."""
    try:
        leases.enter_context(store.locks.lease(model.folder))
    except BlockingIOError:
        raise Busy(f"{model.reference} is being removed") from None


def adapters_for(
    store: Store,
    model: Model,
    weights: "Weights",
    asked: Sequence[str],
    find: Callable[[str], Model],
    leases: contextlib.ExitStack,
) -> Scaled:
    """The files to load with a model of what is asked for as MODEL or MODEL=SCALE, and their scales; what
    PEFT saved is converted first. They are held as long as the `leases`.

    Raises UsageError for a scale that is no number, UnsupportedModel for what is no adapter, or with what
    of it does not fit, Busy for what is being removed; and what `find` raises.
    """
    if not asked:
        return []
    from mdl import adapters

    base = adapters.base(weights, str(model.reference))
    found = []
    for name, scale in map(adapters.asked, asked):
        adapter = find(name)
        hold(store, adapter, leases)
        contents = {adapter.folder / file.name: file.sha256 for file in adapter.files}
        files = for_engine(adapter, "adapter")
        found.append((adapters.fitted(files, base, store, contents.get(files.first)), scale))
    return found


def base_model(model: Model) -> str | None:
    """For which model an adapter says that it was made; None where it does not, or is damaged."""
    try:
        return weights(model).facts.base_model
    except (MdlError, OSError):
        return None


def elsewhere(model: Model) -> UnsupportedModel:
    return UnsupportedModel(f"{model.reference} runs at an API: nothing of it is here", "mdl chat can ask it")
