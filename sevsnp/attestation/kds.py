# SPDX-License-Identifier: Apache-2.0
"""A client of AMD's key distribution service with a cache: VCEKs, ASK and ARK, revocation lists; none is trusted.

Source: AMD 57230 (KDS interface). The client verifies every answer of the network and of the cache up to a pinned root
before it returns or caches the answer. So a hostile server or a poisoned cache can only withhold data. A request has a
total time limit and a size limit. After a 429 the client waits as long as the server asks, but also up to a limit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cryptography import x509

from sevsnp.attestation import chain as chains
from sevsnp.attestation.certificates import der, load_certificates
from sevsnp.attestation.chain import Chain, ChainError, TrustRoot
from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.extensions import ExtensionError, Signer, read_extensions
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.revocation import MAX_CRL, CrlError, load_crl
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb

if TYPE_CHECKING:
    import requests

Thing = TypeVar("Thing")

KDS = "https://kdsintf.amd.com"
_MAX_CERTIFICATE = 64 << 10
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 10.0  # seconds; the service answers the same request only once in ten seconds


class Limits(NamedTuple):
    """Limits in seconds: ``request`` for one whole answer, however slow; ``patience`` for all waits after 429s."""

    request: float = 15.0
    patience: float = 60.0


@dataclass(frozen=True, eq=False)
class Kds:
    """AMD's service at ``base``, or a mirror of it, with a cache; ``offline`` asks only the cache.

    ``root`` is the trust root under which answers are verified before they are cached. The verifier has its own root.
    """

    root: TrustRoot
    cache: Cache
    base: str = KDS
    offline: bool = False
    limits: Limits = field(default_factory=Limits)
    sleep: Callable[[float], None] = time.sleep

    def known(self) -> list[x509.Certificate]:
        """Always empty: the cache can only be asked for a specific certificate."""
        return []

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> x509.Certificate:
        """The VCEK of a chip for a reported TCB, issued by the pinned root's ASK and valid at ``now``."""
        if not any(chip_id):
            raise Unreachable("CHIP_ID is masked (all zero): no service can be asked for its VCEK")
        hwid = chip_id[:8] if product == "Turin" else chip_id
        authorities = self.issuers(product, "VCEK", now)

        def check(data: bytes) -> x509.Certificate:
            (found,) = _certificates(data, 1)
            try:
                chains.verify_chain(Chain(found, *authorities), self.root, now)
                says = read_extensions(found, product)
            except (ChainError, ExtensionError) as error:
                raise Unreachable(f"the served VCEK is not valid: {error}") from error
            if says.hwid != hwid or says.tcb != tcb or says.product != product:
                raise Unreachable("the VCEK of another chip or TCB version")
            return found

        spls = [("blSPL", tcb.bootloader), ("teeSPL", tcb.tee), ("snpSPL", tcb.snp), ("ucodeSPL", tcb.microcode)]
        if product == "Turin":
            spls.insert(0, ("fmcSPL", tcb.fmc or 0))
        query = "&".join(f"{name}={level:02d}" for name, level in spls)
        name = f"vcek-{product}-{hwid.hex()}-{'-'.join(f'{name}{level:02d}' for name, level in spls)}.der"
        return self._have(name, f"/vcek/v1/{product}/{hwid.hex()}?{query}", check, der, _MAX_CERTIFICATE)

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[x509.Certificate]:
        """ASK or ASVK, and the pinned ARK that issued it, both valid at ``now``."""

        def check(data: bytes) -> list[x509.Certificate]:
            found = _certificates(data, 2)
            ark = next((one for one in found if self.root.is_pinned(one)), None)
            ask = next((one for one in found if one != ark), None)
            if ark is None or ask is None:
                raise Unreachable("ASK and ARK, but not AMD's")
            if problem := chains.authorities_problem(ask, ark, self.root, product, signer, now):
                raise Unreachable(f"ASK and ARK, but not as they must be: {problem}")
            return [ask, ark]

        kind = signer.lower()
        return self._have(
            f"{kind}-{product}.pem", f"/{kind}/v1/{product}/cert_chain", check, chains.pem, _MAX_CERTIFICATE
        )

    def crl(
        self, product: Product, signer: Signer, ark: x509.Certificate, now: datetime
    ) -> x509.CertificateRevocationList:
        """The revocation list that ``ark`` signed; a cached list is requested again after a day."""

        def check(data: bytes) -> x509.CertificateRevocationList:
            try:
                return load_crl(data, ark, now)
            except CrlError as error:
                raise Unreachable(f"a revocation list: {error}") from error

        def encode(crl: x509.CertificateRevocationList) -> bytes:
            from cryptography.hazmat.primitives.serialization import Encoding

            return crl.public_bytes(Encoding.DER)

        name = f"{signer.lower()}-{product}.crl"
        return self._have(name, f"/{signer.lower()}/v1/{product}/crl", check, encode, MAX_CRL, fresh=86400.0)

    def _have(
        self,
        name: str,
        path: str,
        check: Callable[[bytes], Thing],
        encode: Callable[[Thing], bytes],
        limit: int,
        fresh: float | None = None,
    ) -> Thing:
        """Take an object from the cache, else from the service; ``check`` raises Unreachable for a wrong object."""
        kept, age = self._kept(name, check)
        if kept is not None and (self.offline or fresh is None or age < fresh):
            return kept
        if self.offline:
            raise Unreachable(f"offline, and {name} is not in the cache {self.cache.directory}")
        try:
            found = check(self._get(path, limit))
        except Unreachable as error:
            if kept is not None:  # the cached object is still valid
                return kept
            raise Unreachable(f"{self.base}{path}: {error}") from error
        self.cache.keep(name, encode(found))
        return found

    def _kept(self, name: str, check: Callable[[bytes], Thing]) -> tuple[Thing | None, float]:
        data, age = self.cache.find(name)
        try:
            return (check(data), age) if data else (None, 0.0)
        except Unreachable:
            return None, 0.0  # expired or damaged: the next answer replaces it

    def _get(self, path: str, limit: int) -> bytes:
        """The body of an answer. Raises Unreachable."""
        left, wait = self.limits.patience, _FIRST_WAIT
        while True:
            status, asked, body = self._once(path, limit)
            if status == 200:
                return body
            if status == 404:
                raise Unreachable("answers 404: it knows no such chip or TCB version")
            if status not in (429, 500, 502, 503, 504):
                raise Unreachable(f"answers {status}")
            wait = min(max(asked, wait), _LONGEST_WAIT)
            if wait > left:
                raise Unreachable(f"answers {status} for more than {self.limits.patience:.0f} s")
            self.sleep(wait)
            left, wait = left - wait, wait * 2

    def _once(self, path: str, limit: int) -> tuple[int, float, bytes]:
        import requests
        import urllib3

        from sevsnp.system.transfers import Watch, WatchedAdapter

        with Watch(self.limits.request) as watch, requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, WatchedAdapter())
            try:
                # The service sends no redirects; following one could only lead the owner's machine to another server.
                answer = session.get(
                    self.base.rstrip("/") + path, stream=True, timeout=self.limits.request, allow_redirects=False
                )
                body = answer.raw.read(limit + 1, decode_content=True) if answer.status_code == 200 else b""
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                problem = f"no answer in {self.limits.request:.0f} s" if watch.expired else type(error).__name__
                raise Unreachable(problem) from error
            if watch.expired:
                raise Unreachable(f"no answer in {self.limits.request:.0f} s")
            if len(body) > limit:
                raise Unreachable(f"more than {limit} bytes")
            return answer.status_code, _retry_after(answer), body


def _retry_after(answer: "requests.Response") -> float:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "")))
    except ValueError:
        return 0.0


def _certificates(data: bytes, number: int) -> list[x509.Certificate]:
    try:
        found = load_certificates(data)
    except UserError as error:
        raise Unreachable(error.message) from error
    if len(found) != number:
        raise Unreachable(f"{len(found)} certificates, expected {number}")
    return found
