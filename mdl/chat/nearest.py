"""What somebody may have meant."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word that is most like this one; "" if none is."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1)
    return f"did you mean {found[0]}?" if found else ""
