"""What a run measures, as CSV files and, where TensorBoard is installed, for it as well."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ehrnet_model.training.states import append_row

log = logging.getLogger(__name__)


class Records:
    """Rows of numbers of a run.

    Args:
        folder: of the run; gets ``NAME.csv`` for every kind of row, and ``tensorboard/``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._board: Any = None
        self._looked = False

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Appends a row; ``step`` in it says when."""
        append_row(self.folder / f"{kind}.csv", row)
        try:
            board = self._writer()
            if board is not None:
                for name, value in row.items():
                    if name != "step":
                        board.add_scalar(f"{kind}/{name}", value, row["step"])
                board.flush()
        except Exception as error:  # whatever it is, the run is worth more
            self._board = None
            log.warning("TensorBoard does not work here (%s): CSV files only.", error)

    def _writer(self) -> Any:
        if not self._looked:
            self._looked = True
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.warning("TensorBoard is not here (pip install tensorboard): CSV files only.")
            else:
                self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self._board
