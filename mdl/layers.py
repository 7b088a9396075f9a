"""How a model is used, and who says so: one order of precedence for everything that can be set.

    defaults < model (header, files beside the weights) < catalog < profiles shipped with mdl < model.json
    < profiles of the user < environment (MDL_TEMPERATURE, …) < flags < request

What ships with mdl is a default for what is known by its name or content; a model.json was written for this
one model. Defaults are those of `engine.request`, and flags and requests are the caller's: the rest is found
here. Knows no terminal and no HTTP.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from mdl import catalog, config, modeljson, packaged, parameters, profilefile
from mdl.engine.request import EngineSettings, Sampling
from mdl.profiles import Profile, merged

if TYPE_CHECKING:
    from mdl.library import Library
    from mdl.model import Model
    from mdl.weights import Weights

DEFAULT = "default"
PREFIX = "MDL_"  # of variables
_UNTOLD = ("logprobs",)  # fields of Sampling that only requests have


class Layer(NamedTuple):
    """What one place sets; `source` says which, in a person's words."""

    source: str
    profile: Profile


class Value(NamedTuple):
    """What is in force, and where it comes from. None: decided when the model is loaded, or drawn anew."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Layers:
    """The least important first."""

    layers: tuple[Layer, ...]

    def merged(self) -> Profile:
        return merged(*(layer.profile for layer in self.layers))

    def settings(self) -> dict[str, Value]:
        """Each field of EngineSettings."""
        return dict(self._values(EngineSettings(), "settings"))

    def parameters(self) -> dict[str, Value]:
        """Each field of Sampling that is not a request's alone."""
        return {name: value for name, value in self._values(Sampling(), "sampling") if name not in _UNTOLD}

    def source(self, name: str) -> str | None:
        """Where a field of Profile comes from: system, template, messages; None where nobody sets it."""
        said = [layer.source for layer in self.layers if getattr(layer.profile, name) not in (None, ())]
        return said[-1] if said else None

    def _values(self, defaults: Any, kind: str) -> Iterator[tuple[str, Value]]:
        for field in fields(defaults):
            name = field.name
            found = Value(getattr(defaults, name), DEFAULT)
            for layer in self.layers:
                said: Mapping[str, Any] = getattr(layer.profile, kind)
                if name in said:
                    found = Value(said[name], layer.source)
            yield name, found


def of(
    library: "Library", model: "Model", weights: "Weights | None" = None, name: str = "", path: str = ""
) -> Layers:
    """Who says what of a model, which was asked for by this name and over this API path, if any.

    Raises UsageError for what the environment says that cannot be; what files say wrongly becomes a note.
    """
    asked = library.settings.aliases.get(name, name)
    shipped, own = profilefile.matching(model, asked, path, library.resolver)
    found = [
        *_of_weights(model, weights),
        Layer("the catalog", catalog.profile(model.reference)),
        *(Layer(*each) for each in shipped),
        Layer("model.json", modeljson.profile(model)),
        *(Layer(*each) for each in own),
        *_of_environment(),
    ]
    return Layers(tuple(layer for layer in found if layer.profile != Profile()))


def _of_weights(model: "Model", weights: "Weights | None") -> Iterator[Layer]:
    if weights is not None and weights.facts.sampling:
        said = parameters.profile(dict(weights.facts.sampling), "the header", lenient=True)
        yield Layer("the model's header", said)
    yield Layer("the model's files", packaged.of(model))


def _of_environment() -> Iterator[Layer]:
    """By any of the spellings; where two say the same, by that which mdl itself has."""
    given = {variable: variable.removeprefix(PREFIX).lower() for variable in config.variables(PREFIX)}
    for variable, name in sorted(given.items(), key=lambda pair: parameters.is_plain(pair[1])):
        if parameters.find(name):
            yield Layer(variable, parameters.profile({name: config.variable(variable)}, variable))
        elif meant := parameters.meant(name):
            note = f"{variable} means nothing: did you mean {PREFIX}{meant.name.upper()}?"
            yield Layer(variable, Profile(notes=(note,)))


def as_document(layers: Layers) -> dict[str, Any]:
    """As `mdl inspect --settings --json` prints it; a value of null is decided later."""
    profile = layers.merged()
    texts = {
        "system": profile.system,
        "template": profile.template_source or None,
        "messages": [{"role": message.role, "content": message.content} for message in profile.messages],
        "adapters": [text.rpartition("/")[2] for text in profile.adapters],
    }
    return {
        "settings": {name: value._asdict() for name, value in layers.settings().items()},
        "parameters": {name: value._asdict() for name, value in layers.parameters().items()},
        **{name: {"value": text or None, "source": layers.source(name)} for name, text in texts.items()},
        "ignored": list(profile.ignored),
        "notes": list(profile.notes),
    }
