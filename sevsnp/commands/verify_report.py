# SPDX-License-Identifier: Apache-2.0
"""verify_report: appraise evidence of AMD hardware. Exit 0 accepted, 2 refused, 3 undecided, 64 usage."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sevsnp.attestation import api
from sevsnp.attestation.appraisal import Appraisal, Evidence, Expected, NeverAccepted
from sevsnp.attestation.authentication import Endorser
from sevsnp.attestation.host_keys import read_host_keys
from sevsnp.attestation.input_text import of_digest
from sevsnp.attestation.report_data import NONCE_SIZE, SIZE, ssh_report_data
from sevsnp.attestation.report_input import MAX_INPUT, read_certificates, rfc_order
from sevsnp.commands.arguments import Parser, guarded
from sevsnp.errors import UserError
from sevsnp.system.files import write_atomic
from sevsnp.vm_config.config import VmConfig, read_vm_config

ACCEPTED, REFUSED, UNDECIDED = 0, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    return guarded(lambda: _verify(options), json=options.json)


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = make_parser("verify_report", "Verify an SNP attestation report against a VM config, or a measurement.")
    parser.add_argument("--measurement", metavar="HEX,…", help="launch digests to accept, without a VM config")
    parser.add_argument("--ear", metavar="FILE", type=Path, help="write the result also as a signed EAR (JWT)")
    parser.add_argument(
        "--ear-key", metavar="FILE", type=Path, help="your key for the EAR: ECDSA, P-256 or P-384, in PEM"
    )
    parser.add_argument("--min-tcb", metavar="PARTS", help="with --measurement: as MIN_TCB, or any")
    add_sources(parser)
    return parser


def _verify(options: argparse.Namespace) -> int:
    from sevsnp.attestation.verifier import amd_service, appraise_report

    if options.vm_config and (options.measurement or options.min_tcb):
        raise UserError("--measurement and --min-tcb: not with --vm_definition, which states them")
    if (options.ear is None) != (options.ear_key is None):
        raise UserError("--ear and --ear-key: expected both or neither")
    key = None
    if options.ear:  # what is wrong with the key is said before there is a verdict
        from sevsnp.attestation.ear import load_key, make_ear

        key = load_key(options.ear_key)
    config = read_vm_config(options.vm_config) if options.vm_config else None
    evidence = read_evidence(options)
    expected = read_expected(options, config) if config else _expected_alone(options)
    appraisal = appraise_report(evidence, expected, options.at, endorser=endorser(options, amd_service))
    guest = "the guest of this VM config" if config else "a guest with an accepted measurement"
    code = show(appraisal, options, config, f"ACCEPTED: AMD hardware runs {guest}", ACCEPTED)
    if key:
        nonce = _hex(options.nonce, NONCE_SIZE, "--nonce") if options.nonce else None
        write_atomic(options.ear, make_ear(appraisal, key, datetime.now(UTC), nonce) + "\n")
    return code


def make_parser(name: str, description: str, config_required: bool = False) -> argparse.ArgumentParser:
    """A parser with the options that both verifiers have."""
    guest = "--vm_definition FILE" if config_required else "(--vm_definition FILE | --measurement HEX)"
    usage = f"{name} --input FILE {guest}\n       [--report-data HEX | --nonce HEX --host-key FILE] …"
    exits = "exit: 0 accepted, 2 refused, 3 undecided, 64 wrong command line or own file"
    parser = Parser(prog=name, usage=usage, description=description, epilog=exits)
    add_input(parser)
    parser.add_argument("--vm_definition", "--vm-config", metavar="FILE", type=Path, dest="vm_config",
                        required=config_required, help="the VM config of the guest that is expected")  # fmt: skip
    parser.add_argument("--policy", metavar="FILE", type=Path, help="a policy file, or the name of a profile")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--report-data", metavar="HEX", help="the expected REPORT_DATA, 128 digits")
    bound.add_argument("--nonce", metavar="HEX", help="the nonce sent to the guest, with --host-key")
    parser.add_argument("--host-key", metavar="FILE", type=Path, action="append", default=[],
                        help="SSH host keys of the guest (.pub, ssh-keyscan), repeatable")  # fmt: skip
    parser.add_argument(
        "--manifest", metavar="FILE", type=Path, help="a release manifest: what it forbids is never accepted"
    )
    parser.add_argument(
        "--manifest-key", metavar="FILE", type=Path, help="the public key that must have signed the manifest"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the result also as an HTML page")
    return parser


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the options for the report, its certificates, the time of the appraisal, and the form of the result."""
    parser.add_argument("--input", "--report", metavar="FILE", type=Path, required=True, dest="report",
                        help="a report in any form, - for standard input")  # fmt: skip
    parser.add_argument("--certificates", metavar="FILE", type=Path, action="append", default=[],
                        help="PEM, DER or a certificate table, repeatable")  # fmt: skip
    parser.add_argument(
        "--at",
        metavar="TIME",
        type=_time,
        default=datetime.now(UTC),
        help="when certificates must be valid, as 2026-05-31T12:00Z",
    )
    parser.add_argument("--json", action="store_true", help="the result with every check as JSON")


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options for the sources of certificates that the evidence lacks."""
    parser.add_argument("--certs", metavar="DIR", type=Path, help="certificates and revocation lists of your own")
    parser.add_argument("--offline", action="store_true", help="ask no service; use the cache")
    parser.add_argument("--kds", metavar="URL", help="a mirror of AMD's service; it is not trusted")
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, help="time limit of all requests to it together")


def endorser(options: argparse.Namespace, service: Callable[..., Endorser]) -> Endorser:
    """The endorser for the sources that the options name; ``service`` is :func:`.verify.amd_service`."""
    from sevsnp.attestation.sources import Directory

    behind = service(options.kds, options.offline, timeout=options.timeout, say=_say)
    return Directory.read(options.certs, behind, _say) if options.certs else behind


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 3600:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds, more than 0 and at most 3600")
    return found


def read_evidence(options: argparse.Namespace) -> Evidence:
    """The evidence from the files that the command line names.

    What is wrong in a file is in the evidence, for the appraisal to refuse. Raises :class:`UserError` if a file cannot
    be read, or if two have a certificate table.
    """
    if options.report.is_dir():
        found = _read_directory(options.report)
    else:
        found = api.read_evidence(read_file(options.report), name=str(options.report))
    table, certificates = found.certificate_table, list(found.certificates)
    given = ""
    for path in options.certificates:
        its_table, its = read_certificates(read_file(path))
        if its_table and given:
            raise UserError(f"{path}: a second certificate table, after {given}")
        if its_table:
            table, given = its_table, str(path)
        certificates += its
    return replace(found, certificate_table=table, certificates=tuple(certificates))


def _read_directory(path: Path) -> Evidence:
    """The evidence in a copy of configfs-tsm's directory: outblob, and auxblob with the certificate table."""
    if not (path / "outblob").is_file():
        raise UserError(f"{path}: a directory without outblob, expected a report or a copy of configfs-tsm's directory")
    found = api.read_evidence(read_file(path / "outblob"), name=str(path / "outblob"))
    beside = path / "auxblob"
    table = rfc_order(read_file(beside)) if beside.is_file() else b""
    return replace(found, certificate_table=table or found.certificate_table)


