"""Where models come from: one transport for each scheme, imported when it is used. Knows no cache."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mdl.errors import UnsupportedModel
from mdl.model import File, Manifest
from mdl.reference import Reference

if TYPE_CHECKING:
    from mdl.address import Remote
    from mdl.card import Card
    from mdl.config import Settings

TRANSPORTS = {
    "hf": "mdl.transports.huggingface:HuggingFace",
    "oci": "mdl.transports.oci:Oci",
    "ollama": "mdl.transports.ollama:Ollama",
    "https": "mdl.transports.http:Http",
    "http": "mdl.transports.http:Http",
    "file": "mdl.transports.file:Disk",
}


class Transport(Protocol):
    """What a source can do: say what a reference holds, and where the bytes of each file are."""

    def manifest(self, reference: Reference) -> Manifest:
        """What the source has under this reference: canonical, with sizes and digests, no content.

        Raises NotFound, AuthError, NetworkError, UnsupportedModel.
        """

    def remote(self, manifest: Manifest, file: File) -> "Remote | Path":
        """The address of a file's bytes, or a path where they lie on this machine."""


@runtime_checkable
class Cards(Protocol):
    """What a source that can be asked about models can do besides."""

    def card(self, reference: Reference) -> "Card":
        """What the source says of a model and which versions it has, without any content.

        Raises what `Transport.manifest` does, but not because there is nothing to choose, or no access.
        """


def load(reference: Reference, settings: "Settings") -> Transport:
    """The transport of a reference; raises UnsupportedModel where there is none."""
    if reference.scheme not in TRANSPORTS:
        raise UnsupportedModel(f"{reference} names no source", hint="a remote model has at least org/name")
    module, _, name = TRANSPORTS[reference.scheme].partition(":")
    transport: Transport = getattr(import_module(module), name)(settings)
    return transport
