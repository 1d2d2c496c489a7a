"""Run a notebook anew for the site, its live views to their end."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TIMEOUT = 180  # seconds for a cell
_QUIET = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR")  # no user's settings
_FINISH = "from paged_engine.visualizer.player import finish_all\nfinish_all();"


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with the outputs of a fresh kernel.

    Args:
        notebook: A node of nbformat, changed in place.
        folder: Where its relative paths begin.
    """
    notebook.metadata.pop("widgets", None)
    notebook.cells.append(nbformat.v4.new_code_cell(_FINISH))
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(dict.fromkeys(_QUIET, scratch), TOKENIZERS_PARALLELISM="false")
        try:
            NotebookClient(
                notebook,
                timeout=TIMEOUT,
                kernel_name="python3",
                store_widget_state=True,
                coalesce_streams=True,
                resources={"metadata": {"path": str(folder)}},
            ).execute()
        finally:
            notebook.cells.pop()
            os.environ.clear()
            os.environ.update(before)
    return notebook
