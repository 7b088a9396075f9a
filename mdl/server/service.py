"""What the routes of a server share. Knows no routes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mdl.library import Library
from mdl.server.body import Room
from mdl.server.jobs import Jobs
from mdl.server.metrics import Metrics
from mdl.server.names import Names
from mdl.server.passing import Passing
from mdl.server.pool import Pool


@dataclass(slots=True)
class Service:
    """It is `ready` when what was to be loaded at the start is."""

    names: Names
    pool: Pool
    room: Room
    library: Library
    jobs: Jobs
    passing: Passing
    ready: bool = False
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def running(self) -> int:
        """Requests that wait for an answer or get one."""
        return self.room.requests

    @property
    def waiting(self) -> int:
        """Those whose model is being loaded."""
        return sum(entry.busy for entry in self.pool.entries if entry.loading)

    @property
    def died(self) -> int:
        """Workers that ended though nobody ended them, so far."""
        return self.pool.died

    def engines(self) -> Iterator[tuple[str, str, int]]:
        """Model, state and bytes of memory of each."""
        for entry in self.pool.entries:
            yield str(entry.model.reference), entry.state, entry.placement.size if entry.placement else 0
