# SPDX-License-Identifier: Apache-2.0
"""A build from source on this machine: real processes, with a stage that takes almost no time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.builds import detached, steps
from sevsnp.builds import place as places
from sevsnp.builds.place import Place, read_plan
from sevsnp.builds.state import Phase, look
from sevsnp.errors import UserError
from tests.support.tiny_builds import Tiny

PROJECT = Path(__file__).resolve().parents[3]
Make = Callable[..., Tiny]


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Make]:
    made: list[Tiny] = []

    def make(script: str = "", **fields: object) -> Tiny:
        made.append(Tiny(tmp_path, script, **fields))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_a_build_is_started_and_fetched(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    build = tiny(stages=("one", "two"))
    build.build()
    assert build.ended().phase is Phase.DONE
    build.report()
    assert "local build of stable sources" in capsys.readouterr().out
    build.fetch()
    assert (build.output / "one" / "result").read_text() == "hello\n"
    assert (build.output / "two" / "said").read_text().split("\n")[:3] == ["3", "no", "guest"]
    record = json.loads((build.output / "built.json").read_text())
    assert record["sources"]["hello"]["version"] == "1" and record["road"] == "local"
    assert set(record["files"]) == {"one/result", "one/said", "two/result", "two/said"}


def test_a_result_that_is_known_beforehand(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    build = tiny()
    build.build()
    build.ended()
    made = build.place.out / "one" / "result"
    for known, said in (
        (hashlib.sha256(made.read_bytes()).hexdigest(), "as expected of the pinned source and compilers"),
        (64 * "0", f"the pinned source and compilers give {64 * '0'}"),
    ):
        table = tuple(replace(stage, known=known) for stage in build.table)
        steps.fetch(root=build.place.root, output=build.output, table=table)
        assert said in capsys.readouterr().out


def test_a_build_returns_at_once_and_its_status_has_the_progress(
    tiny: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    build = tiny()
    build.script = f"{build.waits}echo '[2/2] ends'\n"
    build.build()
    status = build.reached(lambda status: status.steps is not None)
    assert (status.phase, status.stage, status.number, status.of, status.steps) == (Phase.RUNNING, "one", 1, 1, (1, 2))
    with pytest.raises(UserError, match="the build still runs: stage one, 1 of 1"):
        build.fetch()
    with pytest.raises(UserError, match=r"a build runs here already \(local; stage one, 1 of 1\)"):
        build.build()
    capsys.readouterr()
    build.report()
    assert "  | [1/2] begins" in capsys.readouterr().out
    build.go()
    assert build.ended().phase is Phase.DONE
    build.fetch()


def test_a_build_outlives_the_process_and_the_terminal_that_started_it(tiny: Make, tmp_path: Path) -> None:
    """The starting process is killed with its whole session, and the terminal hangs up."""
    build = tiny()
    build.script = build.waits
    script = f"""
        import os, signal, sys, time
        from pathlib import Path
        from tests.support.tiny_builds import Tiny
        import tests.support.tiny_builds as tiny
        tiny.Tiny.__post_init__ = lambda self: setattr(self, "mirror", self.tmp / "mirror")
        build = Tiny(Path({str(tmp_path)!r}), {build.script!r})
        build.build()
        print("started", flush=True)
        time.sleep(300)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout
        while process.stdout.readline() not in ("started\n", ""):
            pass
        os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGKILL)
    assert look(build.place).phase is Phase.RUNNING
    build.go()
    assert build.ended().phase is Phase.DONE


