"""Independent pieces of work in Python processes of their own, which do not import the user's script again."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

_CHILD = "from slams.core.processes import child; child()"
_ROOT = str(Path(__file__).resolve().parents[2])


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    function: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    progress: Callable[[int, Any], None],
) -> None:
    """Call `function(*task, tell)` for every task, several at a time, each in a process with one torch thread.

    With one worker or one task, calls follow each other in this process.

    Args:
        function: A function of a module; what it computes must not depend on the process.
        tasks: Arguments of each call, which can be pickled.
        workers: Most processes at a time.
        progress: Called with the number of a task and what its function gave to `tell`; one call at a time.

    Raises:
        Exception: What a function raised, or RuntimeError where its process ended without a word. The other processes
            are stopped.
    """
    if workers <= 1 or len(tasks) <= 1:
        for number, task in enumerate(tasks):
            function(*task, lambda word, own=number: progress(own, word))
        return
    running, lock = list["subprocess.Popen[bytes]"](), Lock()

    def call(number: int) -> None:
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        running.append(process)
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError), process.stdin:  # a child that died says why by its exit code
            pickle.dump((function, tasks[number]), process.stdin)
        with process.stdout:
            while True:
                try:
                    kind, word = pickle.load(process.stdout)
                except EOFError:
                    break
                if kind == "error":
                    raise word
                with lock:
                    progress(number, word)
        if process.wait():
            raise RuntimeError(
                f"a process of {function.__module__}.{function.__name__} ended with code {process.returncode}; is there "
                "enough memory?"
            )

    pool = ThreadPoolExecutor(workers)
    try:
        for future in [pool.submit(call, number) for number in range(len(tasks))]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            if process.poll() is None:
                process.kill()


def child() -> None:
    """What such a process runs: one call, its words and its error as pickles on the standard output."""
    import torch

    torch.set_num_threads(1)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what others print must not come between the pickles
    function, task = pickle.load(sys.stdin.buffer)

    def tell(kind: str, word: Any) -> None:
        out.write(pickle.dumps((kind, word)))
        out.flush()

    try:
        function(*task, lambda word: tell("word", word))
    except Exception as error:
        tell("error", error)
