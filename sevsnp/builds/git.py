# SPDX-License-Identifier: Apache-2.0
"""Sources in git repositories: finds the commit of a tag, or of a day on a branch, and packs its tree as a tar."""

import configparser
import re
import shutil
from datetime import UTC, date, datetime, time
from pathlib import Path

from sevsnp.builds.pins import REPOSITORY, GitSource
from sevsnp.errors import UserError
from sevsnp.system import progress
from sevsnp.system.command import run, temporary_directory
from sevsnp.system.command_failed import CommandFailed
from sevsnp.system.files import scratch_directory

# Seconds for one command: a kernel's history is large.
GIT_SECONDS = 7200.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
NETWORK = "check the network and the proxy settings, or build the pinned sources: PACKAGES_PIN=stable"
# Nothing of the user's configuration decides what is taken, and git asks for no password.
_ENVIRONMENT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


def _git(*words: str | Path, cwd: Path | None = None) -> str:
    # Tags and files that a repository contains must not be more than data to us.
    return run(["git", *words], cwd=cwd, env=_ENVIRONMENT, timeout=GIT_SECONDS, hint=NETWORK).decode().strip()


def resolve_commit(source: GitSource, day: str, today: date) -> str:
    """The commit of the source's tag, or the last commit on its branch on ``day`` (UTC; ``today`` or ISO 8601).

    Uses the network. Raises :class:`UserError` for a repository, tag or branch that is not there, and for a day before
    the branch's first commit or after ``today``.
    """
    progress.step(f"asking for {source.tag or source.branch}")
    reference = f"refs/tags/{source.tag}" if source.tag else f"refs/heads/{source.branch}"
    listed = _git("ls-remote", source.repository, reference, f"{reference}^{{}}")
    found = {name: commit for commit, _, name in (line.partition("\t") for line in listed.splitlines())}
    tip = found.get(f"{reference}^{{}}") or found.get(reference)
    if not tip or not _COMMIT.fullmatch(tip):
        raise UserError(f"{source.repository}: there is no {reference}, which the pins name")
    if source.tag or day == "today":
        return tip
    wanted = date.fromisoformat(day)
    if wanted > today:
        raise UserError(f"COMMIT_DATE={day}: found a day in the future, expected one to {today}")
    return _on_day(source, tip, wanted)


def _on_day(source: GitSource, tip: str, day: date) -> str:
    """The last commit on the branch at the end of ``day``, along first parents: others came with a later merge."""
    end = datetime.combine(day, time.max, UTC)
    with temporary_directory("sevsnp-git.") as scratch:
        progress.step(f"reading the history of {source.branch}")
        # Commits alone; a server that does not know filters sends all.
        _git("clone", "--quiet", "--bare", "--filter=tree:0", "--single-branch", "--branch", source.branch,
             source.repository, scratch / "history")  # fmt: skip
        # --before would stop at the first commit that is too young on its way; a date is the committer's own word.
        log = _git("log", "--first-parent", "--format=%H %ct", tip, cwd=scratch / "history")
    for line in log.splitlines():
        commit, seconds = line.split()
        if int(seconds) <= end.timestamp():
            return commit
    raise UserError(f"COMMIT_DATE={day}: {source.branch} of {source.repository} has no commit that old")


def pack_commit(source: GitSource, commit: str, output: Path) -> None:
    """Write the tree of ``commit``, with the submodules and wraps that it needs, as the tar ``output``.

    Its entries are below one directory, sorted, with fixed times and owners. Uses the network. Raises
    :class:`UserError`; also if a wrap is not pinned by a whole commit.
    """
    with scratch_directory(output) as scratch:
        tree = scratch / source.name
        progress.step(f"fetching {source.name} {commit[:12]}")
        _checkout(source.repository, commit, tree)
        if source.submodules:
            local = ["-c", "protocol.file.allow=always"] if source.repository.startswith("file:") else []
            _git(*local, "submodule", "update", "--quiet", "--init", "--recursive", "--depth=1", cwd=tree)
        for wrap in source.wraps:
            _take_wrap(tree, wrap)
        new = scratch / output.name
        epoch = _git("show", "--no-patch", "--format=%ct", commit, cwd=tree)
        run(["tar", "--create", f"--file={new}", f"--directory={scratch}", "--exclude-vcs", "--sort=name",
             f"--mtime=@{epoch}", "--owner=0", "--group=0", "--numeric-owner", "--mode=go-w,a+rX", "--format=gnu",
             source.name], timeout=GIT_SECONDS)  # fmt: skip
        new.replace(output)


def _checkout(repository: str, commit: str, tree: Path) -> None:
    _git("init", "--quiet", tree)
    try:
        _git("fetch", "--quiet", "--depth=1", "--no-tags", repository, commit, cwd=tree)
    except CommandFailed as error:
        if "not our ref" not in error.said and "unadvertised" not in error.said:
            raise
        # A server that gives no single commits: take all of its branches.
        _git(
            "fetch", "--quiet", repository, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*", cwd=tree
        )
    _git("-c", "core.autocrlf=false", "checkout", "--quiet", "--detach", commit, cwd=tree)
    found = _git("rev-parse", "HEAD", cwd=tree)
    if found != commit:
        raise UserError(f"{repository}: found commit {found}, expected {commit}")


def _take_wrap(tree: Path, name: str) -> None:
    """Fetch the repository that subprojects/NAME.wrap names, with meson's own changes for it (packagefiles)."""
    file = tree / "subprojects" / f"{name}.wrap"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        section = parser["wrap-git"]
        url, revision = section["url"], section["revision"]
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        raise UserError(f"{file.relative_to(tree.parent)}: found no url and revision in [wrap-git]: {error}") from None
    if not REPOSITORY.fullmatch(url):  # git would take an option here, too
        raise UserError(f"{file.relative_to(tree.parent)}: url: found {url!r}, expected https://…")
    if not _COMMIT.fullmatch(revision):
        raise UserError(f"{file.relative_to(tree.parent)}: revision: found {revision!r}, expected a whole commit")
    directory = section.get("directory", name)
    if not re.fullmatch(r"[\w.-]+", directory) or directory in (".", ".."):
        raise UserError(f"{file.relative_to(tree.parent)}: directory: found {directory!r}, expected a name")
    _checkout(url, revision, tree / "subprojects" / directory)
    patch = section.get("patch_directory", "")
    if patch and re.fullmatch(r"[\w.-]+", patch):
        shutil.copytree(
            tree / "subprojects" / "packagefiles" / patch, tree / "subprojects" / directory, dirs_exist_ok=True
        )
