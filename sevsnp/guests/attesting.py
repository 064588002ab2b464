# SPDX-License-Identifier: Apache-2.0
"""`attest_verity` and `attest_luks`: wait for the guest, verify it, and print the login once its sshd answers."""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sevsnp.attestation.appraisal import Expected, Refused
from sevsnp.attestation.report_data import luks_report_data
from sevsnp.errors import UserError
from sevsnp.guests.local import Guest, follow_boot, meant, ports_of, sshd_answers, wait_for_login
from sevsnp.host.run import words_of
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import read_record
from sevsnp.owner import kept
from sevsnp.owner.attestation import attest_guest, never_accepted, refusal, trust_domain, verifier
from sevsnp.owner.certificate_sources import CertificateSources
from sevsnp.owner.client import NOBODY, NONCE_SIZE, NoAnswer, ask
from sevsnp.owner.key_release import is_waiting
from sevsnp.owner.login import say_accepted
from sevsnp.owner.luks import attest_luks, check_release, release_data_key
from sevsnp.system.command import run
from sevsnp.vm_config.config import read_vm_config

# The waiting time for an emulated guest that boots here, on a busy machine; and for a guest elsewhere of unknown state.
_HERE_SECONDS, _ELSEWHERE_SECONDS = 600.0, 20.0
_LOGIN_SECONDS = 300.0


def verity(
    *,
    name: str,
    runs: Path,
    host: str,
    port: int,
    ssh_port: int,
    asked: Mapping[str, int | str],
    config_dir: Path,
    key_file: str,
    **how: Any,
) -> None:
    """`attest_verity` for the guest ``name``; ``how`` are further parameters of :func:`.attest_guest`.

    A guest with a data disk that waits for its key gets it first, if its evidence is accepted; ``config_dir`` and
    ``key_file`` are for that, as for :func:`sevsnp.owner.luks.attest_luks`.
    """
    guest = meant(Guest.of(runs, name), host)
    port, ssh_port = ports_of(guest, asked, host, port, ssh_port)
    _check_platform(guest, how["vm_config"], "verity")

    where = f"{host}:{port}"
    has_data = read_vm_config(how["vm_config"]).launch.written is not None

    def answers(seconds: float) -> None:
        if has_data and is_waiting(host, port, seconds):
            raise _WaitsForKey
        ask(host, port, os.urandom(NONCE_SIZE), timeout=seconds)

    def wait() -> None:
        try:
            _wait(guest, where, answers)
        except _WaitsForKey:
            same = ("vm_config", "emulated_root", "manifest", "manifest_key", "sources")
            release_data_key(
                config_dir=config_dir, key_file=key_file, host=host, port=port, output=guest.state, asked=asked,
                again="./doitw attest_verity", **{each: how[each] for each in same if each in how},
            )  # fmt: skip
            _wait(guest, where, lambda seconds: ask(host, port, os.urandom(NONCE_SIZE), timeout=seconds))

    attest_guest(host=host, port=port, ssh_port=ssh_port, asked=asked, output=guest.state, **how, wait=wait)
    _say_login(guest, host, ssh_port)


def luks(
    *, name: str, runs: Path, host: str, port: int, ssh_port: int, asked: Mapping[str, int | str], **how: Any
) -> None:
    """`attest_luks` for the guest ``name``; ``how`` are further parameters of :func:`sevsnp.owner.luks.attest_luks`.

    A guest that has received its key can request no more reports. So the evidence of the key release is verified once
    more, and the guest's sshd must prove that it has the host key from that evidence.
    """
    guest = meant(Guest.of(runs, name), host)
    port, ssh_port = ports_of(guest, asked, host, port, ssh_port)
    _check_platform(guest, how["vm_config"], "luks")
    where = f"{host}:{port}"

    def answers(seconds: float) -> None:
        if is_waiting(host, port, seconds):
            return
        if guest.ssh_config.exists() and sshd_answers(host, ssh_port, seconds):
            raise _OpenAlready
        raise NoAnswer(f"{where}: no answer: no guest waits for its key there", NOBODY)

    try:
        attest_luks(
            host=host, port=port, ssh_port=ssh_port, asked=asked, output=guest.state, **how,
            wait=lambda: _wait(guest, where, answers),
        )  # fmt: skip
    except _OpenAlready:
        _verify_again(guest, where, **how)
    _say_login(guest, host, ssh_port)


