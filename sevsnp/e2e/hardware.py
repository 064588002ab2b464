# SPDX-License-Identifier: Apache-2.0
"""Run both workflows on an SEV-SNP machine, never emulated, and pack what to send, also after a failure."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sevsnp.e2e.hardware_record import FAILURE, HOST, RESULTS, facts_text, host_facts, pack_record, recorded_files
from sevsnp.e2e.run import e2e
from sevsnp.errors import UserError
from sevsnp.system.command import run
from sevsnp.system.files import write_atomic


def hardware_test(
    *,
    record: Path,
    archive: Path,
    configs: Sequence[Path],
    checked: Path,
    keys: Sequence[Path],
    key_dir: Path,
    qemu: Path,
    **workflows: Any,
) -> None:
    """Run :func:`sevsnp.e2e.run.e2e` with SEV-SNP, and pack ``record`` and ``configs`` into ``archive``.

    ``checked`` is the verdict of check_host, which ran before. ``keys`` and the disk keys in ``key_dir`` must not be in
    the archive. ``workflows`` are the other parameters of e2e. Raises :class:`UserError` if the run fails, after
    packing.
    """
    shutil.rmtree(record, ignore_errors=True)
    record.mkdir(parents=True)
    version = run([qemu, "--version"]).decode(errors="replace").splitlines()[:1]
    write_atomic(record / HOST, facts_text(host_facts("".join(version))))
    failure = None
    try:
        e2e(platform="snp", qemu=qemu, output=record / "run", results=record / RESULTS, **workflows)
    except UserError as error:
        failure = error
        write_atomic(record / FAILURE, f"{error}\n")
    made = sorted((key_dir / "volumes").glob("*.key"))
    names = pack_record(recorded_files(record, configs, checked), [*keys, *made], archive)
    if failure:
        raise UserError(f"{failure.message}\nwhat to send: {archive}", failure.hint) from failure
    print(f"what to send: {archive} ({len(names)} files, no keys; to see them: tar -tzf {quote(str(archive))})")
