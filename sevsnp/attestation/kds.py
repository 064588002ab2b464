# SPDX-License-Identifier: Apache-2.0
"""AMD's key distribution service with a cache: VCEKs, ASK and ARK, revocation lists; none of them is trusted.

Source: AMD 57230 (KDS interface). Every answer of the network and of the cache is verified up to a pinned root before
it is returned or cached. So a hostile server or a poisoned cache can only withhold data.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from cryptography import x509

from sevsnp.attestation import chain as chains
from sevsnp.attestation.certificates import der, load_certificates
from sevsnp.attestation.chain import Chain, ChainError, TrustRoot
from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.extensions import ExtensionError, Signer, read_extensions
from sevsnp.attestation.kds_cache import Cache, Failures
from sevsnp.attestation.kds_http import Client, Limits
from sevsnp.attestation.revocation import MAX_CRL, CrlError, Lists, newest_in_force, not_in_force, read_crl
from sevsnp.errors import UserError
from sevsnp.system import progress
from sevsnp.system.logins import without_login
from sevsnp.vm_config.config import Product, Tcb

Thing = TypeVar("Thing")

KDS = "https://kdsintf.amd.com"
_MAX_CERTIFICATE = 64 << 10
_DAY = 86400.0


@dataclass(eq=False)
class Kds:
    """AMD's service at ``base``, or a mirror of it, with a cache; ``offline`` asks only the cache.

    ``root`` is the trust root under which answers are verified before they are cached. The verifier has its own root.
    ``say`` is told of each request before it is made.
    """

    root: TrustRoot
    cache: Cache
    base: str = KDS
    offline: bool = False
    limits: Limits = field(default_factory=Limits)
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = progress.step

    def __post_init__(self) -> None:
        self._client = Client(self.base, self.sleep, self.say)
        self._shown = without_login(self.base)
        self._failures = Failures(self.cache, self._shown)

    def known(self) -> list[x509.Certificate]:
        """Always empty: the cache can only be asked for a specific certificate."""
        return []

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> x509.Certificate:
        """The VCEK of a chip for a reported TCB, issued by the pinned root's ASK and valid at ``now``."""
        if not any(chip_id):
            raise Unreachable("CHIP_ID is masked (all zero): no service can be asked for its VCEK")
        hwid = chip_id[:8] if product == "Turin" else chip_id
        spls = [("blSPL", tcb.bootloader), ("teeSPL", tcb.tee), ("snpSPL", tcb.snp), ("ucodeSPL", tcb.microcode)]
        if product == "Turin":
            spls.insert(0, ("fmcSPL", tcb.fmc or 0))
        query = "&".join(f"{name}={level:02d}" for name, level in spls)
        name = f"vcek-{product}-{hwid.hex()}-{'-'.join(f'{name}{level:02d}' for name, level in spls)}.der"
        what = f"the VCEK of a {product} chip"
        # The certificate that is named as missing is this one, not the authorities that would verify it.
        if self.offline and not self.cache.find(name)[0]:
            raise Unreachable(self._absent(what, name))
        authorities = self.issuers(product, "VCEK", now)

        def check(data: bytes) -> x509.Certificate:
            (found,) = _certificates(data, 1)
            try:
                chains.verify_chain(Chain(found, *authorities), self.root, now)
                says = read_extensions(found, product)
            except (ChainError, ExtensionError) as error:
                raise Unreachable(f"the served VCEK is not valid: {error}") from error
            if says.hwid != hwid or says.tcb != tcb or says.product != product:
                raise Unreachable("found the VCEK of another chip or TCB version")
            return found

        return self._have(name, f"/vcek/v1/{product}/{hwid.hex()}?{query}", what, check, der, _MAX_CERTIFICATE)

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[x509.Certificate]:
        """ASK or ASVK, and the pinned ARK that issued it, both valid at ``now``."""

        def check(data: bytes) -> list[x509.Certificate]:
            found = _certificates(data, 2)
            ark = next((one for one in found if self.root.is_pinned(one)), None)
            ask = next((one for one in found if one != ark), None)
            if ark is None or ask is None:
                raise Unreachable("the served ASK and ARK are not AMD's")
            if problem := chains.authorities_problem(ask, ark, self.root, product, signer, now):
                raise Unreachable(f"the served ASK and ARK are not valid: {problem}")
            return [ask, ark]

        kind = signer.lower()
        what = f"{product}'s {'ASVK' if signer == 'VLEK' else 'ASK'} and ARK"
        return self._have(
            f"{kind}-{product}.pem", f"/{kind}/v1/{product}/cert_chain", what, check, chains.pem, _MAX_CERTIFICATE
        )

    def revocation_lists(
        self, product: Product, signer: Signer, ark: x509.Certificate, now: datetime, demanded: bool
    ) -> Lists:
        """The lists of ``ark`` from the cache and the service; a cached list is requested again after a day.

        If no list is ``demanded``, the service gets one short request, and none for a while after a failure.
        """
        kind = signer.lower()
        name, path = f"{kind}-{product}.crl", f"/{kind}/v1/{product}/crl"
        kept, age = self._kept_list(name, ark)
        fits = kept is not None and not not_in_force(kept, now)
        at_hand = () if kept is None else (kept,)
        if fits and (self.offline or age < _DAY):
            return Lists(at_hand)
        if self.offline:
            problem = self._absent("a revocation list", name)
            if kept is not None:
                problem = f"offline, and the cached revocation list ({name}) is {not_in_force(kept, now)}"
        else:
            problem = "" if demanded else self._failures.recall(name)
        if problem:
            return Lists(at_hand, "" if fits else problem)
        limits = self.limits if demanded else self.limits.short()
        try:
            served = read_crl(self._get(path, MAX_CRL, "a revocation list", limits), ark)
        except (Unreachable, CrlError) as error:
            problem = f"{self._shown}{path}: {'a revocation list: ' if isinstance(error, CrlError) else ''}{error}"
            self._failures.remember(name, problem)
            return Lists(at_hand, "" if fits else problem)
        # A mirror may serve an old list, which does not replace a newer one. A newer one in force is all that counts.
        newer = kept is None or served.last_update_utc >= kept.last_update_utc
        self.cache.keep(name, _crl_der(served if newer or kept is None else kept))
        found = (served,) if newer and not not_in_force(served, now) else (served, *at_hand)
        if newest_in_force(found, now) is None:
            problem = f"{self._shown}{path}: a revocation list: {not_in_force(served, now)}"
            self._failures.remember(name, problem)
        return Lists(found, problem)

    def _kept_list(self, name: str, ark: x509.Certificate) -> tuple[x509.CertificateRevocationList | None, float]:
        data, age = self.cache.find(name)
        try:
            return (read_crl(data, ark), age) if data else (None, 0.0)
        except CrlError:
            return None, 0.0  # damaged: the next answer replaces it

    def _have(
        self,
        name: str,
        path: str,
        what: str,
        check: Callable[[bytes], Thing],
        encode: Callable[[Thing], bytes],
        size: int,
    ) -> Thing:
        """Take an object from the cache, else from the service; ``check`` raises Unreachable for a wrong object."""
        data, _ = self.cache.find(name)
        wrong = ""
        try:
            if data:
                return check(data)
        except Unreachable as error:
            wrong = f": {error}"  # expired or damaged: the next answer replaces it
        if self.offline:
            raise Unreachable(self._absent(what, name) + wrong)
        try:
            found = check(self._get(path, size, what, self.limits))
        except Unreachable as error:
            raise Unreachable(f"{self._shown}{path}: {error}") from error
        self.cache.keep(name, encode(found))
        return found

    def _absent(self, what: str, name: str) -> str:
        return f"offline, and {what} ({name}) is not in the cache {self.cache.directory}"

    def _get(self, path: str, size: int, what: str, limits: Limits) -> bytes:
        """The body of an answer. Raises Unreachable."""
        return self._client.get(path, what, size, limits)


def _crl_der(crl: x509.CertificateRevocationList) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return crl.public_bytes(Encoding.DER)


def _certificates(data: bytes, number: int) -> list[x509.Certificate]:
    try:
        found = load_certificates(data)
    except UserError as error:
        raise Unreachable(error.message) from error
    if len(found) != number:
        raise Unreachable(f"{len(found)} certificates, expected {number}")
    return found
