"""What a model says, made inert for a terminal. Knows no terminal.

A terminal obeys control characters: they change its title, its clipboard, or what seems to have been said.
Each is replaced where it stands, so that it does not matter how an answer is cut into pieces.
"""

_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)}  # Unicode has pictures of these: ␛ for escape
_C1 = {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}  # some terminals take U+009B for "escape ["
_BIDI = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

# A carriage return is left out: before a newline it means nothing, alone it would overwrite the line.
_TABLE: dict[int, str | None] = {**_CONTROLS, 0x7F: "␡", **_C1, **_BIDI, ord("\r"): None}
del _TABLE[ord("\n")], _TABLE[ord("\t")]


def inert(text: str) -> str:
    """The text with nothing in it that a terminal would act on, but newlines and tabs."""
    return text.translate(_TABLE)
