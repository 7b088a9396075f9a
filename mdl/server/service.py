"""What the routes of a server share. Knows no routes."""

from dataclasses import dataclass

from mdl.server.body import Room
from mdl.server.names import Names
from mdl.server.pool import Pool


@dataclass(slots=True)
class Service:
    """It is `ready` when what was to be loaded at the start is."""

    names: Names
    pool: Pool
    room: Room
    ready: bool = False
