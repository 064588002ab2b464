# SPDX-License-Identifier: Apache-2.0
import ast
import base64
import dataclasses
import json
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from sevsnp.attestation.appraisal import Evidence
from sevsnp.attestation.report import EMULATED_CHIP_ID, parse_report
from sevsnp.emulation import psp as soft
from sevsnp.emulation.mark import EMULATION_OID
from sevsnp.emulation.psp import EmulatedPsp
from sevsnp.emulation.service import PspService, serve
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from tests.support.evidence import (
    MEASUREMENT,
    REPORT_DATA,
    ROOT,
    evidence,
    expected,
    launch,
    load_script,
    now,
    psp,
    root,
)
from tests.support.waiting import NET

PROVIDER = ROOT / "initramfs" / "emulated" / "emulated_provider.py"


def test_keys_stay_in_memory_and_the_chain_is_public() -> None:
    directory = root().parent
    assert psp()
    assert sorted(path.name for path in directory.iterdir()) == ["ark.pem", "chain.pem"]
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert b"PRIVATE" not in path.read_bytes()
    assert x509.load_pem_x509_certificates((directory / "chain.pem").read_bytes()) == [
        psp().vcek, psp().ask, psp().ark,
    ]  # fmt: skip
    assert x509.load_pem_x509_certificate((directory / "ark.pem").read_bytes()) == psp().ark


def test_emulated_certificates_are_marked() -> None:
    for certificate in (psp().vcek, psp().ask, psp().ark):
        assert "EMULATED - NOT AMD - " in certificate.subject.rfc4514_string()
        mark = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(EMULATION_OID))
        assert mark.critical
        span = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert timedelta(hours=24) <= span <= timedelta(hours=24, minutes=10)


def test_every_instance_has_its_own_keys() -> None:
    first, second = psp("first"), psp("second")
    for name in ("vcek", "ask", "ark"):
        assert getattr(first, name).public_key() != getattr(second, name).public_key()


def test_reports_carry_the_marker() -> None:
    report = parse_report(evidence().report, "Genoa")
    assert (report.version, report.vmpl, report.chip_id) == (5, 0, EMULATED_CHIP_ID)
    assert report.chip_id.rstrip(b"\0") == b"EMULATED-PSP-NOT-AMD"
    assert (report.measurement, report.report_data) == (MEASUREMENT, REPORT_DATA)
    turin = psp("first", "Turin")
    assert turin.chip_id == b"EMULATED".ljust(64, b"\0")


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="Milan"):
        psp().report(REPORT_DATA, launch=dataclasses.replace(launch(), product="Milan"), measurement=MEASUREMENT)
    for report_data, measurement in ((b"short", MEASUREMENT), (REPORT_DATA, b"short")):
        with pytest.raises(ValueError, match="expected"):
            psp().report(report_data, launch=launch(), measurement=measurement)


def test_refuses_a_machine_with_real_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, tsm = tmp_path / "sev-guest", tmp_path / "report"
    monkeypatch.setattr(soft, "SEV_GUEST", device)
    monkeypatch.setattr(soft, "TSM_REPORT", tsm)
    soft.refuse_real_hardware()  # control
    device.touch()
    with pytest.raises(UserError, match="real SEV-SNP"):
        EmulatedPsp.create(tmp_path / "psp")
    assert not (tmp_path / "psp").exists()
    device.unlink()
    tsm.mkdir()

    real_mkdir, real_rmdir = Path.mkdir, Path.rmdir

    def configfs(provider: str | OSError) -> None:
        def mkdir(path: Path, *arguments: object, **options: object) -> None:
            if path.parent != tsm:
                real_mkdir(path)
            elif isinstance(provider, OSError):
                raise provider
            else:
                real_mkdir(path)
                (path / "provider").write_text(provider + "\n")

        def rmdir(path: Path) -> None:
            (path / "provider").unlink()
            real_rmdir(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)

    real: list[str | OSError] = ["sev_guest", PermissionError(13, "no")]
    other: list[str | OSError] = ["tdx_guest", OSError(6, "no provider")]
    for provider in real:
        configfs(provider)
        with pytest.raises(UserError, match="real SEV-SNP"):
            soft.refuse_real_hardware()
    for provider in other:
        configfs(provider)
        soft.refuse_real_hardware()
    assert not list(tsm.iterdir())


