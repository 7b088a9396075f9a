"""A JSON object, read field by field, so that nothing is dropped in silence. Knows no dialect."""

from collections.abc import Iterator
from typing import Any, NoReturn

from mdl.reference import show
from mdl.server.failure import Refused


class Fields:
    """Each field is read once; `done` refuses those that nobody read. `null` is the same as absent.

    All methods raise Refused (400), which names the field, for values that are not of the kind asked for.
    """

    def __init__(self, values: Any, where: str = "") -> None:
        self._where = where
        if not isinstance(values, dict):
            raise Refused(f"{where} has to be an object", param=where or None)
        self._left: dict[str, Any] = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str) -> Any:
        """As it came, or None."""
        return self._left.pop(name, None)

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fail(name, f"has to be a number from {low:g} to {high:g}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 16.0 is a whole number, and some languages have no others
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(name, f"has to be a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._of(bool, name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value: str | None = self._of(str, name, "a string")
        return value

    def choice(self, name: str, *choices: str) -> str | None:
        value = self.text(name)
        if value is not None and value not in choices:
            self.fail(name, f"has to be one of {', '.join(choices)}")
        return value

    def items(self, name: str, most: int) -> list[Any] | None:
        value: list[Any] | None = self._of(list, name, "an array")
        if value is not None and len(value) > most:
            self.fail(name, f"has {len(value):,} entries, and may have {most:,}")
        return value

    def object(self, name: str) -> "Fields | None":
        value = self._of(dict, name, "an object")
        return None if value is None else Fields(value, self.path(name))

    def objects(self, name: str, most: int) -> "Iterator[Fields]":
        """The entries of an array of objects; none where there is no array."""
        for index, item in enumerate(self.items(name, most) or ()):
            yield Fields(item, f"{self.path(name)}[{index}]")

    def needs(self, name: str) -> None:
        if name not in self._left:
            self.fail(name, "is missing")

    def done(self) -> None:
        for name in self._left:
            path = self.path(name)
            raise Refused(f"{show(path)} is not a field that this server knows", param=path)

    def path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def fail(self, name: str, why: str) -> NoReturn:
        path = self.path(name)
        raise Refused(f"{path} {why}", param=path)

    def _of(self, kind: type, name: str, what: str) -> Any:
        value = self.take(name)
        if value is not None and not isinstance(value, kind):
            self.fail(name, f"has to be {what}")
        return value
