"""A private Ray with two CPUs, a GPU that is only a number, and a custom resource; one JSON line for the tests.

Run as a script: a Ray with other resources than the test session's needs a process of its own.
"""

import json
import sys
import threading
import time

import ray

from infra.allot import Size
from infra.fleet import Fleet
from infra.lane import Share, Todo, Watch


class Slow:
    """Writes down when each of its tasks ran, and in which process."""

    batch_rows, deadline_s = 1, 60.0

    def __init__(self, seconds):
        self.seconds = seconds

    def setup(self):
        """Nothing."""

    def close(self):
        """Nothing."""

    def load(self, units):
        """A row per unit."""
        return [{"unit": unit} for unit in units]

    def process(self, rows):
        """Work."""
        self.started = time.time()
        time.sleep(self.seconds)
        return [[row] for row in rows]

    def finish(self, task, rows, outcomes):
        """When, and where."""
        import os

        return {"started": self.started, "ended": time.time(), "pid": os.getpid(), "rows": len(rows)}


def run(fleet, name, worker, num_tasks, share, found):
    """One stage in a thread of its own."""
    results = found.setdefault(name, [])
    try:
        nothing = lambda _: None  # noqa: E731
        watch = Watch(lambda _, parts: results.extend(parts), nothing, print, lambda: None, nothing, nothing)
        fleet.map(worker, Todo(range(num_tasks), lambda i: [i]), share, watch)
    except Exception as error:  # noqa: BLE001 - the test looks at the sentence
        found[f"{name}_error"] = str(error)


def main():
    """Two CPU stages and a GPU stage at once, then one that never fits."""
    ray.init(num_cpus=2, num_gpus=1, resources={"decoder": 1}, include_dashboard=False, log_to_driver=False)
    fleet, found = Fleet(ray), {}
    gpu = Share(Size(1.0, 1.0, (("decoder", 1.0),)), 1, 1, rank=0)
    cpu = Share(Size(1.0), 1, 2, rank=1)
    long = threading.Thread(target=run, args=(fleet, "cpu", Slow(0.2), 60, cpu, found))
    long.start()
    while len({task["pid"] for task in found.get("cpu", [])}) < 2:  # until the CPU stage has taken both CPUs
        time.sleep(0.05)
    run(fleet, "gpu", Slow(0.1), 5, gpu, found)
    long.join()
    run(fleet, "greedy", Slow(0.1), 1, Share(Size(1.0, 2.0), 1, 1), found)
    fleet.release()
    deadline = time.time() + 10
    while ray.available_resources().get("CPU", 0) < 2 and time.time() < deadline:
        time.sleep(0.1)
    found["free_at_the_end"] = ray.available_resources().get("CPU", 0)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