ALLOWED = {
    "sevsnp.errors",
    "sevsnp.system.regular",
    "sevsnp.system.template",
    "sevsnp.system.toml_loader",
    "sevsnp.vm_config.cmdline",
    "sevsnp.vm_config.config",
    "sevsnp.vm_config.processor",
    "sevsnp.emulation.report_encoder",
    "sevsnp.emulation.mark",
    "sevsnp.attestation.report",
}
ALLOWED |= {f"sevsnp.measurement.{name}" for name in ("ovmf", "launch_digest", "vmsa", "id_block")}


@pytest.mark.parametrize("module", sorted(ALLOWED | {"sevsnp.emulation.psp"}))
def test_the_secure_processor_imports_only_modules_that_are_shipped_with_it(module: str) -> None:
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    for node in tree.body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            first = name.split(".")[0]
            assert name in ALLOWED or first in {*sys.stdlib_module_names, "cryptography"}, (module, name)


# The service.


@pytest.fixture
def served() -> Iterator[socket.socket]:
    """The guest's end of a served connection."""
    ours, theirs = socket.socketpair()

    def answer(report_data: bytes) -> tuple[bytes, bytes]:
        if report_data == b"!" * 64:
            raise ValueError("no report for this")
        return psp().report(report_data, launch=launch(), measurement=MEASUREMENT), psp().certificate_table()

    thread = threading.Thread(target=serve, args=(theirs, answer, 0.3))
    thread.start()
    ours.settimeout(NET)
    yield ours
    ours.close()
    thread.join(NET)
    assert not thread.is_alive()
    theirs.close()


def receive(connection: socket.socket) -> dict[str, str]:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = connection.recv(size - len(data))
            assert piece
            data += piece
        return data

    document: dict[str, str] = json.loads(exactly(struct.unpack(">I", exactly(4))[0]))
    return document


def report_of(document: dict[str, str]) -> bytes:
    return parse_report(base64.b64decode(document["report"]), "Genoa").report_data


def test_service_answers(served: socket.socket) -> None:
    served.sendall(REPORT_DATA)
    answer = receive(served)
    one = Evidence(base64.b64decode(answer["report"]), base64.b64decode(answer["certificates"]))
    verify_emulated(one, expected(), now(), root())
    served.sendall(b"a" * 64 + b"b" * 64)
    assert [report_of(receive(served)) for _ in range(2)] == [b"a" * 64, b"b" * 64]
    for byte in REPORT_DATA:
        served.sendall(bytes((byte,)))
    assert report_of(receive(served)) == REPORT_DATA


def test_service_survives_garbage(served: socket.socket) -> None:
    served.sendall(b"garbage")
    served.settimeout(1)
    with pytest.raises(TimeoutError):  # dropped, not the beginning of the next request
        served.recv(1)
    served.settimeout(NET)
    served.sendall(b"!" * 64)
    assert set(receive(served)) == {"error"}
    served.sendall(REPORT_DATA)
    assert report_of(receive(served)) == REPORT_DATA


def test_service_ends_with_its_peer(served: socket.socket) -> None:
    served.sendall(b"half a request")
    served.shutdown(socket.SHUT_RDWR)


def test_service_gives_up_a_peer_that_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs, lambda _: (bytes(1 << 20), b""), 0.3))
    thread.start()
    ours.sendall(REPORT_DATA)
    thread.join(NET)
    assert not thread.is_alive()
    ours.close()
    theirs.close()


def test_service_on_a_chardev(tmp_path: Path) -> None:
    path = tmp_path / "psp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with PspService(psp(), launch(), MEASUREMENT, path):
            guest, _ = listener.accept()
            guest.settimeout(NET)
            guest.sendall(REPORT_DATA)
            assert report_of(receive(guest)) == REPORT_DATA
        assert guest.recv(1) == b""
        guest.close()
    with pytest.raises(OSError), PspService(psp(), launch(), MEASUREMENT, tmp_path / "nowhere"):
        pass