def read_expected(options: argparse.Namespace, config: VmConfig) -> Expected:
    """The expected values from the VM config and the policy, and REPORT_DATA from the command line."""
    return Expected.of(config, _report_data(options), options.policy, _never(options))


def _never(options: argparse.Namespace) -> NeverAccepted | None:
    """What a release's signed manifest lists as never to be accepted, if one was given."""
    if not options.manifest and not options.manifest_key:
        return None
    from sevsnp.release.refused import read_refused

    return read_refused(options.manifest, options.manifest_key, ("--manifest", "--manifest-key"))


def _expected_alone(options: argparse.Namespace) -> Expected:
    """The expected values without a VM config: the policy's, and the measurements from the command line."""
    from sevsnp.attestation.policy import make_policy, read_policy
    from sevsnp.attestation.profiles import PROFILES

    named = str(options.policy or "default")
    document: dict[str, Any] = {"profile": named} if named in PROFILES else read_policy(options.policy)
    if options.measurement:
        document["measurement"] = options.measurement.split(",")
    elif "measurement" not in document:
        raise UserError(
            "found no expected guest: neither --measurement nor --vm_definition",
            "give its launch digest or its VM config: --measurement HEX, or --vm_definition FILE",
        )
    if options.min_tcb:
        document["minimum_tcb"] = _minimum_tcb(options.min_tcb)
    return Expected(make_policy(document, Path(named), None, _report_data(options)), never=_never(options))


