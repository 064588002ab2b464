# SPDX-License-Identifier: Apache-2.0
import ast
import base64
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sevsnp.attestation.report_data import ssh_report_data
from tests.support.evidence import ROOT, load_script

EMULATED = ROOT / "initramfs" / "emulated" / "emulated_provider.py"
SCRIPT = ROOT / "initramfs" / "get_report.py"
DATA = bytes(range(64))


def report_for(report_data: bytes, vmpl: int = 0) -> bytes:
    return bytes(0x30) + struct.pack("<I", vmpl) + bytes(0x1C) + report_data + b"\7" * (1184 - 0x90)


@pytest.fixture
def module() -> ModuleType:
    return load_script(SCRIPT)


class FakeConfigfs:
    """A configfs-tsm directory: attributes appear with mkdir, the blobs follow from what was written."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.root, self.provider, self.auxblob, self.generations = root, "sev_guest", b"certificates", [1, 1]
        self.refused: OSError | None = None
        root.mkdir()
        self.removed: list[str] = []
        self.mkdir, self.read = os.mkdir, module._read
        monkeypatch.setattr(os, "mkdir", self.make)
        monkeypatch.setattr(os, "rmdir", self.remove)
        monkeypatch.setattr(module, "_read", self.attribute)

    def make(self, path: str) -> None:
        if self.refused:
            raise self.refused
        self.mkdir(path)
        (Path(path) / "inblob").touch()

    def remove(self, path: str) -> None:
        self.removed.append(path)

    def attribute(self, path: str) -> bytes:
        entry, name = os.path.split(path)
        if name == "generation":
            return b"%d\n" % self.generations.pop(0)
        if name == "provider":
            return self.provider.encode() + b"\n"
        if name == "auxblob":
            if not self.auxblob:
                raise OSError(errno.ENOENT, "No such file or directory")
            return self.auxblob
        level = Path(entry) / "privlevel"
        return report_for((Path(entry) / "inblob").read_bytes(), int(level.read_text()) if level.exists() else 0)


@pytest.fixture
def configfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> FakeConfigfs:
    fake = FakeConfigfs(tmp_path / "report", monkeypatch, module)
    module.PROVIDERS[:] = [module.ConfigfsTsm(str(fake.root))]
    return fake


def test_configfs(module: ModuleType, configfs: FakeConfigfs) -> None:
    found = module.get_report(DATA)
    assert base64.b64decode(found["report"]) == report_for(DATA)
    assert base64.b64decode(found["certificates"]) == b"certificates"
    assert (found["provider"], found["vmpl"]) == ("configfs-tsm", 0)
    assert configfs.removed == [str(path) for path in configfs.root.iterdir()]


def test_configfs_without_certificates(module: ModuleType, configfs: FakeConfigfs) -> None:
    configfs.auxblob = b""
    assert module.get_report(DATA)["certificates"] == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generations": [2, 2]}, "changed by another process"),
        ({"generations": [1, 2]}, "changed by another process"),
        ({"provider": "tdx_guest"}, "provider tdx_guest, expected sev_guest"),
        ({"refused": OSError(errno.ENXIO, "No such device or address")}, "No such device or address"),
    ],
)
def test_configfs_errors(module: ModuleType, configfs: FakeConfigfs, changes: dict[str, Any], words: str) -> None:
    vars(configfs).update(changes)
    with pytest.raises(module.ReportError, match=words):
        module.get_report(DATA)
    assert bool(configfs.removed) == ("refused" not in changes)


class FakeIoctl:
    """/dev/sev-guest: reads the caller's memory as the kernel does, and answers."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.errors: list[tuple[int, int, int] | None] = []
        self.table, self.status, self.size = b"certificates", 0, 1184
        self.vmpl = 0

    def __call__(self, device: int, command: int, message: Any, mutate: bool) -> int:
        import ctypes

        self.calls.append(command)
        version, request, response, _ = struct.unpack("<B7xQQQ", message)
        assert version == 1 and len(message) == 32 and mutate
        error = self.errors.pop(0) if self.errors else None
        if error:
            struct.pack_into("<II", message, 24, error[1], error[2])
            raise OSError(error[0], os.strerror(error[0]))
        size = {0xC0205300: 96, 0xC0205302: 112}[command]
        sent = ctypes.string_at(request, size)
        (vmpl,) = struct.unpack_from("<I", sent, 64)
        assert vmpl == self.vmpl and sent[68:96] == bytes(28)  # nothing reserved
        if size == 112:
            address, length, padding = struct.unpack("<QII", sent[96:])
            assert length == 0x4000 and padding == 0
            ctypes.memmove(address, self.table, len(self.table))
        answer = struct.pack("<II24x", self.status, self.size) + report_for(sent[:64], vmpl)
        ctypes.memmove(response, answer, len(answer))
        return 0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> FakeIoctl:
    fake = FakeIoctl()
    (tmp_path / "sev-guest").touch()
    module.PROVIDERS[:] = [module.SevGuest(str(tmp_path / "sev-guest"))]
    monkeypatch.setattr(module.fcntl, "ioctl", fake)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return fake


