"""Where a Laplace fit stands, between two iterations."""

from typing import Any, NamedTuple

import jax
import numpy as np

from nbln.inference.checkpoint import Snapshot, Stage
from nbln.inference.laplace.pooled import Overdispersed
from nbln.inference.laplace.update import Info, State
from nbln.inference.stream import CellStream

# Parts of a fit: iterations at given priors, steps of the overdispersion, iterations at what was
# learned; then it has converged or it has not.
FITTING, LEARNING, REFITTING, CONVERGED, STOPPED = range(5)


class Run(NamedTuple):
    """Where a fit stands; all of it goes into a checkpoint."""

    state: State
    z: Any  # the cells' coordinates, as the stream has them
    at: Overdispersed | None  # where overdispersion is learned
    history: tuple[Info, ...] = ()
    pending: tuple[Info, ...] = ()  # of the last iteration, while the device is still at it
    part: int = FITTING
    step: int = 0  # of this part, those that are done

    def next(self, part: int) -> "Run":
        """The run at the beginning of its next part."""
        return self._replace(part=part, step=0, pending=())

    def snapshot(self, stream: CellStream) -> Snapshot:
        """The run as a checkpoint has it: of all cells, however they are chunked or shared."""
        history = jax.device_get([*self.history, *self.pending])
        position = np.array([self.part, self.step, len(self.pending)])
        return Snapshot((self.state, stream.whole(self.z), self.at, position), history)

    def restored(self, stage: Stage, stream: CellStream) -> "Run | None":
        """The run that was interrupted; None where none was. This one says how it is laid out."""
        tree = self.state, np.zeros(0), self.at, np.zeros(3, int)
        saved = stage.restore(tree, Info.like(self.state.phase))
        if saved is None:
            return None
        state, z, at, (part, step, n_pending) = saved.tree
        split = len(saved.items) - int(n_pending)
        history, pending = tuple(saved.items[:split]), tuple(saved.items[split:])
        return Run(state, stream.split(z), at, history, pending, int(part), int(step))