def test_a_stage_that_fails(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    build = tiny("echo 'error: no such header' >&2\nexit 3\n", stages=("one", "two"))
    build.build()
    status = build.ended()
    assert (status.phase, status.stage) == (Phase.FAILED, "one")
    assert status.reason == "exit code 3: error: no such header"
    with pytest.raises(UserError, match="the build failed in stage one: exit code 3: error: no such header"):
        build.fetch()
    capsys.readouterr()
    build.report()
    assert "reason: exit code 3: error: no such header" in capsys.readouterr().out
    assert not build.output.exists()


def test_only_unfinished_stages_are_built_again(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag = tmp_path / "flag"
    build = tiny(f"case $OUT in */two) test -e '{flag}' ;; esac\n", stages=("one", "two"))
    build.build()
    assert build.ended().stage == "two"
    first = (build.place.out / "one" / "result").stat().st_ino
    flag.touch()
    build.build()
    assert "done before, from the same sources: one" in capsys.readouterr().out
    assert build.ended().phase is Phase.DONE
    assert (build.place.out / "one" / "result").stat().st_ino == first
    # Control: with other sources, both are built anew.
    build.source.write_text("other\n")
    build.write_pins()
    build.build()
    assert build.ended().phase is Phase.DONE
    build.fetch()
    assert [(build.output / name / "result").read_text() for name in ("one", "two")] == ["other\n", "other\n"]


def test_a_stage_over_its_time_limit_is_ended(tiny: Make) -> None:
    build = tiny("sleep 300\n", limit=1)
    build.build()
    status = build.ended()
    assert (status.phase, status.reason) == (Phase.FAILED, "not finished within its time limit")


def test_a_stage_that_is_killed(tiny: Make) -> None:
    build = tiny("kill -KILL $$\n")
    build.build()
    assert "memory" in build.ended().reason


def test_a_killed_build_is_not_reported_as_running(tiny: Make, tmp_path: Path) -> None:
    build = tiny(f"echo $$ >'{tmp_path}/pid'\n")
    build.script += build.waits
    build.build()
    plan = read_plan(build.place)
    assert plan
    build.reached(lambda _: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    os.kill(plan.pid, signal.SIGKILL)
    status = build.ended()
    assert (status.phase, status.reason) == (Phase.STOPPED, f"process {plan.pid} was ended")
    with pytest.raises(UserError, match="the build ended early in stage one: process"):
        build.fetch()
    # What the killed build has left of itself ends before the next one starts.
    left = int((build.tmp / "pid").read_text())
    build.script = ""
    build.build()
    assert not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text()
    assert build.ended().phase is Phase.DONE


def test_a_restarted_machine(tiny: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build = tiny()
    build.script = build.waits
    build.build()
    plan = read_plan(build.place)
    assert plan
    os.kill(plan.pid, signal.SIGKILL)
    build.ended()
    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(places, "_BOOT_ID", tmp_path / "boot_id")
    assert look(build.place).reason == "the machine was restarted"
    build.go()


def test_clean_stops_a_running_build(
    tiny: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "_GRACE", 0.5)
    build = tiny(f"trap '' TERM; echo $$ >'{tmp_path}/pid'\nsleep 300 & wait; sleep 300\n")
    build.build()
    build.reached(lambda _: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    script = int((tmp_path / "pid").read_text())
    build.clean()
    assert "stopped the build" in capsys.readouterr().out
    assert not build.place.root.exists()
    assert not Path(f"/proc/{script}").exists() or "Z" in Path(f"/proc/{script}/stat").read_text()
    build.report()
    assert "nothing was started" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing was started"):
        build.fetch()
    build.clean()  # nothing is left to do


@pytest.mark.parametrize(("source", "named"), [("debian", "container"), ("container", "container"), ("local", "local")])
def test_where_nothing_was_started_the_given_way_to_build_is_named(
    tiny: Make, capsys: pytest.CaptureFixture[str], source: str, named: str
) -> None:
    root = tiny().place.root
    steps.report(root=root, source=source)
    assert capsys.readouterr().out.endswith(f"./doitw packages_build PACKAGES_SOURCE={named}\n")
    with pytest.raises(UserError) as refused:
        steps.fetch(root=root, output=root / "out", source=source)
    assert refused.value.hint.endswith(f"PACKAGES_SOURCE={named}")


def test_a_build_that_was_only_configured_has_no_result_to_fetch(tiny: Make) -> None:
    build = tiny()
    build.build(configure=True)
    assert build.ended().phase is Phase.CONFIGURED
    assert (build.place.out / "one" / "said").read_text().split("\n")[1] == "yes"
    with pytest.raises(UserError, match="only configured"):
        build.fetch()
    build.build()
    assert build.ended().phase is Phase.DONE


def test_a_result_that_is_missing(tiny: Make) -> None:
    build = tiny('rm "$OUT/result"\n')
    build.build()
    assert build.ended().phase is Phase.DONE
    with pytest.raises(UserError, match="found no result"):
        build.fetch()


def test_sources_that_differ_from_the_pins_are_refused(tiny: Make) -> None:
    build = tiny()
    build.source.write_text("HELLO\n")
    with pytest.raises(UserError, match="does not match"):
        build.build()
    assert not build.place.plan.exists()


def test_a_disk_that_is_too_small(tiny: Make) -> None:
    build = tiny(room=1 << 60)
    with pytest.raises(UserError, match=r"GB free, expected 1073741824 GB for the stage one"):
        build.build()


def test_an_unknown_stage_is_refused(tiny: Make) -> None:
    with pytest.raises(UserError, match="there is no stage 'six', expected some of one"):
        tiny().build(only="six")


@pytest.mark.parametrize("source", ["debian", "release"])
def test_a_packages_source_that_builds_nothing_is_refused(tiny: Make, source: str) -> None:
    with pytest.raises(UserError, match=f"PACKAGES_SOURCE={source}: expected container or local"):
        tiny().build(source=source)


@pytest.mark.parametrize(("name", "road"), [("a blank", "local"), ("a:colon", "local"), ("a,comma", "container")])
def test_a_path_with_unsuitable_characters_is_refused(tmp_path: Path, name: str, road: str) -> None:
    with pytest.raises(UserError, match="in the path"):
        places.check_path(tmp_path / name, road)
    places.check_path(tmp_path / "plain", road)


def test_a_damaged_record(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.plan.write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        look(place)


def test_a_missing_package_is_named(tiny: Make) -> None:
    build = tiny(environment=None)
    listing = build.tmp / "listing.yaml"
    listing.write_text(listing.read_text().replace("[coreutils]", "[coreutils, no-such-package]"))
    with pytest.raises(UserError, match="not installed here: no-such-package"):
        build.build()
    listing.write_text(listing.read_text().replace(", no-such-package", ""))
    build.build()
    assert build.ended().phase is Phase.DONE
