"""What the name of a model's file says of it. Knows no content: for repositories that are not here yet.

Names are relative, with slashes, as repositories list them.
"""

import re
from pathlib import PurePosixPath

_SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL)
_QUANTIZATION = re.compile(
    r"""(?<![a-z0-9])
    (?:(UD|I1)[-_.])?                                  # Unsloth's dynamic ones, mradermacher's with imatrix
    (  I?Q[1-8][-_.](?:K[-_.](?:XXS|XXL|XS|XL|S|M|L|P)|KSS|KS|KL|KT|K|XXS|XS|S|M|L|XL|NL|[01])
         (?:[-_.]R[48]|[-_.][48][-_.][48])?            # rows interleaved for some processors
    |  TQ[12][-_.]0 | MXFP4(?:[-_.]MOE)? | NVFP4 | BF16 | FP?16 | FP?32 | F64
    )(?![a-z0-9])""",
    re.IGNORECASE | re.VERBOSE,
)
_SHORT_QUANTIZATION = re.compile(r"(?<![a-z0-9])(q[2-8])$", re.IGNORECASE)  # model-q4.gguf
_IMATRIX = re.compile(r"(?<![a-z0-9])imatrix(?![a-z0-9])|\.imatrix$", re.IGNORECASE)
_PROJECTOR = re.compile(r"(?<![a-z0-9])mmproj(?![a-z0-9])", re.IGNORECASE)
_LORA = re.compile(r"^(?:lora|adapter)(?![a-z0-9])|(?<![a-z0-9])(?:lora|adapter)$", re.IGNORECASE)

_ROLES = {
    "config": "config.json generation_config.json params.json preprocessor_config.json processor_config.json",
    "adapter": "adapter_config.json adapter_model.safetensors",
    "tokenizer": "tokenizer.json tokenizer_config.json tokenizer.model vocab.json vocab.txt merges.txt "
    "special_tokens_map.json added_tokens.json spiece.model sentencepiece.bpe.model tekken.json",
    "template": "chat_template.jinja chat_template.json template",
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names.split()}


def role(filename: str) -> str:
    """What a file is for, guessed from its name.

    One of weights, projector, adapter, config, tokenizer, template, license, readme, other. Importance
    matrices and weights that cannot run here (.bin, .pt, .onnx) are other.
    """
    name = PurePosixPath(filename).name
    lower = name.lower()
    if lower in _ROLE_OF:
        return _ROLE_OF[lower]
    if lower.endswith(".gguf"):
        return _gguf_role(name)
    if lower.endswith(".safetensors"):
        return "weights"
    if lower.endswith(".safetensors.index.json"):
        return "config"
    if lower.endswith(".jinja"):
        return "template"
    if re.match(r"(licen[sc]e|copying|notice|use_policy)(?![a-z])", lower):
        return "license"
    return "readme" if re.match(r"readme(\.|$)", lower) else "other"


def _gguf_role(name: str) -> str:
    stem = _stem(name)
    if _IMATRIX.search(stem):
        return "other"
    if _PROJECTOR.search(stem):
        return "projector"
    bare = _QUANTIZATION.sub("", stem).strip("-_.")
    return "adapter" if _LORA.search(bare) else "weights"


def split_of(name: str) -> tuple[str, int, int] | None:
    """Stem, number (from 1) and count of a split GGUF file's name; None for any other name."""
    if not (match := _SPLIT.fullmatch(name)):
        return None
    number, count = int(match[2]), int(match[3])
    return (match[1], number, count) if 1 <= number <= count else None


def quantization_of(filename: str) -> str | None:
    """The quantization that a GGUF file's name, else one of its folders, tells, in upper case: Q4_K_M.

    The last one counts: in `model.f16.q4_k.gguf` the first is that of a few tensors.
    """
    path = PurePosixPath(filename)
    stems = (_stem(path.name), *(folder.name for folder in path.parents))
    return next((found for stem in stems if (found := _quantization(stem))), None)


def _quantization(stem: str) -> str | None:
    matches = [match.groups() for match in _QUANTIZATION.finditer(stem)]
    if not matches:
        short = _SHORT_QUANTIZATION.search(stem)
        return short[1].upper() if short else None
    prefix, name = matches[-1]
    canonical = re.sub(r"[-.]", "_", name.upper()).replace("FP16", "F16").replace("FP32", "F32")
    return f"{prefix.upper()}-{canonical}" if prefix else canonical


def _stem(name: str) -> str:
    """A file name without its ending and without its part number."""
    if place := split_of(name):
        return place[0]
    return name[:-5] if name.lower().endswith(".gguf") else name
