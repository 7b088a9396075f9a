"""What was dropped into the tree of models becomes models before anybody looks for it there."""

from mdl import dropped
from mdl.store import Store


def adopt(store: Store) -> bool:
    """Whether anything had been dropped. Never fails."""
    found = bool(dropped.adopt(store))
    if dropped.has_packages(store):
        from mdl import importing

        found = bool(importing.adopt(store)) or found
    return found
