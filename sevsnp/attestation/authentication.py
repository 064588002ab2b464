# SPDX-License-Identifier: Apache-2.0
"""Is it real: from raw evidence to a report that a pinned root vouches for, or the check at which that ends."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

from cryptography import x509

from sevsnp.attestation import chain as chains
from sevsnp.attestation import report as snp
from sevsnp.attestation.certificates import certificates_of_table, crl_of_table, load_certificates
from sevsnp.attestation.chain import Chain, TrustRoot
from sevsnp.attestation.checklist import Checklist, Unreachable
from sevsnp.attestation.extensions import LeafExtensions, Signer, named_product, read_extensions
from sevsnp.attestation.outcome import Reason
from sevsnp.attestation.report import Report, SigningKey
from sevsnp.attestation.revocation import CrlError, is_revoked, load_crl
from sevsnp.attestation.rules import Anything, Rule, show
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb

Certificate = x509.Certificate


@dataclass(frozen=True)
class Evidence:
    """What a guest hands over: the report, the host's certificate table, and further PEM or DER certificates.

    All of it is untrusted; certificates are transport only.
    """

    report: bytes
    certificate_table: bytes = b""
    certificates: tuple[bytes, ...] = ()


class Endorser(Protocol):
    """Where certificates come from that the evidence does not bring along. What it says is verified like the rest."""

    def known(self) -> list[Certificate]:
        """Certificates at hand, whatever they are of."""

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> Certificate:
        """The VCEK of a chip (64 bytes, as in reports) for a reported TCB. Raises :class:`Unreachable`."""

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[Certificate]:
        """ASK or ASVK, and ARK. Raises :class:`Unreachable`."""

    def crl(self, product: Product, signer: Signer, ark: Certificate, now: datetime) -> x509.CertificateRevocationList:
        """The list in force. Raises :class:`Unreachable`."""


class Nobody:
    """No endorser: the evidence has to bring all of its certificates."""

    def known(self) -> list[Certificate]:
        return []

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> Certificate:
        raise Unreachable("the evidence has no VCEK, and none was looked for elsewhere")

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[Certificate]:
        raise Unreachable("the evidence lacks its issuer's certificate, and none was looked for elsewhere")

    def crl(self, product: Product, signer: Signer, ark: Certificate, now: datetime) -> x509.CertificateRevocationList:
        raise Unreachable("none was looked for")


class Authentic(NamedTuple):
    """A report with the chain that vouches for it."""

    report: Report
    chain: Chain
    leaf: LeafExtensions
    signer: Signer


def read_report(log: Checklist, evidence: Evidence, hint: Product | None) -> tuple[Report, list[Certificate]]:
    """The report, and the certificates that came with it. ``hint`` is the product of a report that cannot say."""
    found = None if hint else _named(evidence)
    report = log.attempt(Reason.REPORT_FORMAT, lambda: snp.parse_report(evidence.report, hint or found or "Milan"))
    log.passed(Reason.REPORT_FORMAT, f"version {report.version}, every reserved byte zero")
    return report, log.attempt(Reason.CERTIFICATES, lambda: _load(evidence))


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
    """Verify chain, signature and what the chain is for. Raises Stop, with the reason in ``log``."""
    signer: Signer = "VLEK" if report.signing_key == SigningKey.VLEK else "VCEK"
    known = endorser.known()
    chain = None if known else _whole_chain(evidence.certificate_table, evidence.certificates, root)
    # What brings exactly its chain needs no choosing; if it does not fit, another VCEK is looked for as always.
    if not chain or not chains.verify_signature(chain.leaf, report.signature_r, report.signature_s, report.signed):
        candidates = [*sent, *known]
        leaf = _leaf(log, report, signer, candidates, now, endorser)
        chain = _chain(log, report, signer, leaf, candidates, root, now, endorser)
    # The root comes first: evidence of another trust domain is refused for that and for nothing that it says.
    log.attempt(Reason.CERTIFICATES, lambda: chains.verify_chain(chain, root, now, signer))
    log.passed(Reason.UNKNOWN_ROOT, f"ARK is a pinned root of {root.domain}")
    log.passed(Reason.CERTIFICATES, f"ARK, {'ASVK' if signer == 'VLEK' else 'ASK'} and {signer} are signed, named and "
                                    "constrained as they must be")  # fmt: skip
    log.passed(Reason.VALIDITY, f"all three are valid at {now:%Y-%m-%dT%H:%M:%SZ}")
    if not chains.verify_signature(chain.leaf, report.signature_r, report.signature_s, report.signed):
        log.stop(Reason.SIGNATURE, f"the report is not signed by the {signer}")
    log.passed(Reason.SIGNATURE, "ECDSA P-384 with SHA-384 over the raw report")
    extensions = log.attempt(Reason.CERTIFICATES, lambda: read_extensions(chain.leaf, report.product))
    _check_identity(log, report, chain, extensions, root)
    _check_revocation(log, report, chain, signer, evidence, root, now, endorser, revocation)
    return Authentic(report, chain, extensions, signer)


def _named(evidence: Evidence) -> Product | None:
    try:
        found = chains.leaves(_load(evidence))
    except UserError:
        return None
    return named_product(found[0]) if found else None


def _load(evidence: Evidence) -> list[Certificate]:
    found = certificates_of_table(evidence.certificate_table)
    return found + [one for data in evidence.certificates for one in load_certificates(data)]


@lru_cache(maxsize=64)
def _whole_chain(table: bytes, certificates: tuple[bytes, ...], root: TrustRoot) -> Chain | None:
    """The chain in evidence that has one leaf and its issuers, else None; it is remembered for other reports."""
    found = _load(Evidence(b"", table, certificates))
    leaf = chains.leaves(found)
    ask = chains.issuer_among(leaf[0], found, root) if len(leaf) == 1 else None
    ark = chains.issuer_among(ask, found, root) if ask else None
    return Chain(leaf[0], ask, ark) if ask and ark else None


def _leaf(
    log: Checklist, report: Report, signer: Signer, candidates: list[Certificate], now: datetime, endorser: Endorser
) -> Certificate:
    """The certificate whose key signed the report; where none did, the endorser's, or one to fail with."""
    found = chains.leaves(candidates)

    def fits(one: Certificate) -> bool:
        return chains.verify_signature(one, report.signature_r, report.signature_s, report.signed)

    # With one candidate there is nothing to choose, and the signature is verified once, later.
    fitting = [one for one in found if fits(one)] if len(found) > 1 else found
    # AMD certifies the same key again with new dates.
    fitting.sort(key=lambda one: not chains.is_valid_at(one, now))
    if fitting and (len(found) > 1 or fits(fitting[0])):
        return fitting[0]
    if signer == "VCEK":
        try:
            return endorser.leaf(report.product, report.chip_id, report.reported_tcb, now)
        except Unreachable as error:
            problem = str(error)
    else:
        problem = "the evidence has no VLEK, and nobody but the cloud provider hands it out"
    if not found:
        log.give_up(Reason.CERTIFICATES, problem)
    return found[0]


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


