# SPDX-License-Identifier: Apache-2.0
"""Every parser of untrusted bytes as a fuzz target: honest bytes to begin with, and the one documented error.

Used by test_attestation_fuzz, with hypothesis and, through atheris_run, with atheris.
"""

import functools
import io
import json
import struct
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.utils import CryptographyDeprecationWarning

from sevsnp.attestation import certificates as certs
from sevsnp.attestation.appraisal import Evidence, Expected, appraise
from sevsnp.attestation.certificates import der
from sevsnp.attestation.chain import pem
from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.extensions import ExtensionError, named_product, read_extensions
from sevsnp.attestation.inspection import inspect
from sevsnp.attestation.kds import Kds
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.kds_http import Limits
from sevsnp.attestation.policy import make_policy
from sevsnp.attestation.report import parse_report
from sevsnp.attestation.report_input import read_input
from sevsnp.attestation.revocation import CrlError, newest_in_force
from sevsnp.errors import UserError
from sevsnp.measurement.id_block import IdAuth, IdBlock, Identity, check_identity, make_identity
from sevsnp.measurement.ovmf import read_firmware, read_svsm
from sevsnp.owner.client import parse_answer
from sevsnp.system import toml_loader
from sevsnp.vm_config.config import parse_vm_config, render_vm_config
from tests.support.evidence import REPORT_DATA, config, firmware, psp
from tests.support.hierarchy import NOW, Hierarchy, leaf_key, load_crl

