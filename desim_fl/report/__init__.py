"""The HTML report of a run: one page that opens anywhere, without a network.

``write(run_dir)`` reads nothing but the run directory. The way through the rooms: ``reading`` (tables as stored) ->
``trips`` (one row a job) -> ``curves`` and ``populations`` (what each chart shows, thinned) -> ``learning_charts``,
``staleness_charts``, ``client_charts``, ``path_charts`` (of the ``critical_path``) -> ``story`` (words and headline numbers) -> ``page``.
"""

from desim_fl.report.goals import Goal
from desim_fl.report.page import write

__all__ = ["Goal", "write"]
