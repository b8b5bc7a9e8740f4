"""A process that trains one contender on request: `python -m contenders.worker NAME
'[64, 2, 128, 32]' 0,1`.

Prints a JSON line when it is ready; then for each line of standard input, a number of
seconds, trains for as long and prints the tokens and seconds it took. The last argument
names its cores, set before any library counts them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def main() -> None:
    """Serve until standard input closes."""
    name, shape, cores = (
        sys.argv[1],
        json.loads(sys.argv[2]),
        [int(c) for c in sys.argv[3].split(",")],
    )
    os.sched_setaffinity(0, cores)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(len(cores))
    if len(cores) == 1:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        )
    from contenders import Shape

    shape = Shape(*shape)
    started = time.perf_counter()
    contender = importlib.import_module(f"contenders.{name}").build_contender(shape)
    first = contender.call()
    ready = {
        "parameters": contender.parameters,
        "start": time.perf_counter() - started,
        "first": first,
    }
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        calls, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < float(line):
            contender.call()
            calls += 1
        tokens = calls * contender.steps_per_call * shape.batch * shape.context
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
