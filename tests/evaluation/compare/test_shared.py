"""Work that several processes share."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vpt_vision.evaluation.compare.shared import Work, shared

COUNT = 8


def work(folder: Path, number: int, seconds: float) -> Work[str]:
    """Leave one's own process number on disk, unless another process has."""
    result = folder / f"{number}.txt"

    def do() -> str:
        with (folder / "entered.txt").open("a") as entered:
            entered.write(f"{number} {os.getpid()}\n")
        if not result.exists():
            time.sleep(seconds)
            with (folder / "written.txt").open("a") as written:
                written.write(f"{number}\n")
            result.write_text(str(os.getpid()))
        return result.read_text()

    return Work(str(result), do)


def soon(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def process(folder: Path, seconds: float, answers) -> None:
    answers.put(shared([work(folder, number, seconds) for number in range(COUNT)], folder / "locks"))


def test_each_piece_is_done_once_and_everyone_has_all_results(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=process, args=(tmp_path, 0.05, answers)) for _ in range(3)]
    for one in processes:
        one.start()
    found = [answers.get(timeout=60) for _ in processes]
    for one in processes:
        one.join()
    assert found[0] == found[1] == found[2]
    assert sorted((tmp_path / "written.txt").read_text().split()) == [str(number) for number in range(COUNT)]
    assert len(found[0]) == COUNT and len(set(found[0])) > 1  # nobody did it all alone


def test_what_a_dead_process_was_at_is_taken_up(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    first = context.Process(target=process, args=(tmp_path, 600.0, answers))
    first.start()
    soon(lambda: (tmp_path / "entered.txt").exists())
    second = context.Process(target=process, args=(tmp_path, 0.0, answers))
    second.start()
    soon(lambda: len(list(tmp_path.glob("[0-9].txt"))) == COUNT - 1)  # all but the one that the first holds
    os.kill(first.pid, signal.SIGKILL)
    assert answers.get(timeout=60) == [str(second.pid)] * COUNT
    second.join()
