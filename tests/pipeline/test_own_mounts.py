# SPDX-License-Identifier: Apache-2.0
"""Private mounts made by root: they work in a chroot whose / is no mount point, and are invisible outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.system import own_mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts without a user namespace")

# In a namespace of its own, which ends with all that is mounted here: a chroot in a directory of a shared mount.
IN_A_CHROOT = """
base=$1
shift
mount -t tmpfs base "$base"
mount --make-shared "$base"
root=$base/root
mkdir -p "$root/mnt" "$root/tmp"
for name in bin sbin lib lib64; do
    [ ! -e "/$name" ] || { mkdir "$root/$name"; mount --bind "/$name" "$root/$name"; }
done
for name in usr dev proc $BOUND; do
    mkdir -p "$root/$name"
    mount --rbind "/$name" "$root/$name"
done
cp "$PROGRAM" "$root/own_mounts.py"
! chroot "$root" mountpoint -q / || exit 99
chroot "$root" "$@" || exit
grep -c ' /.*/root/mnt ' /proc/self/mountinfo || :
"""
INSIDE = "mount -t tmpfs inner /mnt && grep -c ' /mnt ' /proc/self/mountinfo && cd / && touch /mnt/file"
PYTHON = Path(sys.executable).resolve()
OURS = [str(PYTHON), "-I", "-S", "/own_mounts.py"]


def in_a_chroot(base: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """What ``words`` said there, and then how many of its mounts are to be seen outside."""
    base.mkdir()
    # Python may be anywhere; its libraries are beside it.
    bound = "" if PYTHON.is_relative_to("/usr") else str(PYTHON.parents[1]).lstrip("/")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-euc", IN_A_CHROOT, "sh", base, *words],
        env={**os.environ, "PROGRAM": own_mounts.__file__, "BOUND": bound},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_mount_in_a_chroot_is_invisible_outside(tmp_path: Path) -> None:
    done = in_a_chroot(tmp_path / "base", *OURS, "sh", "-c", INSIDE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n0\n", "")
    assert list((tmp_path / "base").iterdir()) == []


def test_control_options_of_unshare_fail_in_a_chroot_or_leak_the_mount(tmp_path: Path) -> None:
    """Controls: an earlier command of the pipeline, and one that would only look like a remedy."""
    old = in_a_chroot(tmp_path / "old", "unshare", "--mount", "sh", "-c", INSIDE)
    assert old.returncode and "cannot change root filesystem propagation" in old.stderr
    leaking = in_a_chroot(tmp_path / "new", "unshare", "--mount", "--propagation", "unchanged", "sh", "-c", INSIDE)
    assert (leaking.returncode, leaking.stdout) == (0, "1\n1\n")


def test_a_mount_is_invisible_outside_also_where_the_root_is_a_mount_point(tmp_path: Path) -> None:
    script = f"mount -t tmpfs inner {tmp_path} && grep -c ' {tmp_path} ' /proc/self/mountinfo && pwd"
    done = subprocess.run(
        [sys.executable, "-I", "-S", own_mounts.__file__, "sh", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == f"1\n{tmp_path}\n"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_user_who_may_not_mount_gets_an_error_of_one_line() -> None:
    argv = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-I", "-S", own_mounts.__file__, "true"]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("no mount namespace: Operation not permitted") and len(done.stderr.splitlines()) == 1
