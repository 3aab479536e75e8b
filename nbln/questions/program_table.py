"""Gene programs as a reader meets them: a name, the genes, the cells that use it."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

# A gene belongs to a program where it more likely does than not.
BELONGS = 0.5
# A cell uses a program where its factor is a standard deviation above the mean.
USES = 1.0
NAMED_AFTER = 3  # genes in the name of a program that no gene set describes
# A set names a program that has so many genes of it among the first so many, at this rate of false
# discoveries: three platelet genes among a hundred do not make a program of stressed cells theirs.
NAMED_BY, AMONG, FDR = 2, 10, 0.05
# What most of the leading genes of a program are, by how symbols begin; either case, since those of
# mice are written in small letters.
KINDS = {"ribosomal": r"rp[ls]p?\d", "mitochondrial": r"mt-"}
AGAINST = " against "  # between the names of the two ends of a program
UP, DOWN = "up", "down"
DIRECTIONS = {UP: 1.0, DOWN: -1.0}


@dataclass(frozen=True, eq=False)
class ProgramGenes:
    """How genes take part in the programs that carry signal."""

    names: np.ndarray  # (gene,) without the pool of the rarest
    loading: Float[np.ndarray, "gene program"]  # W_⊥
    membership: Float[np.ndarray, "gene program"]  # probability; 1 where the prior knows none
    variance: Float[np.ndarray, " gene"]  # share of its counts' variance that programs make

    @cached_property
    def weight(self) -> Float[np.ndarray, "gene program"]:
        """Share of the variance of a gene's counts that a program makes, with the loading's sign.

        Where a gene more likely belongs to the program than not. It is small for rare genes, whose
        counts are mostly chance, however large their loadings are.
        """
        square = self.loading**2
        part = square / np.maximum(square.sum(axis=1, keepdims=True), 1e-300)
        weight = part * self.variance[:, None] * self.membership
        return np.where(self.membership > BELONGS, np.sign(self.loading) * weight, 0.0)

    def leading(self, program: int, direction: str, n: int) -> Int[np.ndarray, " gene"]:
        """The genes of most weight that go up, or down, with a program, heaviest first."""
        weight = DIRECTIONS[direction] * self.weight[:, program]
        order = np.argsort(-weight, kind="stable")[:n]
        return order[weight[order] > 0]

    def n_genes(self) -> Int[np.ndarray, " program"]:
        """How many genes belong to each program, by their probabilities."""
        return (self.membership > BELONGS).sum(axis=0)

    def strongest(self) -> Int[np.ndarray, " gene"]:
        """The program that varies each gene most, counted from 1; 0 for none."""
        if not self.loading.shape[1]:
            return np.zeros(len(self.names), int)
        size = np.abs(self.weight)
        return np.where(size.max(axis=1) > 0, 1 + np.argmax(size, axis=1), 0)


def table(
    genes: ProgramGenes, z: Float[np.ndarray, "cell program"], n_top: int, terms: pd.DataFrame
) -> pd.DataFrame:
    """See `LaplaceResult.get_program_table`; `terms` are enriched ones, or none."""
    size = (genes.loading**2).sum(axis=0)
    rows, describing = [], _describing(genes, terms)
    for j in range(genes.loading.shape[1]):
        up, down = (genes.names[genes.leading(j, way, n_top)] for way in DIRECTIONS)
        kind = kind_of(up)
        sets = [describing.get((j + 1, way)) for way in DIRECTIONS]
        own = sets[0] or (f"{kind} genes" if kind else after(up))
        name = own if sets[1] is None else f"{own}{AGAINST}{sets[1]}"
        rows.append((name, ", ".join(up), ", ".join(down), kind))
    found = pd.DataFrame(rows, columns=["name", "top_genes", "opposed_genes", "kind"], dtype=object)
    found.insert(1, "share", size / max(size.sum(), 1e-300))
    found.insert(4, "n_genes", genes.n_genes())
    found.insert(5, "n_cells", (z > USES).sum(axis=0))
    found.insert(6, "effective_cells", effective(z**2))
    found.index = pd.RangeIndex(1, 1 + len(found), name="program")
    return found


def _describing(genes: ProgramGenes, terms: pd.DataFrame) -> dict[tuple[int, str], str]:
    """The gene set that describes a direction of a program, each set once, where it is surest."""
    found: dict[tuple[int, str], str] = {}
    surest = terms.loc[terms["q_value"] <= FDR].sort_values(by=["p_value"])
    columns = (surest[name] for name in ("program", "direction", "term", "genes"))
    for program, direction, term, shared in zip(*columns, strict=True):
        first = set(genes.names[genes.leading(program - 1, direction, AMONG)])
        enough = len(first & set(shared.split(", "))) >= NAMED_BY
        if enough and (program, direction) not in found and term not in found.values():
            found[program, direction] = term
    return found


def effective(amount: Float[np.ndarray, "cell any"]) -> Float[np.ndarray, " any"]:
    """Over how many cells amounts are spread: (Σ a)² / Σ a², a third of all for a Gaussian's z²."""
    amount = np.abs(amount.astype(np.float64))
    return amount.sum(axis=0) ** 2 / np.maximum((amount**2).sum(axis=0), 1e-300)


def after(leading: np.ndarray) -> str:
    """The name of a program by its leading genes."""
    return " / ".join(leading[:NAMED_AFTER]) or "no leading gene"


def kind_of(leading: np.ndarray) -> str:
    """What more than half of the leading genes are, in a word; '' where that is nothing known."""
    for kind, pattern in KINDS.items():
        alike = [re.match(pattern, str(gene), re.IGNORECASE) is not None for gene in leading]
        if sum(alike) > len(alike) / 2:
            return kind
    return ""