GENOA = Hierarchy()
_HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@dataclass(frozen=True)
class Target:
    """``work`` raises only ``error``, for any bytes; ``seeds`` are valid inputs, made at the first use."""

    make_seeds: Callable[[], tuple[bytes, ...]]
    work: Callable[[bytes], object]
    error: type[Exception]

    @functools.cached_property
    def seeds(self) -> tuple[bytes, ...]:
        return self.make_seeds()

    def __call__(self, data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            try:
                self.work(data)
            except self.error as found:
                assert str(found)


def _reports(data: bytes) -> None:
    for product in ("Genoa", "Turin"):
        parse_report(data, product)


def _table(data: bytes) -> None:
    certs.crl_of_table(data)
    certs.certificates_of_table(data)


def _certificates(data: bytes) -> None:
    for one in certs.load_certificates(data):
        named_product(one)
        for product in ("Genoa", "Turin"):
            try:
                read_extensions(one, product)
            except ExtensionError as error:
                assert str(error)


class _Service(Kds):
    """AMD's service, which answers with ``answer``, but gives its genuine authorities for a leaf."""

    answer = b""
    honest = False

    def _get(self, path: str, size: int, what: str, limits: Limits) -> bytes:
        return pem([GENOA.ask, GENOA.ark]) if self.honest and path.endswith("cert_chain") else self.answer


# No cache can exist at this path, so no run finds anything of an earlier one.
_NOWHERE = Cache(Path("/dev/null/kds"))


def _service_list(service: Kds) -> None:
    found = service.revocation_lists("Genoa", "VCEK", GENOA.ark, NOW, True)
    if newest_in_force(found.found, NOW) is None:
        raise Unreachable(found.problem)


def _service(data: bytes) -> None:
    service = _Service(GENOA.root, _NOWHERE)
    _Service.answer = data
    problems = []
    for honest, ask in (
        (False, lambda: service.issuers("Genoa", "VCEK", NOW)),
        (True, lambda: service.leaf("Genoa", GENOA.chip_id, GENOA.level, NOW)),
        (True, lambda: _service_list(service)),
    ):
        _Service.honest = honest
        try:
            ask()
        except Unreachable as error:
            problems.append(str(error))
    assert all(problems)
    # One body can be valid for at most one of the three.
    assert len(problems) >= 2
    raise Unreachable(problems[0])


def _id_blocks(data: bytes) -> None:
    check_identity(Identity(IdBlock.decode(data[:96]), IdAuth.decode(data[96:])), bytes(48), 0x30000)


def _firmware(data: bytes) -> None:
    read_firmware(io.BytesIO(data), len(data))


def _svsm(data: bytes) -> None:
    read_svsm(io.BytesIO(data), len(data), 1 << 32)


def _toml(data: bytes) -> dict[str, object]:
    try:
        return toml_loader.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(str(error) or "no TOML") from error


def _policy(data: bytes) -> None:
    made = config()
    make_policy(_toml(data), made.source, made, REPORT_DATA)


def _vm_config(data: bytes) -> None:
    found = parse_vm_config(_toml(data), config().source)
    if found.reference:
        Expected.of(found, REPORT_DATA)


def _evidence(data: bytes) -> None:
    """A report with a table behind it, and certificates: there is no exception, and no other report is accepted."""
    honest = _report()
    for one in (Evidence(data[:1184], data[1184:]), Evidence(honest, certificates=(data,))):
        found = appraise(one, _wanted(), NOW, GENOA.root)
        assert not found.accepted or one.report[:0x2A0] == honest[:0x2A0]
        json.dumps(found.to_json())
        json.dumps(inspect(one, NOW, GENOA.root).to_json())


def _wanted() -> Expected:
    return Expected.of(config(platform="snp", platform_info_required=0, platform_info_forbidden=0), REPORT_DATA)


def _table_of(entries: dict[bytes, bytes]) -> bytes:
    header, offset = b"", 24 * (len(entries) + 1)
    for guid, data in entries.items():
        header += struct.pack("<16sII", guid, offset, len(data))
        offset += len(data)
    return header + bytes(24) + b"".join(entries.values())


_POLICIES = (
    b'profile = "default"\nvmpl = [0, 1]\nfirmware = { at_least = "1.55.40" }\nchip_id = ["' + b"ab" * 64 + b'"]\n',
    b'profile = "strict"\nlaunch_mitigations = 5\n[platform_info]\nsmt_en = false\n'
    b'tio_en = { any = "none is there" }\n[reported_tcb]\nbootloader = 1\ntee = 0\nsnp = 3\nmicrocode = 4\n',
)
_ANSWER = json.dumps({"report": "AAAA", "certificates": "AAAA", "host_keys": [_HOST_KEY]}).encode()


@functools.cache
def _report() -> bytes:
    return GENOA.report()


@functools.cache
def _chain() -> bytes:
    return pem([GENOA.certificate, GENOA.ask, GENOA.ark])


@functools.cache
def _honest_table() -> bytes:
    certificates = {certs.VCEK_GUID: GENOA.certificate, certs.ASK_GUID: GENOA.ask, certs.ARK_GUID: GENOA.ark}
    return _table_of({**{guid: der(one) for guid, one in certificates.items()}, certs.CRL_GUID: GENOA.crl([1])})


def _identity() -> bytes:
    made = make_identity(IdBlock(bytes(48), bytes(16), bytes(16), 1, 0x30000), leaf_key(), leaf_key("author"))
    return made.block.encode() + made.auth.encode()


def _response() -> bytes:
    """The answer of the secure processor: status, size, and the report."""
    return bytes(4) + (1184).to_bytes(4, "little") + bytes(24) + _report()


TARGETS = {
    "report": Target(
        lambda: (_report(), GENOA.report(version=2), Hierarchy("Turin").report(), GENOA.report(mitigations=5)),
        _reports, UserError,
    ),
    "report_input": Target(
        lambda: (_report(), _report().hex().encode(), _response(), b"HCLA" + bytes(28) + _report(), _ANSWER),
        lambda data: read_input(data, "input"), UserError,
    ),
    "certificate_table": Target(lambda: (psp().certificate_table(), _honest_table()), _table, UserError),
    "certificates": Target(
        lambda: (der(GENOA.certificate), der(GENOA.ark), _chain()), _certificates, UserError
    ),
    "service": Target(
        lambda: (der(GENOA.certificate), pem([GENOA.ask, GENOA.ark]), GENOA.crl([1, 2, 3]), b"<html>"),
        _service, Unreachable,
    ),
    "crl": Target(
        lambda: (GENOA.crl([1, 2, 3]), GENOA.crl()), lambda data: load_crl(data, GENOA.ark, NOW), CrlError
    ),
    "id_block": Target(lambda: (_identity(),), _id_blocks, UserError),
    "firmware": Target(lambda: (firmware(),), _firmware, UserError),
    "svsm": Target(lambda: (firmware(),), _svsm, UserError),
    "policy": Target(lambda: _POLICIES, _policy, UserError),
    "vm_config": Target(
        lambda: (render_vm_config(replace(config(), policy={"profile": "default"})).encode(),), _vm_config, UserError
    ),
    "answer": Target(
        lambda: (_ANSWER, b'{"error": "none"}'), lambda data: parse_answer(data, "guest"), UserError
    ),
    "evidence": Target(lambda: (_report() + _honest_table(), _chain()), _evidence, UserError),
}  # fmt: skip
