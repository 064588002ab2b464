# SPDX-License-Identifier: Apache-2.0
"""Authenticate evidence: from raw evidence to a report that a pinned root vouches for, or to the check that failed."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

from cryptography import x509

from sevsnp.attestation import chain as chains
from sevsnp.attestation import report as snp
from sevsnp.attestation.certificates import REMEMBERED_BYTES, certificates_of_table, crl_of_table, load_certificates
from sevsnp.attestation.chain import Chain, TrustRoot
from sevsnp.attestation.checklist import Checklist, Unreachable
from sevsnp.attestation.extensions import ExtensionError, LeafExtensions, Signer, named_product, read_extensions
from sevsnp.attestation.hcl import Claims
from sevsnp.attestation.outcome import Reason
from sevsnp.attestation.product import find_reading, readings, report_signed_by
from sevsnp.attestation.report import Report, SigningKey
from sevsnp.attestation.revocation import CrlError, Lists, is_revoked, newest_in_force, not_in_force, read_crl
from sevsnp.attestation.rules import Anything, Rule, Text
from sevsnp.vm_config.config import Product, Tcb

Certificate = x509.Certificate
_VERSION_2 = b"\2\0\0\0"  # the first field, little-endian


@dataclass(frozen=True)
class Evidence:
    """What a guest sends: the report, the host's certificate table, and further PEM or DER certificates.

    All of it is untrusted. The verifier verifies the certificates itself. ``claims`` are those of an HCL report.
    ``problem`` says why there is no report; ``notes`` say what of the evidence was not used.
    """

    report: bytes
    certificate_table: bytes = b""
    certificates: tuple[bytes, ...] = ()
    claims: Claims | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()


class Endorser(Protocol):
    """A source of the certificates that the evidence lacks. The verifier verifies them like all other certificates."""

    def known(self) -> list[Certificate]:
        """All certificates that the endorser has at hand, for any chip or authority."""

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> Certificate:
        """The VCEK of a chip (64 bytes, as in reports) for a reported TCB. Raises :class:`Unreachable`."""

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[Certificate]:
        """ASK or ASVK, and ARK. Raises :class:`Unreachable`."""

    def revocation_lists(
        self, product: Product, signer: Signer, ark: Certificate, now: datetime, demanded: bool
    ) -> Lists:
        """The genuine revocation lists of ``ark``. If none is ``demanded``, the endorser does not wait long for one."""


class Nobody:
    """No endorser: the evidence must contain all of its certificates."""

    def known(self) -> list[Certificate]:
        return []

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> Certificate:
        raise Unreachable("the evidence has no VCEK, and no other source was asked for it")

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[Certificate]:
        raise Unreachable("the evidence has no certificate of its issuer, and no other source was asked for it")

    def revocation_lists(
        self, product: Product, signer: Signer, ark: Certificate, now: datetime, demanded: bool
    ) -> Lists:
        return Lists(problem="no source was asked for a revocation list")


class Authentic(NamedTuple):
    """A report with the chain that vouches for it."""

    report: Report
    chain: Chain
    leaf: LeafExtensions
    signer: Signer


def read_report(
    log: Checklist, evidence: Evidence, hint: Product | None, now: datetime, endorser: Endorser
) -> tuple[Report, list[Certificate]]:
    """The report, and the certificates in the evidence.

    ``hint`` is the product of a report of version 2 that no certificate names. Raises Stop; ``log`` has the reason.
    """
    if evidence.problem:
        log.stop(Reason.REPORT_FORMAT, evidence.problem)
    found: dict[Product, Report] = {}
    if evidence.report[:4] == _VERSION_2:
        found = log.attempt(Reason.REPORT_FORMAT, lambda: readings(evidence.report))
        report = next(iter(found.values()))
    else:
        report = log.attempt(Reason.REPORT_FORMAT, lambda: snp.parse_report(evidence.report, "Milan"))
    log.passed(Reason.REPORT_FORMAT, f"version {report.version}, every reserved byte zero")
    sent = [*log.attempt(Reason.CERTIFICATES, lambda: _certificates(evidence))]
    return find_reading(log, found, sent, endorser.known(), hint, now, endorser) if found else report, sent


def authenticate(
    log: Checklist,
    report: Report,
    sent: list[Certificate],
    evidence: Evidence,
    root: TrustRoot,
    now: datetime,
    endorser: Endorser,
    revocation: Rule,
) -> Authentic:
    """Verify the chain, the signature, and the chip and TCB that the leaf certifies. Raises Stop; ``log`` has why."""
    signer: Signer = "VLEK" if report.signing_key == SigningKey.VLEK else "VCEK"
    known = endorser.known()
    whole = _whole_chain if _remembered(evidence) else _whole_chain.__wrapped__
    chain = None if known else whole(evidence.certificate_table, evidence.certificates, root)
    # Evidence with exactly one chain needs no choice. If that chain does not fit, look for another VCEK as usual.
    signed = chain is not None and report_signed_by(chain.leaf, report)
    if chain is None or not signed:
        leaf = _leaf(log, report, signer, sent, known, now, endorser)
        chain = _chain(log, report, signer, leaf, [*sent, *known], root, now, endorser)
        signed = report_signed_by(chain.leaf, report)
    # verify_chain checks the root first, so evidence of another trust domain is refused for its root alone.
    log.attempt(Reason.CERTIFICATES, lambda: chains.verify_chain(chain, root, now, signer))
    log.passed(Reason.UNKNOWN_ROOT, f"ARK is a pinned root of {root.domain}")
    log.passed(Reason.CERTIFICATES, f"ARK, {'ASVK' if signer == 'VLEK' else 'ASK'} and {signer} are signed, named and "
                                    "constrained as they must be")  # fmt: skip
    log.passed(Reason.VALIDITY, Text("all three are valid at {}", (now,)))
    if not signed:
        log.stop(Reason.SIGNATURE, f"the report is not signed by the {signer}")
    log.passed(Reason.SIGNATURE, "ECDSA P-384 with SHA-384 over the raw report")
    extensions = log.attempt(Reason.CERTIFICATES, lambda: _extensions(chain, report.product))
    _check_identity(log, report, chain, extensions, root)
    _check_revocation(log, report, chain, signer, evidence, root, now, endorser, revocation)
    return Authentic(report, chain, extensions, signer)


def _remembered(evidence: Evidence) -> bool:
    return len(evidence.certificate_table) + sum(map(len, evidence.certificates)) <= REMEMBERED_BYTES


def _certificates(evidence: Evidence) -> tuple[Certificate, ...]:
    load = _load if _remembered(evidence) else _load.__wrapped__
    return load(evidence.certificate_table, evidence.certificates)


@lru_cache(maxsize=1024)
def _load(table: bytes, certificates: tuple[bytes, ...]) -> tuple[Certificate, ...]:
    single = (one for data in certificates for one in load_certificates(data))
    return (*certificates_of_table(table), *single)


@lru_cache(maxsize=1024)
def _whole_chain(table: bytes, certificates: tuple[bytes, ...], root: TrustRoot) -> Chain | None:
    """The chain of evidence that has exactly one leaf and its issuers, else None; cached for other reports."""
    found = _certificates(Evidence(b"", table, certificates))
    leaf = chains.leaves(found)
    ask = chains.issuer_among(leaf[0], found, root) if len(leaf) == 1 else None
    ark = chains.issuer_among(ask, found, root) if ask else None
    return Chain(leaf[0], ask, ark) if ask and ark else None


def _leaf(
    log: Checklist, report: Report, signer: Signer, sent: list[Certificate], known: list[Certificate], now: datetime,
    endorser: Endorser,
) -> Certificate:  # fmt: skip
    """The certificate whose key signed the report; else the endorser's, or a candidate whose check then fails."""
    own, others = chains.leaves(sent), chains.leaves(known)
    found = list(dict.fromkeys([*own, *others]))
    certified = [one for one in others if _certifies(one, report, signer)]
    # AMD certifies the same key again with new dates, so prefer a certificate that is valid now.
    found.sort(key=lambda one: (one not in certified, not chains.is_valid_at(one, now)))
    for one in found:
        if report_signed_by(one, report):
            return one
    if signer == "VCEK":
        try:
            return endorser.leaf(report.product, report.chip_id, report.reported_tcb, now)
        except Unreachable as error:
            problem = str(error)
    else:
        problem = "the evidence has no VLEK, and only the cloud provider can supply it"
    # The evidence's own certificate belongs to the report, and so does one for its chip and TCB version. Other chips'
    # certificates, such as those of a whole directory, say nothing about the report.
    if not own and not certified:
        others_say = f"; none of the {len(others)} other certificates fits the signature" if others else ""
        log.give_up(Reason.CERTIFICATES, problem + others_say)
    return (own or certified)[0]