def test_ioctl(module: ModuleType, device: FakeIoctl) -> None:
    found = module.get_report(DATA)
    assert base64.b64decode(found["report"]) == report_for(DATA)
    assert base64.b64decode(found["certificates"]).rstrip(b"\0") == b"certificates"
    assert (found["provider"], device.calls) == ("sev-guest", [0xC0205302])


def test_ioctl_without_certificates(module: ModuleType, device: FakeIoctl) -> None:
    device.table = b""
    assert module.get_report(DATA)["certificates"] == ""
    device.errors = [(errno.EIO, 0, 1)]  # the host's table does not fit
    found = module.get_report(DATA)
    assert found["certificates"] == "" and device.calls[-2:] == [0xC0205302, 0xC0205300]


def test_ioctl_waits_for_a_busy_host(module: ModuleType, device: FakeIoctl) -> None:
    device.errors = [(errno.EIO, 0, 2), (errno.EAGAIN, 0, 0), None]
    module.get_report(DATA)
    assert len(device.calls) == 3
    device.errors = [(errno.EIO, 0, 2)] * 20
    with pytest.raises(module.ReportError, match="host error 0x2"):
        module.get_report(DATA)
    assert len(device.calls) == 13


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"errors": [(errno.EIO, 0x1A, 0)]}, "firmware error 0x1a, host error 0x0"),
        ({"errors": [(errno.EIO, 0, 1), (errno.EIO, 0, 1)]}, "refuses the request's length"),
        ({"status": 0x16}, "status 0x16"),
        ({"size": 1000}, "found 1000 bytes, expected 1184"),
    ],
)
def test_ioctl_errors(module: ModuleType, device: FakeIoctl, changes: dict[str, Any], words: str) -> None:
    vars(device).update(changes)
    with pytest.raises(module.ReportError, match=words):
        module.get_report(DATA)


def test_vmpl(module: ModuleType, configfs: FakeConfigfs) -> None:
    configfs.generations = [2, 2]
    assert module.get_report(DATA, 2)["vmpl"] == 2
    configfs.generations = [1, 1]  # control: somebody else's entry
    with pytest.raises(module.ReportError, match="changed by another process"):
        module.get_report(DATA, 2)


def test_vmpl_by_ioctl(module: ModuleType, device: FakeIoctl) -> None:
    device.vmpl = 3
    assert module.get_report(DATA, 3)["vmpl"] == 3


def test_a_report_of_another_vmpl_is_refused(module: ModuleType) -> None:
    class Deaf(Provider):
        def fetch(self, report_data: bytes, vmpl: int | None = None) -> tuple[bytes, bytes]:
            return report_for(report_data), b""

    module.PROVIDERS[:] = [Deaf("deaf", b"")]
    assert module.get_report(DATA, 0)["vmpl"] == 0
    with pytest.raises(module.ReportError, match="another VMPL than 1"):
        module.get_report(DATA, 1)


class Provider:
    def __init__(self, name: str, result: bytes | OSError | None) -> None:
        self.name, self.result = name, result

    def available(self) -> bool:
        return self.result is not None

    def fetch(self, report_data: bytes) -> tuple[bytes, bytes]:
        if isinstance(self.result, OSError):
            raise self.result
        assert self.result is not None
        return self.result, b""


