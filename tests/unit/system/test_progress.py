# SPDX-License-Identifier: Apache-2.0
"""The progress that library code reports, and the live area that shows it; without doit."""

import contextlib
import hashlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevsnp.system import progress
from sevsnp.system.live import SECONDS_BEFORE_SHOWN, Screen, can_draw
from sevsnp.system.progress import Amount
from tests.support.waiting import NET, wait_until

# In the order in which dpkg has them.
STATES = ("half-installed", "unpacked", "half-configured", "unpacked", "half-configured", "installed")


class Seen:
    """A board that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.open: list[tuple[str, Amount]] = []

    def step(self, task: str, text: str) -> None:
        self.said.append((task, text))

    def opened(self, task: str, amount: Amount) -> None:
        self.open.append((task, amount))

    def closed(self, task: str, amount: Amount) -> None:
        self.open.remove((task, amount))

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.said.append(("", "paused"))
        yield
        self.said.append(("", "on"))


@pytest.fixture
def board() -> Iterator[Seen]:
    seen = Seen()
    progress.show_on(seen)
    yield seen
    progress.show_on(None)


def test_without_a_board_progress_costs_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    progress.step("something")
    with progress.amount("fetching", 10) as add, progress.growing(tmp_path / "image", 10), progress.paused():
        add(10)
        assert threading.active_count() == before
    assert add.done == 10


def _cpu(work: Callable[[], object]) -> float:
    """Processor seconds of one of 50 calls."""
    begun = time.thread_time()
    for _ in range(50):
        work()
    return (time.thread_time() - begun) / 50


def test_a_call_is_cheap() -> None:
    with progress.amount("reading", 1 << 30) as add:
        # A build adds once a MiB, of which it makes at least a digest. Processor time of this thread, the best of some.
        piece = bytes(1 << 20)
        pairs = [(_cpu(lambda: add(1)), _cpu(lambda: hashlib.sha256(piece))) for _ in range(7)]
        call, digest = (min(column) for column in zip(*pairs, strict=True))
        assert call < digest / 20, f"a call {call * 1e6:.1f} µs, a digest {digest * 1e6:.1f} µs"
    assert add.done == 7 * 50


def test_a_step_belongs_to_the_task_of_its_thread(board: Seen) -> None:
    def work(name: str) -> None:
        with progress.task(name):
            together.wait(NET)
            progress.step(f"{name} steps")

    together = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert sorted(board.said) == [("one", "one steps"), ("two", "two steps")]
    assert progress.current() == ""


def test_an_amount_belongs_to_its_task_whichever_thread_adds(board: Seen) -> None:
    with progress.task("packages"), progress.amount("fetching", 800) as add:

        def work() -> None:
            for _ in range(100):
                add(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(NET)
        ((name, amount),) = board.open
        assert (name, amount.what, amount.done, amount.total) == ("packages", "fetching", 800, 800)
    assert board.open == []


def test_an_amount_ends_with_an_error(board: Seen) -> None:
    with contextlib.suppress(ValueError), progress.amount("fetching", 8):
        raise ValueError
    assert board.open == []


def test_a_growing_file_counts_its_allocated_blocks(board: Seen, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with progress.growing(image, 1 << 30):
        ((_, amount),) = board.open
        assert amount.done == 0  # not there yet
        with image.open("wb") as stream:
            stream.truncate(1 << 30)
        sparse = amount.done
        with image.open("r+b") as stream:
            stream.write(b"x" * (1 << 20))
        # The control: its size says it was finished from the start.
        assert image.stat().st_size == amount.total
        assert sparse < 1 << 20 <= amount.done < 1 << 22


def test_counted_things_never_become_fewer(board: Seen, tmp_path: Path) -> None:
    with progress.counted("installing", 3, lambda: len((tmp_path / "log").read_text())):
        ((_, amount),) = board.open
        assert amount.done == 0  # not there yet
        (tmp_path / "log").write_text("xx")
        assert amount.done == 2 and not amount.complete
        (tmp_path / "log").write_text("xxx")
        assert amount.complete
        (tmp_path / "log").unlink()
        assert amount.done == 3
    assert board.open == []


def test_pauses_reach_the_board(board: Seen) -> None:
    with progress.paused():
        progress.step("inside")
    assert board.said == [("", "paused"), ("", "inside"), ("", "on")]


def test_a_remark_is_shown_once() -> None:
    with progress.task("initramfs"):
        progress.remark("from the cache")
    assert progress.take_remark("packages") == ""
    assert progress.take_remark("initramfs") == "from the cache"
    assert progress.take_remark("initramfs") == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "draws"), [("xterm", True), ("dumb", False), ("", False)])
def test_the_live_area_is_drawn_on_capable_terminals_only(
    monkeypatch: pytest.MonkeyPatch, term: str, draws: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    assert can_draw(Terminal()) is draws
    assert not can_draw(io.StringIO())


def drawn(stream: Terminal, words: str) -> bool:
    return wait_until(lambda: words in stream.getvalue(), what=stream.getvalue)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    made = Screen(Terminal())
    yield made
    made.close()


def test_the_live_area(screen: Screen) -> None:
    stream = screen.stream
    assert isinstance(stream, Terminal)
    screen.begin("_image", "image", drawn=True)
    assert drawn(stream, "image")
    amount = Amount("writing", 2_000_000)
    screen.opened("_image", amount)
    amount(500_000)
    assert drawn(stream, "image: writing") and drawn(stream, "500.0 kB of 2.0 MB")
    screen.step("_image", "checking")
    amount(1_500_000)
    wait_until(lambda: len(set(re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", stream.getvalue()))) > 1)  # it turns
    assert drawn(stream, "image: checking")  # what is complete gives way to the step
    assert screen.write("a line\n")
    screen.end("_image")
    assert not screen.drawing() and not screen.write("no longer\n")
    assert "\x1b[?25" not in stream.getvalue()  # the cursor is left alone


def test_numbers_of_things_are_shown_without_bytes(screen: Screen) -> None:
    stream = screen.stream
    assert isinstance(stream, Terminal)
    screen.begin("_packages", "packages", drawn=True)
    screen.opened("_packages", Amount("installing", 2000, bytes=False))
    assert drawn(stream, "0 of 2000")
    screen.opened("_packages", Amount("fetching", 2000))  # control
    assert drawn(stream, "0 bytes of 2.0 kB")


def test_a_command_has_the_terminal_until_its_first_step(screen: Screen) -> None:
    screen.begin("_image", "image", drawn=True)
    assert screen.drawing()
    screen.begin("run_guest", "run_guest", drawn=False)
    assert not screen.drawing()
    screen.step("run_guest", "booting")
    assert screen.drawing()


def test_nothing_is_drawn_in_a_pause(screen: Screen) -> None:
    stream = screen.stream
    assert isinstance(stream, Terminal)
    screen.begin("_image", "image", drawn=True)
    assert drawn(stream, "image")
    with screen.paused(), screen.paused():
        screen.begin("other", "other", drawn=True)
        before = stream.getvalue()
        time.sleep(SECONDS_BEFORE_SHOWN + 0.2)
        assert stream.getvalue() == before
    assert drawn(stream, "other")


def test_boot_stages_follow_the_console() -> None:
    from sevsnp.host.console import MARKER, boot_stage

    console, stages = "", []
    for line in ("EFI stub", "[ 0.0] Linux version 6.12", "init: mode verity", MARKER, "init: switching to", "systemd"):
        console += f"{line}\n"
        stages.append(boot_stage(console))
    assert stages == [
        "the firmware", "the kernel", "init", "the verified root", "the guest's services", "the guest's services",
    ]  # fmt: skip


def test_names_and_steps_are_not_read_as_markup(screen: Screen) -> None:
    stream = screen.stream
    assert isinstance(stream, Terminal)
    screen.begin("x", "x", drawn=True)
    screen.step("x", "[bold]loud[/bold]")
    assert drawn(stream, "[bold]loud[/bold]")


def test_installed_packages_are_counted(tmp_path: Path) -> None:
    from sevsnp.images.guest_packages import _installed

    assert _installed(tmp_path) == 0
    log = tmp_path / "mmdebstrap.abc/var/log/dpkg.log"
    log.parent.mkdir(parents=True)
    lines = [f"2026-01-31 12:00:00 status {state} {name}:amd64 1.0" for name in ("a", "b") for state in STATES]
    log.write_text("\n".join(lines[:-1]) + "\n")
    assert _installed(tmp_path) == 1
    log.write_text("\n".join(lines) + "\n")
    assert _installed(tmp_path) == 2