# The guest's end, with a socket in place of the port.


def guest_side(script: str, tmp_path: Path, port: str = "org.openend2e.psp") -> "subprocess.CompletedProcess[str]":
    """Run ``script`` in a fresh interpreter in which /dev/vport0p1 is a socket, and ``host`` its other end."""
    names = tmp_path / "ports" / "vport0p1"
    names.mkdir(parents=True)
    (names / "name").write_text(port + "\n")
    prelude = f"""
import os, socket, sys, threading
sys.path[:0] = [{str(PROVIDER.parent)!r}, {str(PROVIDER.parents[1])!r}]
import emulated_provider, get_report
emulated_provider.PORTS = {str(tmp_path / "ports")!r}
emulated_provider.SECONDS = 1.0
get_report.PROVIDERS.clear()
emulated_provider.register(); emulated_provider.register()
assert [one.name for one in get_report.PROVIDERS] == ["emulated"]
real_open = os.open
guest, host = socket.socketpair()
def fake_open(path, flags, *rest, **more):
    if path != "/dev/vport0p1":
        return real_open(path, flags, *rest, **more)
    os.set_blocking(guest.fileno(), False)
    return os.dup(guest.fileno())
os.open = fake_open
"""
    return subprocess.run([sys.executable, "-c", prelude + script], capture_output=True, text=True, check=False)


ANSWER = """
import base64, json, struct
def answer(report_data, **more):
    report = bytes(0x50) + report_data + bytes(1184 - 0x90)
    body = {"report": base64.b64encode(report).decode(), "certificates": "", **more}
    body = json.dumps(body).encode()
    return struct.pack(">I", len(body)) + body
"""


def test_the_provider_in_the_guest_reads_the_answers_of_the_service(tmp_path: Path) -> None:
    done = guest_side(
        ANSWER
        + """
host.sendall(answer(b"x" * 64))  # to a request that was given up
threading.Thread(target=lambda: host.sendall(answer(host.recv(64))), daemon=True).start()
found = get_report.get_report(b"n" * 64)
assert found["provider"] == "emulated" and found["vmpl"] == 0, found
assert base64.b64decode(found["report"])[0x50:0x90] == b"n" * 64
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("b''", "does not answer"),
        ("struct.pack('>I', 1 << 31)", "an answer of 2147483648 bytes"),
        ("struct.pack('>I', 2) + b'[]'", "not a JSON object"),
        ("struct.pack('>I', 2) + b'{]'", "Expecting"),
        ("struct.pack('>I', 2) + b'{}'", "report"),
        ("answer(b'n' * 64, report='AAAA')", "a report of 3 bytes"),
        ("answer(b'n' * 64, error='broken')", "broken"),
        ("answer(b'n' * 64)[:-1]", "does not answer"),
    ],
)
def test_provider_errors_are_one_line(tmp_path: Path, reply: str, words: str) -> None:
    script = f"""
host.sendall({reply})
try:
    get_report.get_report(b"n" * 64)
except get_report.ReportError as error:
    print(error)
"""
    done = guest_side(ANSWER + script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout and done.stdout.count("\n") == 1


def test_provider_needs_its_port(tmp_path: Path) -> None:
    script = """
try:
    get_report.get_report(b"n" * 64)
except get_report.ReportError as error:
    print(error)
"""
    done = guest_side(script, tmp_path, port="org.qemu.guest_agent.0")
    assert "not an SNP guest" in done.stdout, done.stderr


def test_production_provider_has_no_emulation() -> None:
    module = load_script(ROOT / "initramfs" / "get_report.py")
    assert [provider.name for provider in module.PROVIDERS] == ["configfs-tsm", "sev-guest"]
    text = (ROOT / "initramfs" / "get_report.py").read_text().lower()
    assert "emulat" not in text and "openend2e.psp" not in text
