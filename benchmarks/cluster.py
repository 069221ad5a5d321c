"""Seconds of a sweep on this machine's own pool and on a Ray cluster of one node, in turns.

    python benchmarks/cluster.py                        # 6 runs of 5 epochs on digits, 3 rounds
    python benchmarks/cluster.py --seeds 0..1 --epochs 15

Both train the same runs, one per core with one thread each. Each sweep is a process that trains its
runs in a new folder. Ray's own start is timed apart: a process that connects and has one worker per
core import what a run needs there. Starting the node is not included: a cluster is there before a
sweep is. It needs `pip install 'resnetlib[sweep]'`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resnetlib.sweep.pool import count_cores

PORT = 26379  # not Ray's own, which may be in use
NODE_STARTS = 60  # seconds that a node is given


def sweep(seeds: str, epochs: int, folder: Path, address: str | None) -> float:
    """Seconds of `resnetlib sweep`, from its start to its end."""
    words = [sys.executable, "-m", "resnetlib", "sweep", "lite", "-p", "seed", seeds]
    words += ["-p", "dataset", "digits", "-p", "epochs", str(epochs)]
    words += ["-p", "device", "cpu", "-p", "output_root", str(folder)]
    words += ["--at-once", str(count_cores())]
    words += ["--address", address] if address else []
    began = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def start_node(folder: Path) -> subprocess.Popen:
    """A Ray cluster of this machine alone, which ends with its process."""
    os.environ |= {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    ray = Path(sys.executable).with_name("ray")
    words = [ray, "start", "--head", "--block", f"--port={PORT}", f"--num-cpus={count_cores()}"]
    words += ["--include-dashboard=false", "--disable-usage-stats"]
    node = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    began = time.perf_counter()
    while time.perf_counter() - began < NODE_STARTS:
        status = [ray, "health-check", "--address", f"127.0.0.1:{PORT}"]
        if subprocess.run(status, capture_output=True, check=False).returncode == 0:
            return node
        time.sleep(0.5)
    node.terminate()
    sys.exit(f"the Ray node did not start within {NODE_STARTS} s")


def start_workers(address: str) -> float:
    """Seconds of a process that connects and has a worker on every core, which does nothing."""
    code = (
        "import sys, time; from resnetlib.sweep.cluster import connect\n"
        "def work(): import resnetlib.sweep.cluster, time; time.sleep(0.2)\n"
        "ray = connect(sys.argv[1]); task = ray.remote(work).options(num_cpus=1)\n"
        "ray.get([task.remote() for _ in range(int(sys.argv[2]))]); ray.shutdown()"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, address, str(count_cores())], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0..5", help="of the runs (default: 0..5)")
    parser.add_argument("--epochs", type=int, default=5, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    starts, ratios = [], []
    # A short path: Ray puts sockets into it.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as temporary:
        node = start_node(Path(temporary))
        addresses = {"pool": None, "ray": f"127.0.0.1:{PORT}"}
        try:
            for number in range(given.rounds):
                seconds = {"start": start_workers(addresses["ray"])}
                for engine in list(addresses)[:: -1 if number % 2 else 1]:
                    folder = Path(temporary) / f"{engine}{number}"
                    seconds[engine] = sweep(given.seeds, given.epochs, folder, addresses[engine])
                starts.append(seconds["start"])
                ratios.append((seconds["ray"] - seconds["start"]) / seconds["pool"])
                listed = ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items())
                print(f"round {number + 1}: {listed}", flush=True)
        finally:
            node.terminate()
            node.wait()
    print(
        f"Ray starts in {statistics.median(starts):.1f} s; beyond that a sweep on it takes "
        f"{statistics.median(ratios):.3f} times as long as on the pool (median; "
        f"{min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