def _minimum_tcb(text: str) -> dict[str, Any] | list[dict[str, Any]]:
    from sevsnp.settings.values import minimum_tcb, parse_tcb
    from sevsnp.vm_config.floors import floors_of_setting

    try:
        if minimum_tcb(text) == "any":
            return {"any": "the command line accepts any TCB version (--min-tcb any)"}
        if floors := floors_of_setting(text):
            return [floor.document() for floor in floors]
        return {name: value for name, value in parse_tcb(text).items() if name != "fmc" or "fmc:" in text}
    except ValueError:
        raise UserError(f"--min-tcb: found {text!a}, expected bootloader:3,tee:0,snp:8,microcode:115, or any") from None


def _report_data(options: argparse.Namespace) -> bytes | None:
    if options.host_key and options.nonce is None:
        raise UserError("--host-key: goes with --nonce")
    if options.report_data is not None:
        return _hex(options.report_data, SIZE, "--report-data")
    if options.nonce is None:
        return None  # the policy then states it
    keys = []
    for path in options.host_key:
        keys += read_host_keys(read_file(path), str(path))
    try:
        return ssh_report_data(_hex(options.nonce, NONCE_SIZE, "--nonce"), keys)
    except ValueError as error:
        raise UserError(str(error), "give every host key of the guest: --host-key FILE") from error


def show(
    appraisal: Appraisal, options: argparse.Namespace, config: VmConfig | None, headline: str, accepted: int
) -> int:
    """Print the result (JSON, or a line for each check and then the verdict), write the page, return the exit code."""
    document = appraisal.to_json()
    if appraisal.trust_domain != "amd":
        document["accepted_as_emulated"] = appraisal.accepted
    if options.json:
        import json

        print(json.dumps(document, indent=2))
    else:
        from sevsnp.attestation.terminal import print_appraisal

        print_appraisal(appraisal, headline)
    # Write the page after the verdict, so that the verdict is printed even if the page cannot be written.
    if options.html:
        from sevsnp.attestation.page import write_page

        write_page(options.html, appraisal, config)
    return {"accepted": accepted, "refused": REFUSED, "undecided": UNDECIDED}[appraisal.decision]


def read_file(path: Path) -> bytes:
    """A file, or standard input for "-". Raises :class:`UserError` if it cannot be read.

    Of a file of more than 1 MiB, this is one byte more than that: whoever reads it then sees that it is too long.
    """
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(MAX_INPUT + 1)
        with path.open("rb") as stream:
            return stream.read(MAX_INPUT + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a time as 2026-05-31T12:00Z") from None


def _hex(text: str, size: int, option: str) -> bytes:
    if data := of_digest(text, size):
        return data
    raise UserError(f"{option}: expected {2 * size} hex digits ({size} bytes), or the bytes in base64")


if __name__ == "__main__":
    sys.exit(main())
