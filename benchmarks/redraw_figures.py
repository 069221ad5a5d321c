"""Draw the figures of recorded runs anew, by today's code: `python benchmarks/redraw_figures.py`.

Only figures that a run folder has are replaced, and their checksums in its `run.json`.
"""

import argparse
from pathlib import Path

from resnetlib import load_dataset, load_run
from resnetlib.paths import display_path
from resnetlib.runs.artifacts import redraw_figures
from resnetlib.runs.find import reference_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="run folders; all recorded runs")
    parser.add_argument("--data-root", help="folder to look for data in before the usual ones")
    options = parser.parse_args()
    for run in map(load_run, options.folders) if options.folders else reference_runs():
        images, _ = load_dataset(run.record["dataset"], options.data_root).test
        names = redraw_figures(run, images)
        print(f"{display_path(run.path)}: {', '.join(names) or 'has no figures'}", flush=True)


if __name__ == "__main__":
    main()
