# SPDX-License-Identifier: Apache-2.0
"""The algorithm that stands beside a certificate's signature must equal the signed one in every parameter."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import chain
from sevsnp.attestation.certificates import load_certificates
from sevsnp.attestation.chain import issuing_problem, verify_pss
from sevsnp.attestation.revocation import CrlError, read_crl
from sevsnp.attestation.signed_algorithm import algorithm_problem
from tests.support.evidence import real_data
from tests.support.hierarchy import NOW, Hierarchy
from tests.unit.attestation.test_forged_reports import failed, outcome

GENOA = Hierarchy()
SALT = bytes.fromhex("a203020130")  # [2] INTEGER 48


def changed(certificate: x509.Certificate, salt: int) -> x509.Certificate:
    """With another salt length beside the signature; what is signed stays as it was."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    place = der.rindex(SALT)
    assert place > len(certificate.tbs_certificate_bytes) and der.count(SALT) == 2
    der[place + 4] = salt
    return x509.load_der_x509_certificate(bytes(der))


def test_another_salt_beside_the_signature_is_refused() -> None:
    for certificate, issuer in ((GENOA.certificate, GENOA.ask), (GENOA.ask, GENOA.ark), (GENOA.ark, GENOA.ark)):
        assert issuing_problem(changed(certificate, 48), issuer) == ""  # control
        other = changed(certificate, 32)
        assert issuing_problem(other, issuer) == "the algorithm beside its signature is not the signed one"
        # The signature itself cannot show it.
        assert verify_pss(issuer, other.signature, other.tbs_certificate_bytes)
    sent = [changed(GENOA.certificate, 32), GENOA.ask, GENOA.ark]
    assert failed(outcome(GENOA.evidence(sent), at=NOW)) == {"certificates"}


@pytest.mark.parametrize("text", ["", "\n", "a reason"])
def test_what_the_library_cannot_read_is_a_problem(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Also if its error has no text, because an empty text is what a certificate without a problem has."""

    def fails(*_: object) -> str:
        raise ValueError(text)

    issuing, link = issuing_problem.__wrapped__, chain._link_problem
    root = GENOA.root
    for spoilt in (False, True):
        if spoilt:
            monkeypatch.setattr(chain, "algorithm_problem", fails)
            monkeypatch.setattr(chain, "_extensions_problem", fails)
        assert bool(issuing(GENOA.ask, GENOA.ark)) is spoilt
        assert bool(link("ASK", GENOA.ask, GENOA.ark, root, "Genoa", "VCEK")) is spoilt


def test_real_certificates_and_lists() -> None:
    for name in ("amd-chains/ask_ark_milan.pem", "amd-chains/ask_ark_turin_vlek.pem", "milan-v2/vcek.der",
                 "turin-vcek/vcek.der"):  # fmt: skip
        for one in load_certificates(real_data(name).read_bytes()):
            assert algorithm_problem(one.public_bytes(Encoding.DER), one.tbs_certificate_bytes) == ""
    crl = x509.load_der_x509_crl(GENOA.crl([5]))
    whole = crl.public_bytes(Encoding.DER)
    assert algorithm_problem(whole, crl.tbs_certlist_bytes) == ""
    other = bytearray(whole)
    other[other.rindex(SALT) + 4] = 32
    assert "not the signed one" in algorithm_problem(bytes(other), crl.tbs_certlist_bytes)
    assert read_crl(whole, GENOA.ark)  # control
    with pytest.raises(CrlError, match="do not match"):  # of a list, the library compares them itself
        read_crl(bytes(other), GENOA.ark)


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 10, 100, 400])
def test_broken_encodings_are_reported_without_a_traceback(cut: int) -> None:
    whole, signed = GENOA.ask.public_bytes(Encoding.DER), GENOA.ask.tbs_certificate_bytes
    assert algorithm_problem(whole[:cut], signed) and algorithm_problem(whole, signed[:cut])
    assert algorithm_problem(b"\x30\x84" + bytes(cut), b"") and algorithm_problem(b"\x30\x80" + bytes(cut), b"")
