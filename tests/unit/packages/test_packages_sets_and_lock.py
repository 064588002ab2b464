# SPDX-License-Identifier: Apache-2.0
"""Package lists and the lock file: the accepted formats, and the faults that are refused by name."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.lock import LockedSet, Package, dump_lock, read_lock
from sevsnp.packages.sets import PackageSet, read_set, read_sets

DIGEST = "ab" * 32
DATE = "2026-01-31T12:00:00Z"
BASH = Package("bash", "5.2-1+b1", "amd64", "debian", "pool/main/b/bash/bash_5.2-1+b1_amd64.deb", 1000, DIGEST)
KERNEL = Package("linux-image-6.1-amd64", "6.1-1", "amd64", "debian-security", "pool/l/k.deb", 2000, "cd" * 32)


def locked(**changes: object) -> LockedSet:
    plain = LockedSet("trixie", (DATE,), ("bash",), True, False, ("tar",), True, {}, (BASH,))
    return replace(plain, **changes)  # type: ignore[arg-type]


def asked(**changes: object) -> PackageSet:
    plain = PackageSet("tools", Path("list.yaml"), "trixie", ("bash",), exclude=("tar",))
    return replace(plain, **changes)  # type: ignore[arg-type]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_list_with_every_key_is_read(tmp_path: Path) -> None:
    text = "suite: trixie\npackages: [bash, g++]\nexclude: [tar, dpkg]\nessential: true\ndependencies: false\n"
    file = write(tmp_path / "p.yaml", text)
    read = read_set(file, "guest")
    assert read == PackageSet("guest", file, "trixie", ("bash", "g++"), False, True, ("dpkg", "tar"), True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("suite: trixie\npackages: [bash]\nrecommends: true\n", "unknown key 'recommends'"),
        ("suite: trixie\npackages: [bash-]\n", "'bash-'"),  # apt would take it as "remove bash"
        ("suite: trixie\npackages: ['--force-yes']\n", "'--force-yes'"),
        ("suite: trixie\npackages: [bash, bash]\n", "bash is given twice"),
        ("suite: trixie\npackages: [bash]\npackages: [tar]\n", "line 3: packages is given twice"),
        ("suite: trixie\npackages: [bash]\nexclude: [bash]\n", "bash is in packages and in exclude"),
        ("suite: trixie\npackages: []\n", "empty list"),
        ("suite: trixie\npackages: bash\n", "expected a list"),
        ("suite: 13\npackages: [bash]\n", "suite: found 13"),
        ("packages: [bash]\n", "suite: found None"),
        ("suite: trixie\npackages: [bash]\nessential: 1\n", "essential: found 1"),
        ("- bash\n", "found a list"),
        ("suite: [\n", "line 2: "),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "p.yaml", text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_set(file, "guest")
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_of_several_sets(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.yaml", "tools:\n  suite: trixie\n  packages: [bash]\novmf: {suite: forky, packages: [o2]}\n"
    )
    assert [read.name for read in read_sets(file)] == ["tools", "ovmf"]
    with pytest.raises(UserError, match=r"tools: unknown key 'x'"):
        read_sets(write(file, "tools: {suite: trixie, packages: [bash], x: 1}\n"))
    with pytest.raises(UserError, match="no such file"):
        read_sets(tmp_path / "absent.yaml")


def test_the_projects_own_lists_are_good() -> None:
    project = Path(__file__).resolve().parents[3]
    assert {"tools", "ovmf", "kernel"} <= {read.name for read in read_sets(project / "tasks/packages.yaml")}
    assert read_set(project / "initramfs/packages.yaml", "initramfs").packages
    assert read_set(project / "guest-vm/packages.yaml", "guest").packages


def test_a_written_lock_is_read_back(tmp_path: Path) -> None:
    kernel = locked(requested=("linux-image-amd64",), resolved={"linux-image-amd64": KERNEL.name}, packages=(KERNEL,))
    sets = {"tools": locked(), "kernel": kernel}
    lock = read_lock(write(tmp_path / "packages.lock", dump_lock(sets)))
    assert dict(lock.sets) == sets
    assert lock.packages("tools") == (BASH,)
    assert dump_lock(dict(reversed(sets.items()))) == dump_lock(sets)
    with pytest.raises(UserError, match="no set 'guest', found kernel, tools"):
        lock.packages("guest")


TAMPERED = [
    (f'"{DIGEST}"', f'"{DIGEST[:-1]}"', "sha256"),
    (f'"{DIGEST}"', f'"{DIGEST.upper()}"', "sha256"),
    ("size = 1000", "size = -1", "size"),
    ("size = 1000", 'size = "1000"', "size"),
    ("size = 1000", "size = true", "size"),
    ("pool/main/b/bash/bash_", "../../bash_", "filename"),
    ("pool/main/b/bash/bash_", "/etc/bash_", "filename"),
    ('archive = "debian"', 'archive = "other"', "archive"),
    ('architecture = "amd64"', 'architecture = "arm64"', "architecture"),
    ('name = "bash"', 'name = "sh"', "bash is requested, but not locked"),
    ('version = "5.2-1+b1"', 'version = "5 2"', "version"),
    ('version = "5.2-1+b1"\n', "", "version is missing"),
    ("size = 1000", 'size = 1000\nurl = "elsewhere"', "unknown key 'url'"),
    ("essential = false", "essential = false\nextra = 1", "unknown key 'extra'"),
    ("format = 2", "format = 1", "format: found 1"),
    ("format = 2", "format = 2\nmirror = 1", "unknown key 'mirror'"),
    ("format = 2", "format = ", "not TOML"),
    (DATE, "2026-02-31T12:00:00Z", "dates"),
    (DATE, "20260131T120000Z", "dates"),
    (f'dates = [ "{DATE}",]', "dates = []", "dates"),
    (f'dates = [ "{DATE}",]\n', "", "dates is missing"),
]


@pytest.mark.parametrize(("old", "new", "said"), TAMPERED)
def test_a_lock_that_was_tampered_with_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = dump_lock({"tools": locked()})
    assert text.count(old) >= 1
    read_lock(write(tmp_path / "packages.lock", text))  # the control arm
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_lock(write(tmp_path / "packages.lock", text.replace(old, new, 1)))
    assert str(tmp_path / "packages.lock") in caught.value.message


def test_a_lock_that_does_not_fit_its_lists_is_refused(tmp_path: Path) -> None:
    lock = read_lock(write(tmp_path / "packages.lock", dump_lock({"tools": locked()})))
    lock.check([asked()])
    for wanted, said in (
        (asked(packages=("bash", "less")), "list.yaml: less is not in"),
        (asked(packages=("dash",), suite="sid"), "list.yaml: dash is not in"),
        (asked(suite="forky"), "suite: trixie, but list.yaml says forky"),
        (asked(essential=True), "essential: false, but list.yaml says true"),
        (asked(exclude=()), "exclude: tar, but list.yaml says none"),
        (asked(name="guest"), "no set 'guest'"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            lock.check([wanted])
        assert "./doitw packages_lock" in caught.value.hint
    two = locked(requested=("bash", KERNEL.name), packages=(BASH, KERNEL))
    lock = read_lock(write(lock.path, dump_lock({"tools": two})))
    lock.check([asked(packages=(KERNEL.name, "bash"))])
    with pytest.raises(UserError, match=rf"was made with {KERNEL.name}, which list\.yaml lacks"):
        lock.check([asked()])


def test_no_lock_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        read_lock(tmp_path / "packages.lock")
    assert "packages_lock" in caught.value.hint