class _WaitsForKey(Exception):
    """The guest waits for the key of its data disk."""


class _OpenAlready(Exception):
    """The guest has its key already."""


def _check_platform(guest: Guest, vm_config: Path, workflow: str) -> None:
    """Refuse, before any request to the guest, a guest whose evidence would be refused in any case.

    An encrypted guest would power off then. The VM config decides; this check only saves the attempt.
    """
    wanted = read_vm_config(vm_config).launch.platform
    if guest.run and guest.run.platform == "emulated" and wanted == "snp":
        raise UserError(
            f"the guest {guest.name} runs emulated, and {vm_config} is for SEV-SNP hardware",
            f"attest it as an emulated guest: ./doitw attest_{workflow}{words_of(guest.name, workflow, 'emulated')}",
        )


def _wait(guest: Guest, where: str, answers: Callable[[float], object]) -> None:
    """Wait until ``answers``, which gets the seconds that it may take, no longer raises NoAnswer."""
    started = time.monotonic()
    while True:
        follow_boot(guest, where)
        passed = time.monotonic() - started
        try:
            answers(5.0 + passed / 20)
            return
        except NoAnswer:
            # A refused connection comes from no booting guest: QEMU accepts connections from its start.
            if passed > (_HERE_SECONDS if guest.run else _ELSEWHERE_SECONDS) or (not guest.run and not _taken(where)):
                raise
        time.sleep(0.3)


def _taken(where: str) -> bool:
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def _verify_again(
    guest: Guest,
    where: str,
    *,
    vm_config: Path,
    header: Path,
    config_dir: Path,
    emulated_root: Path,
    manifest: Path | None = None,
    manifest_key: Path | None = None,
    sources: CertificateSources | None = None,
    **_: Any,
) -> None:
    """Verify the evidence of the key release once more, now, and have the guest's sshd prove its host key."""
    config = read_vm_config(vm_config)
    emulated = config.launch.platform == "emulated"
    talk = kept.read(guest.state, emulated=emulated)
    if talk is None or talk.workflow != "luks":
        raise UserError(
            f"{where}: no guest that waits for its key, and no evidence of an earlier release in {guest.state}",
            "the guest gives evidence only while it waits for its key: boot it again",
        )
    luks = Luks2.read(header)
    digest = hashlib.sha256(luks.data).digest()
    bound = {name: bytes.fromhex(talk.bound[name]) for name in ("tls_key", "luks_header")}
    if bound["luks_header"] != digest:
        raise UserError(f"{where}: the kept evidence belongs to another volume than {header}", "boot the guest again")
    expected = Expected.of(
        config,
        luks_report_data(talk.nonce, bound["tls_key"], digest),
        never=never_accepted(manifest, manifest_key),
    )
    try:
        verdict = verifier(config, emulated_root, sources)(talk.evidence, expected, datetime.now(UTC))
    except Refused as refused:
        raise refusal(refused, config, where) from None
    check_release(trust_domain(verdict), read_record(config_dir, luks.uuid), emulated_asked=True)
    # Batch mode, the kept host key and no other: ssh itself fails if the server cannot prove it.
    run(["ssh", "-F", guest.ssh_config, "-o", "BatchMode=yes", "guest", "true"], timeout=120)
    print(f"the guest has its key. Its evidence of {talk.at.astimezone():%Y-%m-%d %H:%M:%S}, for which it got the key,")
    print("was verified again; it can give no new evidence. Its sshd has just proven the host key in that evidence.")
    say_accepted(verdict.to_json())


def _say_login(guest: Guest, host: str, ssh_port: int) -> None:
    named = f"./doitw ssh NAME={guest.name}"
    if wait_for_login(guest, host, ssh_port, _LOGIN_SECONDS if guest.run else _ELSEWHERE_SECONDS):
        print(f"log in with: ssh -F {guest.ssh_config} guest (or {named})")
    else:
        print(f"its sshd at {host}:{ssh_port} does not answer yet; log in later with: {named}")
