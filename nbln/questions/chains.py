"""Draws of the sites of a model, and how a sampler that moves by gradients came to them."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.data.fitted import Fitted
from nbln.questions import intervals

SAMPLE = (names.CHAIN, names.DRAW)
ENDS = ("mean", "sd", "low", "high")


class Chains(NamedTuple):
    """Draws of the sites of a model.

    Attributes
    ----------
    sites
        Every site but the log-rates, (chain, draw, ...), on its natural scale.
    steps
        Of every draw, (chain, draw): ``accept_prob``, ``n_steps``, ``diverging`` (the trajectory
        left what can be integrated) and ``cut_short`` (it ended at the limit of steps).
    """

    sites: xr.Dataset
    steps: xr.Dataset

    @property
    def shape(self) -> tuple[int, int]:
        """Chains, and draws of each."""
        return self.steps.sizes[names.CHAIN], self.steps.sizes[names.DRAW]

    @property
    def n_divergences(self) -> int:
        """Draws whose trajectory diverged."""
        return int(self.steps["diverging"].sum())

    def values(self) -> dict[str, np.ndarray]:
        """The draws by site, without labels."""
        return {str(name): x.values for name, x in self.sites.items()}

    def varied(self) -> dict[str, np.ndarray]:
        """Those that are not the same in all draws: known capture losses are."""
        return {name: x for name, x in self.values().items() if np.ptp(x, axis=(0, 1)).any()}

    def labelled(self, fitted: Fitted) -> xr.Dataset:
        """The sites with names of genes and cells, and numbers of chains and draws."""
        return _numbered(
            xr.Dataset({n: fitted.label(x, tuple(map(str, x.dims))) for n, x in self.sites.items()})
        )

    def summarised(self, fitted: Fitted, site: str, level: float) -> xr.Dataset:
        """Mean, sd and ends of the interval of one site over all draws."""
        values = self.sites[site]
        found = intervals.summarise(values.values.reshape(-1, *values.shape[2:]), level)
        dims = tuple(map(str, values.dims[2:]))
        labelled = {n: fitted.label(np.float32(getattr(found, n)), dims) for n in ENDS}
        return xr.Dataset(labelled, attrs={"site": site, "level": level})

    def tree(self, posterior: xr.Dataset) -> xr.DataTree:
        """Groups for ArviZ; `posterior` are the labelled sites, and what is shown beside them."""
        return xr.DataTree.from_dict(
            {"/posterior": posterior, "/sample_stats": _numbered(self.steps)}
        )


def _numbered(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_coords({dim: np.arange(dataset.sizes[dim]) for dim in SAMPLE})
