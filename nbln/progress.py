"""A progress bar that costs nothing when it is off."""

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Context manager around one task of at most `total` steps."""

    def __init__(self, description: str, total: int, show: bool):
        self._bar = RichProgress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            disable=not show,
        )
        self._task = self._bar.add_task(description, total=total, note="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        # A fit that stops early is complete: let the bar say so.
        if error[0] is None:
            done = self._bar.tasks[0].completed
            self._bar.update(self._task, total=done)
        self._bar.stop()

    def advance(self, note: str | None = None, steps: int = 1):
        """Count `steps` more, with a few words on how it goes; None leaves the last ones."""
        fields = {} if note is None else {"note": note}
        self._bar.update(self._task, advance=steps, **fields)
