"""The loop over blocks of cells, once."""

from collections.abc import Iterator


def slices(n_cells: int, size: int) -> Iterator[slice]:
    """Consecutive slices that cover the cells from 0 to `n_cells`, in order.

    Parameters
    ----------
    n_cells
        Number of cells, or length of any other axis.
    size
        Length of the slices; the last may be shorter.

    Raises
    ------
    ValueError
        A size below 1.
    """
    if size < 1:
        raise ValueError(f"slices(size={size}): must be at least 1; chunk_cells proposes one")
    # Returned, not yielded, so that a wrong size is an error in the call and not in the loop.
    return (slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size))
