"""How the page bears many visitors: memory, waiting, and the first grade. Figures of docs/page.md.

    python tests/clip_koa/webapp/load.py --xrays FOLDER [--model MODEL] [--visits 500]

starts `app.py`, plays visitors of it by plain requests, and prints what it found.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

if __name__ == "__main__":  # run as a script, beside the tests
    sys.path[:0] = [str(Path(__file__).parents[number]) for number in (1, 2, 3)]

from webapp.conftest import Visitor, serve

MIB = 2**20


def resident(process_id: int) -> float:
    """Memory of the server in MiB, but for files, which the system drops and reads again as it likes (Linux)."""
    server = psutil.Process(process_id)
    taken = [process.memory_info() for process in (server, *server.children(recursive=True))]
    return sum(memory.rss - memory.shared for memory in taken) / MIB


def peak(process_id: int) -> float:
    """The most memory that the server had at any time, in MiB (Linux)."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def visit(url: str, contents: list[bytes]) -> None:
    """A whole visit: every X-ray graded and looked at, a report kept, the page closed."""
    visitor = Visitor(url)
    for content in contents:
        told = visitor.grade(content)
        for view in ("thumbnail.png", "xray.png", "mirror.png", "heat"):
            assert visitor.get(f"xrays/{told['id']}/{view}").status_code == 200
    assert visitor.get(f"xrays/{told['id']}/report.pdf").status_code == 200
    visitor.leave()


def memory_after(url: str, process_id: int, contents: list[bytes], counts: tuple[int, ...]) -> dict[int, float]:
    """MiB of the server after so many visits of two X-rays each, two visitors at a time."""
    measured, done = {}, 0
    rng = random.Random(0)
    with ThreadPoolExecutor(2) as visitors:
        for count in counts:
            list(visitors.map(lambda _: visit(url, rng.sample(contents, 2)), range(count - done)))
            done = count
            time.sleep(1)
            measured[count] = resident(process_id)
    return measured


def crowd(url: str, contents: list[bytes], visitors: int = 20, each: int = 3, many: int = 40) -> dict:
    """Visitors with `each` X-rays beside one who uploads `many`, all at once.

    Returns:
        `answers`, a dict from each content to the sets of probabilities it was given; `seconds` of all; `waits` of
        the visitors until their last grade; `share`, what each would wait if turns were perfectly even; `many_wait`.
    """
    answers, waits = {}, {}
    barrier = threading.Barrier(visitors + 1)

    def play(number: int, count: int, at_once: int) -> None:
        visitor = Visitor(url)
        barrier.wait()
        start = time.monotonic()

        def send(place: int) -> None:
            content = contents[(number * each + place) % len(contents)]
            told = visitor.grade(content)
            answers.setdefault(content, set()).add(tuple(told["probabilities"]))

        with ThreadPoolExecutor(at_once) as sending:
            list(sending.map(send, range(count)))
        waits[number] = time.monotonic() - start
        visitor.leave()

    threads = [threading.Thread(target=play, args=(number, each, each)) for number in range(visitors)]
    threads.append(threading.Thread(target=play, args=(visitors, many, 4)))
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    assert len(waits) == visitors + 1, "a visitor failed"
    one = seconds / (visitors * each + many)
    many_wait = waits.pop(visitors)
    return {
        "answers": answers, "seconds": seconds, "waits": sorted(waits.values()), "many_wait": many_wait,
        "share": one * each * (visitors + 1),
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    from clip_koa import RELEASED_MODEL
    from clip_koa.grading.grader import Grader
    from clip_koa.grading.inputs import find_xrays

    parser = argparse.ArgumentParser(description="Measure how the page bears many visitors.")
    parser.add_argument("--xrays", required=True, help="folder of X-rays")
    parser.add_argument("--model", default=str(RELEASED_MODEL))
    parser.add_argument("--visits", type=int, default=500)
    options = parser.parse_args()
    files = find_xrays([options.xrays])
    files = random.Random(1).sample(files, min(100, len(files)))
    contents = [Path(file).read_bytes() for file in files]
    launch = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "page", "--model", options.model) as served:
        start = time.monotonic()
        print(f"the page answers {start - launch:.2f} s after its command")
        visitor = Visitor(served.url)
        visitor.upload(contents[0])
        print(f"first grade {time.monotonic() - start:.2f} s after the page answers")
        told = [visitor.grade(content)["probabilities"] for content in contents[:40]]
        visitor.leave()
        graded = list(Grader(options.model).grade(files[:40]))
        worst = max(
            abs(a - b)
            for x, t in zip(graded, told, strict=True)
            for a, b in zip(x.grade.probabilities, t, strict=True)
        )
        print(f"largest difference from the command line on 40 X-rays: {worst:.1e}")
        found = crowd(served.url, contents)
        assert all(len(answers) == 1 for answers in found["answers"].values())
        waits = found["waits"]
        print(f"crowd: {found['seconds']:.1f} s, of which the share of each is {found['share']:.1f} s")
        print(
            f"their waits {waits[0]:.1f} to {waits[-1]:.1f} s, at most {waits[-1] / found['share']:.2f} of the share"
        )
        print(f"the one with many waited {found['many_wait']:.1f} s; {resident(served.process.pid):.0f} MiB after it")
        print(f"at its peak the server took {peak(served.process.pid):.0f} MiB")
        measured = memory_after(served.url, served.process.pid, contents, (20, options.visits))
        print("memory after visits:", {count: f"{size:.0f} MiB" for count, size in measured.items()})


if __name__ == "__main__":
    main()
