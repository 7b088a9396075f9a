"""Which files of a repository are one version of a model, told by their names. Knows no network, no content.

A repository of GGUF files holds several versions, one for each quantization; one of safetensors holds one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mdl.errors import UnsupportedModel, UsageError
from mdl.filename import quantization_of, role, split_of
from mdl.reference import show
from mdl.refusal import GET_GGUF

# What is taken where nobody said which: the first of these that is there. Q4_K_M costs a fraction of the
# original's memory and is hardly worse. Then comes what is nearest to it: first its size, then better ones
# while they stay small, then worse ones, and last what was never quantized, because it is the largest.
ORDER = (
    "Q4_K_M", "Q4_K_S", "Q4_K_XL", "Q4_K_L", "Q4_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "Q4", "MXFP4",
    "MXFP4_MOE", "NVFP4", "Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_K_XL", "Q5_K", "Q5_1", "Q5_0", "Q5",
    "Q6_K", "Q6_K_L", "Q6_K_XL", "Q6", "Q8_0", "Q8_K_XL", "Q8",
    "Q3_K_L", "Q3_K_XL", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "Q3_K", "IQ3_XS", "IQ3_XXS", "Q3",
    "Q2_K_L", "Q2_K_XL", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "Q2",
    "TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S", "BF16", "F16", "F32", "F64",
)  # fmt: skip
_RANK = {name: rank for rank, name in enumerate(ORDER)}
PROJECTORS = ("F16", "BF16", "Q8_0", "F32")  # F16 is what they are made and tested in
LARGEST_TEXT = 1 << 20  # bytes of a README or licence that is taken along

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".nemo")
_OTHER_FORMATS = {".onnx": "ONNX", ".h5": "Keras", ".msgpack": "Flax", ".tflite": "TensorFlow Lite"}
_BESIDE_WEIGHTS = ("config", "tokenizer", "template")
_TEXTS = ("license", "readme")


@dataclass(frozen=True, slots=True)
class Variant:
    """Weights in GGUF that are one version: a file, or all parts of a split one."""

    stem: str  # the path without part number and ending
    parts: tuple[str, ...]
    count: int  # how many parts there should be
    quantization: str | None

    @property
    def label(self) -> str | None:
        """The quantization as a version is called: an importance matrix (I1-) makes no other type."""
        return self.quantization and self.quantization.removeprefix("I1-")

    def is_called(self, name: str) -> bool:
        """Whether a person means this one: by a path, a file name, or either without its ending."""
        names = {self.stem, *self.parts}
        return name in names | {PurePosixPath(path).name for path in names}


@dataclass(frozen=True, slots=True)
class Choice:
    """One version of those in a repository: what it is called, its files, and what else could be had.

    `problem` says why it cannot be had, if so.
    """

    version: str
    files: tuple[str, ...]
    note: str = ""
    problem: str = ""


def choose(sizes: dict[str, int], version: str | None, default: str) -> Choice | None:
    """The version that is asked for, or without one the best by `ORDER`; None when none has that name.

    `sizes` are the names of the repository's files with their sizes in bytes; `default` is what the one
    version of a repository without GGUF files is called. Raises UsageError when a version may be several,
    and UnsupportedModel, whose message says what the repository holds, when that is incomplete or of no use.
    """
    found = variants(sizes)
    if not found:
        return None if version is not None else Choice(default, _folder(sizes))
    variant = _best(found) if version is None else _named(found, version)
    if variant is None:
        return None
    _refuse_incomplete(variant)
    files = (*variant.parts, *_projector(variant, sizes), *_texts(sizes))
    note = "" if version is not None or len(found) == 1 else _note(variant, found)
    return Choice(_spelled(variant, version) or _version(variant, found), files, note)


def choices(sizes: dict[str, int], default: str, most: int) -> list[Choice]:
    """Each version that can be asked for, the best first by `ORDER`, with its own files: not the texts that
    come with all of them. Raises UnsupportedModel as `choose` does."""
    found = sorted(variants(sizes), key=_rank)
    if not found:
        return [Choice(default, _folder(sizes))]
    projectors = [name for name in sizes if role(name) == "projector"]
    return [_choice(variant, found, projectors) for variant in found[:most]]


def _choice(variant: Variant, found: Sequence[Variant], projectors: Sequence[str]) -> Choice:
    name, problem = _version(variant, found), ""
    try:
        _refuse_incomplete(variant)
    except UnsupportedModel as error:
        problem = error.message
    return Choice(name, (*variant.parts, *_projector(variant, projectors)), problem=problem)


def variants(names: Iterable[str]) -> list[Variant]:
    """The weights in GGUF among these files; where there are none, the adapters, else the projectors."""
    groups: dict[str, dict[tuple[str, int], list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        if name.lower().endswith(".gguf"):
            place = split_of(name)
            groups[role(name)][(place[0], place[2]) if place else (name[:-5], 1)].append(name)
    sets = next((groups[kind] for kind in ("weights", "adapter", "projector") if groups[kind]), {})
    return [
        Variant(stem, tuple(parts), count, quantization_of(parts[0])) for (stem, count), parts in sets.items()
    ]


def labels(names: Iterable[str]) -> list[str]:
    """What can be written as a version, the best first."""
    found = variants(names)
    return [_version(variant, found) for variant in sorted(found, key=_rank)]


def _named(found: Sequence[Variant], version: str) -> Variant | None:
    """The variant of this name: a quantization, spelled out, else without its prefix; else a file."""
    wanted = version.upper()
    for matches in (
        [variant for variant in found if wanted in (variant.quantization, variant.label)],
        [variant for variant in found if variant.label == f"UD-{wanted}"],
        [variant for variant in found if variant.is_called(version)],
    ):
        if len(matches) > 1:
            raise _ambiguous(show(version), matches)
        if matches:
            return matches[0]
    return None


def _best(found: Sequence[Variant]) -> Variant:
    best = min(map(_rank, found))
    matches = [variant for variant in found if _rank(variant) == best]
    if len(matches) > 1:
        raise _ambiguous("the model", matches)
    return matches[0]


def _rank(variant: Variant) -> tuple[int, bool, str]:
    """Its place in `ORDER`; of two of one type the plain one comes first, and what is unknown last."""
    label = variant.label or ""
    bare = label.removeprefix("UD-")
    return _RANK.get(bare, len(ORDER)), bare != label, "" if bare in _RANK else label


def _version(variant: Variant, found: Sequence[Variant]) -> str:
    """What a variant is called: by its quantization where only one has that, else by its file."""
    alone = [other.label for other in found].count(variant.label) == 1
    return variant.label if alone and variant.label else variant.stem


def _spelled(variant: Variant, version: str | None) -> str | None:
    """The version as it was asked for, if that was by its type, however abbreviated: it keeps that name, so
    that the same string finds it on this machine."""
    quantization = variant.quantization or ""
    wanted = (version or "").upper()
    return wanted if wanted in (quantization, quantization.removeprefix("UD-"), variant.label) else None


def _note(variant: Variant, found: Sequence[Variant]) -> str:
    others = [_version(other, found) for other in sorted(found, key=_rank) if other != variant]
    more = f" and {len(others) - 12} more" if len(others) > 12 else ""
    return f"{_version(variant, found)} was chosen; there are also {', '.join(others[:12])}{more}"


def _ambiguous(what: str, matches: Sequence[Variant]) -> UsageError:
    names = ", ".join(variant.stem for variant in matches[:12])
    return UsageError(f"{what} may be any of {show(names, 400)}", hint="write one of them as the version")


def _refuse_incomplete(variant: Variant) -> None:
    if variant.count == 1:
        return
    numbers = {place[1] for part in variant.parts if (place := split_of(part))}
    missing = [number for number in range(1, min(variant.count, 10_000) + 1) if number not in numbers]
    if missing:
        name = f"{variant.stem}-{missing[0]:05}-of-{variant.count:05}.gguf"
        raise UnsupportedModel(
            f"{len(numbers)} of {variant.count} parts: {show(name, 200)} is missing",
            hint="the upload may not be finished: try again later, or choose another version",
        )


def _projector(variant: Variant, names: Iterable[str]) -> tuple[str, ...]:
    """The one projector that goes with weights: beside them, else at the top."""
    places = (str(PurePosixPath(variant.stem).parent), ".")
    found = [
        name
        for name in names
        if role(name) == "projector"
        and str(PurePosixPath(name).parent) in places
        and name not in variant.parts
    ]

    def order(name: str) -> tuple[int, int, str]:
        kind = quantization_of(PurePosixPath(name).name) or ""
        rank = PROJECTORS.index(kind) if kind in PROJECTORS else len(PROJECTORS)
        return places.index(str(PurePosixPath(name).parent)), rank, name

    return tuple(sorted(found, key=order)[:1]) if role(variant.parts[0]) == "weights" else ()


def _texts(sizes: dict[str, int]) -> tuple[str, ...]:
    """Licence and model card: what a version has to bring to be whole."""
    return tuple(
        name
        for name in sorted(sizes)
        if "/" not in name and role(name) in _TEXTS and sizes[name] <= LARGEST_TEXT
    )


def _folder(sizes: dict[str, int]) -> tuple[str, ...]:
    """The files of the model or adapter at the top of a repository, each weight once."""
    top = sorted(name for name in sizes if "/" not in name)
    weights = _weights(top) if "config.json" in top else ()
    if not weights and {"adapter_config.json", "adapter_model.safetensors"} <= set(top):
        weights = ("adapter_config.json", "adapter_model.safetensors")
    if not weights:
        raise UnsupportedModel(*_refusal(sizes))
    beside = [name for name in top if role(name) in _BESIDE_WEIGHTS and not name.endswith(".index.json")]
    index = [name for name in ("model.safetensors.index.json",) if name in top and len(weights) > 1]
    return tuple(dict.fromkeys((*weights, *index, *beside, *_texts(sizes))))


def _weights(top: Sequence[str]) -> tuple[str, ...]:
    """The safetensors of a model: the one that has the usual name, the usual shards, else all there are."""
    found = [name for name in top if name.endswith(".safetensors") and role(name) == "weights"]
    shards = [name for name in found if name.startswith("model-") and _SHARD.fullmatch(name)]
    if "model.safetensors.index.json" in top and shards:
        return _complete(shards)
    if "model.safetensors" in found:
        return ("model.safetensors",)
    others = [name for name in found if not name.startswith("consolidated")]
    return _complete(shards) or tuple(others)


def _complete(shards: Sequence[str]) -> tuple[str, ...]:
    """All shards, in order; raises UnsupportedModel that names one that is missing."""
    places = [match for name in shards if (match := _SHARD.fullmatch(name))]
    for count in {int(place[3]) for place in places}:
        numbers = {int(place[2]) for place in places if int(place[3]) == count}
        missing = next((n for n in range(1, min(count, 10_000) + 1) if n not in numbers), None)
        if missing:
            raise UnsupportedModel(
                f"no model-{missing:05}-of-{count:05}.safetensors, which belongs to the others",
                hint="the upload may not be finished: try again later",
            )
    return tuple(sorted(shards))


def _refusal(names: Iterable[str]) -> tuple[str, str]:
    """What a repository is that holds nothing of use, and what to do."""
    names = set(names)
    endings = {PurePosixPath(name).suffix.lower() for name in names}
    if "model_index.json" in names:
        return "a diffusers pipeline, which makes images", "mdl runs language models"
    if any(ending in _PICKLES for ending in endings) and not any(n.endswith(".safetensors") for n in names):
        return "only PyTorch pickles, which can run any code and are never loaded", GET_GGUF
    for ending, what in _OTHER_FORMATS.items():
        if ending in endings:
            return f"only {what} weights, which cannot run here", GET_GGUF
    if any(name.endswith(".safetensors") for name in names):
        return "safetensors without the config.json that belongs to them", GET_GGUF
    return "no GGUF files and no safetensors model", "check the name; datasets and spaces are no models"