def _certifies(leaf: Certificate, report: Report, signer: Signer) -> bool:
    """Whether a leaf says that it is for the report's product, chip and TCB version. Its signature is not verified."""
    if named_product(leaf) != report.product:
        return False
    try:
        says = read_extensions(leaf, report.product)
    except ExtensionError:
        return False
    same_chip = says.hwid is None or says.hwid.ljust(64, b"\0") == report.chip_id
    return says.signer == signer == "VCEK" and same_chip and says.tcb == report.reported_tcb


def _chain(
    log: Checklist,
    report: Report,
    signer: Signer,
    leaf: Certificate,
    candidates: list[Certificate],
    root: TrustRoot,
    now: datetime,
    endorser: Endorser,
) -> Chain:
    ask = chains.issuer_among(leaf, candidates, root)
    ark = chains.issuer_among(ask, candidates, root) if ask else None
    if not ask or not ark:
        try:
            candidates = [*candidates, *endorser.issuers(report.product, signer, now)]
        except Unreachable as error:
            log.give_up(Reason.CERTIFICATES, str(error))
        ask = chains.issuer_among(leaf, candidates, root)
        ark = chains.issuer_among(ask, candidates, root) if ask else None
    if not ask or not ark:
        log.stop(Reason.CERTIFICATES, f"none of the certificates issued the {'ASK' if ask else signer}")
    return Chain(leaf, ask, ark)