def test_providers_in_order(module: ModuleType) -> None:
    broken, good = Provider("broken", OSError("it broke")), Provider("good", report_for(DATA))
    module.PROVIDERS[:] = [Provider("absent", None), broken, good]
    assert module.get_report(DATA)["provider"] == "good"
    module.PROVIDERS[:] = [broken, Provider("stale", report_for(bytes(64))), Provider("short", b"")]
    with pytest.raises(module.ReportError, match=r"it broke; stale: a report that .*; short: a report that"):
        module.get_report(DATA)
    module.PROVIDERS[:] = [Provider("absent", None)]
    with pytest.raises(module.ReportError, match="not an SNP guest: none of absent is there"):
        module.get_report(DATA)
    with pytest.raises(module.ReportError, match="expected 64"):
        module.get_report(DATA[1:])


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@guest\n"


def test_command(module: ModuleType, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    class Echo(Provider):
        def fetch(self, report_data: bytes) -> tuple[bytes, bytes]:
            return report_for(report_data), b"table"

    module.PROVIDERS[:] = [Echo("echo", b"")]
    assert module.main(["--report-data", DATA.hex()]) == 0
    document = json.loads(capsysbinary.readouterr().out)
    assert document.keys() == {"report", "certificates", "provider", "vmpl"}
    (tmp_path / "key.pub").write_text(KEY)
    out = tmp_path / "report.bin"
    bound = ["--nonce", "11" * 32, "--host-key", f"{tmp_path}/key.pub"]
    assert module.main([*bound, "--format", "raw", "-o", str(out)]) == 0
    wanted = ssh_report_data(b"\x11" * 32, [base64.b64decode(KEY.split()[1])])
    assert out.read_bytes() == report_for(wanted)
    table = tmp_path / "table"
    assert module.main([*bound, "--certificates", str(table), "--vmpl", "0", "-o", str(out)]) == 1  # no such level here
    assert module.main([*bound, "--certificates", str(table), "-o", str(out)]) == 0 and table.read_bytes() == b"table"
    assert module.main([*bound, *bound[2:]]) == 1  # a key twice
    (tmp_path / "key.pub").write_text("nonsense")
    assert module.main(bound) == 1
    for wrong in (
        ["--report-data", "00"],
        ["--nonce", "00"],
        ["--report-data", "z" * 128],
        [],
        [*bound, *bound[:2]] * 0,
    ):
        with pytest.raises(SystemExit):
            module.main(wrong)


def test_an_emulated_report_says_so_in_its_name_and_its_json(module: ModuleType, tmp_path: Path) -> None:
    class Emulated(Provider):
        says: Any = staticmethod(load_script(EMULATED).EmulatedProvider.says)

        def fetch(self, report_data: bytes) -> tuple[bytes, bytes]:
            return report_for(report_data), b""

    class Other(Emulated):
        says = staticmethod(dict)

    asked = ["--report-data", DATA.hex(), "-o"]
    module.PROVIDERS[:] = [Other("other", b"")]
    assert module.main([*asked, f"{tmp_path}/report.json"]) == 0  # control
    module.PROVIDERS[:] = [Emulated("any name", b"")]
    for name in ("report.bin", "emulated/report.bin"):
        assert module.main([*asked, f"{tmp_path}/{name}"]) == 1 and not (tmp_path / name).exists()
    assert module.main([*asked, f"{tmp_path}/report.emulated.json"]) == 0
    document = json.loads((tmp_path / "report.emulated.json").read_text())
    assert (document["emulated"], document["confidential"]) == (True, False)


def test_both_sides_compute_the_same_report_data(module: ModuleType) -> None:
    for keys in ([b"b", b"a"], [b"one"]):
        assert module.ssh_report_data(b"n" * 32, keys) == ssh_report_data(b"n" * 32, keys)


def test_the_script_fails_in_one_line_without_a_report_device() -> None:
    if Path("/dev/sev-guest").exists() or Path("/sys/kernel/config/tsm/report").exists():
        pytest.skip("this is a confidential guest")
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, "--report-data", DATA.hex()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert "not an SNP guest" in done.stderr


GUEST_FILES = (
    "initramfs/get_report.py",
    "initramfs/emulated/emulated_provider.py",
    "sevsnp/attestation/report_data.py",
)


@pytest.mark.parametrize("path", GUEST_FILES)
def test_files_of_the_guest_need_python_3_8_and_its_standard_library_only(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in sys.stdlib_module_names
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)