def _check_identity(log: Checklist, report: Report, chain: Chain, leaf: LeafExtensions, root: TrustRoot) -> None:
    """Whose report it is: the product, key, chip and TCB version that the leaf is certified for."""
    certified = chains.root_product(chain, root) or report.product
    log.require(
        Reason.PRODUCT,
        report.product == certified == leaf.product,
        expected="one product in the report, its certificate and its root",
        found=f"report {report.product}, certificate {leaf.product_name}, root {certified}",
    )
    log.stop_on_failure()  # the TCB layout depends on the product
    log.require(
        Reason.SIGNING_KEY,
        report.signing_key.name == leaf.signer,
        expected=f"{leaf.signer}, whose certificate it is",
        found=report.signing_key.name,
    )
    problem = _chip_id_problem(report, leaf, root)
    # A platform that masks its chip id, and one that signs with a VLEK, has zero there.
    certified_chip = bytes(64) if leaf.hwid is None else leaf.hwid.ljust(64, b"\0")
    log.require(Reason.CHIP_ID, not problem, expected=show(certified_chip), found=show(report.chip_id), message=problem)
    log.require(
        Reason.TCB, leaf.tcb == report.reported_tcb,
        expected=f"REPORTED_TCB {show(leaf.tcb)}, for which the {leaf.signer} is", found=show(report.reported_tcb),
    )  # fmt: skip


def _chip_id_problem(report: Report, leaf: LeafExtensions, root: TrustRoot) -> str:
    if leaf.hwid is None:
        return "a VLEK's report names a chip" if any(report.chip_id) else ""
    if not any(report.chip_id):
        return "CHIP_ID is masked (all zero)"
    if report.chip_id != leaf.hwid.ljust(64, b"\0"):  # Turin's id has 8 bytes; the report pads it
        return "the VCEK is another chip's"
    # Depth only: what keeps emulated evidence out is the trust root.
    if root.domain == "amd" and report.chip_id.startswith(snp.EMULATED_CHIP_ID[:8]):
        return "CHIP_ID is the software secure processor's"
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
    try:
        crl = _crl(report, chain, signer, evidence, now, endorser)
    except Unreachable as error:
        if isinstance(rule, Anything):
            log.not_compared(Reason.REVOCATION, f"{rule.reason}; {error}", "no revocation list")
        else:
            log.pending(Reason.REVOCATION, f"the policy demands a revocation list: {error}")
        return
    until = f"{crl.next_update_utc:%F}" if crl.next_update_utc else ""
    log.require(
        Reason.REVOCATION,
        not is_revoked(crl, chain),
        expected=f"not on the ARK's list, in force until {until}",
        found=f"serial number {chain.ask.serial_number:#x}",
        message="" if not is_revoked(crl, chain) else "AMD has revoked this ASK or ASVK",
    )


def _crl(
    report: Report, chain: Chain, signer: Signer, evidence: Evidence, now: datetime, endorser: Endorser
) -> x509.CertificateRevocationList:
    """The endorser's list; the host's only where there is none, for the host would choose an old one."""
    try:
        return endorser.crl(report.product, signer, chain.ark, now)
    except Unreachable as error:
        sent = crl_of_table(evidence.certificate_table)
        if sent is None:
            raise
        try:
            return load_crl(sent, chain.ark, now)
        except CrlError as problem:
            raise Unreachable(f"{error}; the host's revocation list: {problem}") from error