@lru_cache(maxsize=1024)
def _extensions(chain: Chain, product: Product) -> LeafExtensions:
    """The leaf's extensions. A chain keeps its hash; a certificate is hashed anew each time that it is looked up."""
    return read_extensions(chain.leaf, product)


def _check_identity(log: Checklist, report: Report, chain: Chain, leaf: LeafExtensions, root: TrustRoot) -> None:
    """Compare the report with its leaf: the product, key, chip and TCB version that the leaf certifies."""
    certified = chains.root_product(chain, root) or report.product
    log.require(
        Reason.PRODUCT,
        report.product == certified == leaf.product,
        expected="one product in the report, its certificate and its root",
        found=Text("report {}, certificate {}, root {}", (report.product, leaf.product_name, certified)),
    )
    log.stop_on_failure()  # the TCB layout depends on the product
    log.require(
        Reason.SIGNING_KEY,
        report.signing_key.name == leaf.signer,
        expected=f"{leaf.signer}, as its certificate says",
        found=report.signing_key.name,
    )
    problem = _chip_id_problem(report, leaf, root)
    # The chip id is zero if the platform masks it or signs with a VLEK.
    certified_chip = bytes(64) if leaf.hwid is None else leaf.hwid.ljust(64, b"\0")
    log.require(Reason.CHIP_ID, not problem, expected=certified_chip, found=report.chip_id, message=problem)
    log.require(
        Reason.TCB, leaf.tcb == report.reported_tcb,
        expected=Text("REPORTED_TCB {}, as the {} says", (leaf.tcb, leaf.signer)), found=report.reported_tcb,
    )  # fmt: skip


def _chip_id_problem(report: Report, leaf: LeafExtensions, root: TrustRoot) -> str:
    if leaf.hwid is None:
        return "found a chip id in a report that a VLEK signed" if any(report.chip_id) else ""
    if not any(report.chip_id):
        return "CHIP_ID is masked (all zero)"
    if report.chip_id != leaf.hwid.ljust(64, b"\0"):  # Turin's id has 8 bytes; the report pads it
        return "the VCEK belongs to another chip"
    # Defence in depth: the trust root already refuses emulated evidence.
    if root.domain == "amd" and report.chip_id.startswith(snp.EMULATED_CHIP_ID[:8]):
        return "CHIP_ID is that of the software secure processor"
    return ""


def _check_revocation(
    log: Checklist,
    report: Report,
    chain: Chain,
    signer: Signer,
    evidence: Evidence,
    root: TrustRoot,
    now: datetime,
    endorser: Endorser,
    rule: Rule,
) -> None:
    if not root.vendor:
        log.not_compared(Reason.REVOCATION, "this root publishes no revocation list")
        return
    demanded = not isinstance(rule, Anything)
    lists = endorser.revocation_lists(report.product, signer, chain.ark, now, demanded)
    # A host may send an old list, so its list counts as a proof of good standing only if there is no other.
    sent, problem = _sent_list(evidence, chain.ark)
    if any(is_revoked(one, chain) for one in (*lists.found, *sent)):
        log.failed(
            Reason.REVOCATION,
            "AMD has revoked this ASK or ASVK",
            expected="on no revocation list of the ARK, in force or expired",
            found=f"serial number {chain.ask.serial_number:#x}",
        )
        return
    current = newest_in_force(lists.found, now)
    if current is None:  # an empty list is false
        current = newest_in_force(sent, now)
    if current is not None:
        log.passed(
            Reason.REVOCATION,
            f"serial number {chain.ask.serial_number:#x}",
            f"not on the ARK's list, in force until {current.next_update_utc:%F}",
        )
        return
    problem = problem or next((not_in_force(one, now) for one in sent), "")
    problem = f"{lists.problem}; the host's revocation list: {problem}" if problem else lists.problem
    if isinstance(rule, Anything):
        log.not_compared(Reason.REVOCATION, f"{rule.reason}; {problem}", "no revocation list")
    else:
        log.pending(Reason.REVOCATION, f"the policy demands a revocation list: {problem}")


def _sent_list(evidence: Evidence, ark: Certificate) -> tuple[tuple[x509.CertificateRevocationList, ...], str]:
    """The genuine revocation list in the host's certificate table, in force or not; and what is wrong with it."""
    sent = crl_of_table(evidence.certificate_table)
    if sent is None:
        return (), ""
    try:
        return (read_crl(sent, ark),), ""
    except CrlError as error:
        return (), str(error)
