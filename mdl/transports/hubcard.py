"""What a hub's own words on a model mean: JSON in, `About` out. Pure; every field may hold anything.

The fields: https://huggingface.co/docs/hub/api and https://huggingface.co/docs/hub/model-cards; cardData
is the front matter of the README that the model's owner wrote.
"""

from collections.abc import Mapping
from typing import Any

from mdl.card import About, moment, number, section
from mdl.header import line, lines

# What is asked for: without `expand` a hub answers with less of this, and with the list of all files.
EXPAND = "cardData config downloads gated gguf lastModified library_name likes pipeline_tag private"
EXPAND += " safetensors tags"


def about(document: Mapping[str, Any]) -> About:
    """What is told there; what is missing or of the wrong kind is unknown."""
    card, config, gguf, weights = (
        section(document.get(name)) for name in ("cardData", "config", "gguf", "safetensors")
    )
    return About(
        license=_license(card) or _tagged(document, "license:"),
        license_link=_address(card.get("license_link")),
        gate=_gate(document.get("gated")),
        private=private if isinstance(private := document.get("private"), bool) else None,
        downloads=number(document.get("downloads")),
        likes=number(document.get("likes")),
        modified=moment(document.get("lastModified")),
        task=line(document.get("pipeline_tag")) or line(card.get("pipeline_tag")),
        library=line(document.get("library_name")),
        topics=tuple(tag for tag in lines(document.get("tags")) if ":" not in tag),
        languages=_several(card.get("language")),
        base_models=_several(card.get("base_model")),
        architecture=line(gguf.get("architecture")) or line(config.get("model_type")),
        parameters=number(gguf.get("total")) or number(weights.get("total")),
        context_length=number(gguf.get("context_length")),
        quantizer=line(section(config.get("quantization_config")).get("quant_method")),
    )


def _several(value: object) -> tuple[str, ...]:
    """One text or a list of them, as front matter has it."""
    return lines(value if isinstance(value, list) else [value])


def _license(card: Mapping[str, Any]) -> str | None:
    """The licence's name; `other` stands for one that has a name of its own."""
    stated = next(iter(_several(card.get("license"))), None)
    return line(card.get("license_name")) or stated if stated in (None, "other") else stated


def _tagged(document: Mapping[str, Any], prefix: str) -> str | None:
    found = (tag.removeprefix(prefix) for tag in lines(document.get("tags")) if tag.startswith(prefix))
    return next(found, None)


def _address(value: object) -> str | None:
    """A link that can be shown: a web address, or the name of a file of the repository."""
    text = line(value)
    return text if text and " " not in text else None


def _gate(value: object) -> str | None:
    """`auto` or `manual`: whether everybody is let in who accepts the conditions."""
    return line(value) or ("manual" if value is True else None)
