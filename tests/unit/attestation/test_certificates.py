# SPDX-License-Identifier: Apache-2.0
import functools
import struct
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import certificates as certs
from sevsnp.attestation import chain as chains
from sevsnp.attestation import extensions as oids
from sevsnp.attestation.chain import Chain, ChainError, TrustRoot
from sevsnp.attestation.extensions import ExtensionError
from sevsnp.attestation.verifier import _AMD
from sevsnp.emulation import psp as soft
from sevsnp.emulation.mark import EMULATION_OID
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb
from tests.support.evidence import psp, real_data
from tests.support.hierarchy import Hierarchy

NOW = datetime(2026, 6, 1, tzinfo=UTC)
START = NOW - timedelta(hours=1)
MARK = frozenset({EMULATION_OID})
Builder = x509.CertificateBuilder


@functools.cache
def rsa_key(name: str, size: int = 4096, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, size)


@functools.cache
def ec_key(curve: str = "secp384r1") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key({"secp384r1": ec.SECP384R1(), "secp256r1": ec.SECP256R1()}[curve])


def builder(subject: str, issuer: str, *, key: object = None, start: datetime = START) -> Builder:
    authority = subject != "VCEK"
    public = key or (rsa_key(subject) if authority else ec_key())
    made = soft._builder(
        soft._name(subject), soft._name(issuer), public.public_key(), start, authority=authority  # type: ignore[attr-defined]
    )  # fmt: skip
    return made if authority else add(made, *soft._vcek_extensions("Genoa", Tcb(1, 2, 3, 200)))


def add(made: Builder, *extensions: tuple[str, bytes], critical: bool = False) -> Builder:
    for oid, value in extensions:
        made = made.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical)
    return made


def without(made: Builder, oid: str) -> Builder:
    made = add(made)
    made._extensions = [one for one in made._extensions if one.oid.dotted_string != oid]
    return made


def with_value(made: Builder, oid: str, value: bytes) -> Builder:
    return add(without(made, oid), (oid, value))


@functools.cache
def honest(subject: str, issuer: str) -> x509.Certificate:
    return soft._certify(builder(subject, issuer), rsa_key(issuer))


def chain(
    ark: x509.Certificate | None = None, ask: x509.Certificate | None = None, vcek: x509.Certificate | None = None
) -> Chain:
    return Chain(vcek or honest("VCEK", "ASK"), ask or honest("ASK", "ARK"), ark or honest("ARK", "ARK"))


def root_of(one: Chain, required: frozenset[str] = MARK) -> TrustRoot:
    return TrustRoot("emulated", "emulated", ((one.ark.fingerprint(hashes.SHA256()), None),), required)


def refused(one: Chain, root: TrustRoot | None = None, now: datetime = NOW) -> tuple[str, str]:
    with pytest.raises(ChainError) as caught:
        chains.verify_chain(one, root or root_of(one), now)
    return caught.value.reason, str(caught.value)


def test_honest_chain() -> None:
    chains.verify_chain(chain(), root_of(chain()), NOW)


def pss(digest: hashes.SHA256 | hashes.SHA384, salt: int) -> Callable[[Builder], x509.Certificate]:
    from cryptography.hazmat.primitives.asymmetric import padding

    return lambda made: made.sign(rsa_key("ASK"), digest, rsa_padding=padding.PSS(padding.MGF1(digest), salt))


def test_wrong_chains() -> None:
    sign = soft._certify
    small, three = rsa_key("small", 2048), rsa_key("three", exponent=3)
    other = builder("VCEK", "ASK")
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    not_signing = without(builder("ASK", "ARK"), "2.5.29.15").add_extension(usage, critical=True)
    not_authority = without(builder("ASK", "ARK"), "2.5.29.19")
    signing = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    authority = without(other, "2.5.29.19").add_extension(x509.BasicConstraints(True, None), critical=True)
    backwards = builder("ASK", "ARK")
    # The library's builder refuses such dates.
    backwards._not_valid_before, backwards._not_valid_after = backwards._not_valid_after, backwards._not_valid_before
    table = {
        "VCEK: its signature": chain(vcek=sign(other, rsa_key("ARK"))),
        "ASK: its signature": chain(ask=sign(builder("ASK", "ARK"), rsa_key("ASK"))),
        "ARK: its signature": chain(ark=sign(builder("ARK", "ARK"), rsa_key("ASK"))),
        "ARK: its issuer's name": chain(ark=sign(builder("ARK", "else"), rsa_key("ARK"))),
        "ASK: its issuer's name": chain(ask=sign(builder("ASK", "else"), rsa_key("ARK"))),
        "VCEK: its issuer's name": chain(vcek=sign(builder("VCEK", "else"), rsa_key("ASK"))),
        "VCEK: expected a P-384": chain(vcek=sign(builder("VCEK", "ASK", key=ec_key("secp256r1")), rsa_key("ASK"))),
        "not RSA-4096": chain(ark=sign(builder("ARK", "ARK", key=small), small)),
        "RSA-4096 with exponent 65537": chain(ark=sign(builder("ARK", "ARK", key=three), three)),
        "VCEK: a certificate auth": chain(vcek=sign(authority, rsa_key("ASK"))),
        "VCEK: a certificate authority": chain(vcek=sign(authority.add_extension(signing, True), rsa_key("ASK"))),
        "ASK: its validity ends before": chain(ask=sign(backwards, rsa_key("ARK"))),
        "VCEK: not signed with RSA-PSS": chain(vcek=other.sign(rsa_key("ASK"), hashes.SHA384())),
        "VCEK: not signed with RSA-PSS and SHA-384": chain(vcek=pss(hashes.SHA256(), 32)(other)),
        "ASK: not a certificate authority": chain(ask=sign(not_authority, rsa_key("ARK"))),
        "ASK: not a certificate auth": chain(ask=sign(not_signing, rsa_key("ARK"))),
        "VCEK: unknown critical": chain(vcek=sign(add(other, ("1.2.3", b"\5\0"), critical=True), rsa_key("ASK"))),
    }
    for words, wrong in table.items():
        reason, message = refused(wrong)
        assert reason == "certificates" and words in message, (words, message)


def test_keys_of_another_kind_sign_nothing() -> None:
    """Also where the caller did not look at the chain before."""
    data = b"signed"
    for curve, expected in (("secp384r1", True), ("secp256r1", False)):
        leaf = soft._certify(builder("VCEK", "ASK", key=ec_key(curve)), rsa_key("ASK"))
        r, s = decode_dss_signature(ec_key(curve).sign(data, ec.ECDSA(hashes.SHA384())))
        assert chains.verify_signature(leaf, r, s, data) is expected
    assert chains.verify_signature(honest("ASK", "ARK"), 1, 1, data) is False
    signed = honest("VCEK", "ASK")
    parts = signed.signature, signed.tbs_certificate_bytes
    assert chains.verify_pss(honest("ASK", "ARK"), *parts) is True
    assert chains.verify_pss(signed, *parts) is chains.verify_pss(honest("ARK", "ARK"), *parts) is False
    assert "not RSA-4096" in chains.issuing_problem(signed, signed)
    assert chains.issuing_problem(signed, honest("ASK", "ARK")) == ""


def test_authorities_of_a_service_are_those_of_the_product_and_valid_now() -> None:
    """They are checked before they are cached; the verifier checks them again."""
    one = chain()
    pin = one.ark.fingerprint(hashes.SHA256())

    def problem(product: Product, now: datetime = NOW, ask: x509.Certificate = one.ask) -> str:
        root = TrustRoot("emulated", "emulated", ((pin, "Genoa"),), MARK)
        return chains.authorities_problem(ask, one.ark, root, product, "VCEK", now)

    assert problem("Genoa") == "" and problem("Milan") == "another product's"
    late = soft._certify(builder("ASK", "ARK", start=NOW + timedelta(hours=1)), rsa_key("ARK"))
    assert problem("Genoa", ask=late) == "ASK: not valid at 2026-06-01 00:00"
    end = one.ark.not_valid_after_utc
    assert problem("Genoa", end + timedelta(seconds=1)) == f"ARK: not valid at {end + timedelta(seconds=1):%F %H:%M}"
    assert "its signature" in problem("Genoa", ask=soft._certify(builder("ASK", "ARK"), rsa_key("ASK")))
    stranger = TrustRoot("emulated", "emulated", ((bytes(32), "Genoa"),), MARK)
    assert "not a trusted root" in chains.authorities_problem(one.ask, one.ark, stranger, "Genoa", "VCEK", NOW)


@pytest.mark.parametrize("name", ["ARK", "ASK", "VCEK"])
def test_the_emulation_extension_is_required_under_emulation_and_refused_elsewhere(name: str) -> None:
    issuer, key = ("ASK", "ASK") if name == "VCEK" else ("ARK", "ARK")
    bare = without(builder(name, issuer), EMULATION_OID)
    wrong = chain(**{name.lower(): soft._certify(bare, rsa_key(key))})
    assert refused(wrong) == ("certificates", f"{name}: without the critical extension {EMULATION_OID}")
    uncritical = soft._certify(add(bare, (EMULATION_OID, b"\5\0")), rsa_key(key))
    assert refused(chain(**{name.lower(): uncritical}))[0] == "certificates"
    # Were an emulated ARK ever pinned for production, its chain would still be refused.
    assert "unknown critical extension" in refused(chain(), root_of(chain(), frozenset()))[1]


def test_the_root_is_compared_with_the_pin_before_all_else() -> None:
    broken = chain(ask=soft._certify(builder("ASK", "else"), rsa_key("ASK")))
    assert refused(broken, _AMD)[0] == "unknown-root"
    assert refused(chain(), _AMD)[0] == "unknown-root"
    twin = chain(ark=soft._certify(builder("ARK", "ARK"), rsa_key("ARK")))  # the same key and name, another certificate
    assert refused(twin, root_of(chain()))[0] == "unknown-root"


def test_validity() -> None:
    one = chain()
    for hours in (-2, 25):
        assert refused(one, now=NOW + timedelta(hours=hours))[0] == "validity"
    chains.verify_chain(one, root_of(one), NOW + timedelta(hours=22))
    late = chain(vcek=soft._certify(builder("VCEK", "ASK", start=NOW + timedelta(hours=1)), rsa_key("ASK")))
    assert refused(late)[0] == "validity"
    # Both ends belong to the period.
    second = timedelta(seconds=1)
    first, last = one.leaf.not_valid_before_utc, one.leaf.not_valid_after_utc
    assert [chains.is_valid_at(one.leaf, when) for when in (first, last)] == [True, True]
    assert [chains.is_valid_at(one.leaf, when) for when in (first - second, last + second)] == [False, False]


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        (oids.HWID, b"\1" * 63),
        (oids.HWID, b"\1" * 8),
        (oids.HWID, b""),
        (oids.BOOTLOADER, b"\2\1\x80"),
        (oids.BOOTLOADER, b"\2\2\0\x7f"),
        (oids.BOOTLOADER, b"\2\2\1\0"),
        (oids.BOOTLOADER, b"\2\1\1\0"),
        (oids.BOOTLOADER, b""),
        (oids.RESERVED_SPLS[0], b"\2\1\1"),
        (oids.STRUCT_VERSION, b"\2\1\1"),
        (oids.PRODUCT_NAME, b"\x16\x09Genoa"),
        (oids.PRODUCT_NAME, b"\x0c\x05Genoa"),
        (oids.FMC, b"\2\1\0"),
        (oids.CSP_ID, b"\x16\x01x"),
    ],
)
def test_wrong_extensions(oid: str, value: bytes) -> None:
    def read(made: Builder) -> oids.LeafExtensions:
        return oids.read_extensions(soft._certify(made, rsa_key("ASK")), "Genoa")

    assert read(builder("VCEK", "ASK")).tcb == Tcb(1, 2, 3, 200)  # control
    with pytest.raises(ExtensionError):
        read(with_value(builder("VCEK", "ASK"), oid, value))
    if oid not in (oids.RESERVED_SPLS[0], oids.FMC, oids.CSP_ID):
        with pytest.raises(ExtensionError, match="no extension"):
            read(without(builder("VCEK", "ASK"), oid))


@pytest.mark.parametrize("first", [0x02, 0x04])
def test_hardware_ids_that_look_like_der(first: int) -> None:
    raw = bytes((first, 62)) + bytes(range(62))
    for value, wanted in ((raw, raw), (b"\x04\x40" + raw, raw)):
        vcek = soft._certify(with_value(builder("VCEK", "ASK"), oids.HWID, value), rsa_key("ASK"))
        assert oids.read_extensions(vcek, "Genoa").hwid == wanted


# Values of AMD's extensions as a DER INTEGER or IA5String; only these are ones.
INTEGERS = {b"\x02\x01\x7f": 127, b"\x02\x02\x00\x80": 128, b"\x02\x02\x00\xff": 255}
NO_INTEGERS = [
    b"\x04\x01\x05", b"\x02\x02\x05", b"\x04\x02\x00\x85", b"\x02\x02\x01\x85", b"\x02\x03\x00\x85",
    b"\x02\x02\x00\x85\x00", b"\x02\x02\x00\x7f", b"\x02\x01\x80", b"\x02\x01\x05\x00", b"",
]  # fmt: skip


def test_integers_of_extensions() -> None:
    def read(value: bytes) -> int:
        leaf = Hierarchy(extensions=((oids.MICROCODE, value),)).certificate
        return oids.read_extensions(leaf, "Genoa").tcb.microcode

    assert {value: read(value) for value in INTEGERS} == INTEGERS
    for value in NO_INTEGERS:
        with pytest.raises(
            ExtensionError, match=rf"extension {oids.MICROCODE}: found {value.hex()}, expected an INTEGER"
        ):
            read(value)


def test_strings_of_extensions() -> None:
    for length in (1, 127):
        text = b"\x16" + bytes([length]) + b"c" * length
        leaf = Hierarchy(vlek=True, extensions=((oids.CSP_ID, text),)).certificate
        assert oids.read_extensions(leaf, "Genoa").csp == "c" * length
    for wrong in (b"\x0c\x01c", b"\x16\x00", b"\x16\x02c", b"\x16\x81\x80" + b"c" * 128, b"\x16\x80" + b"c" * 128):
        leaf = Hierarchy(vlek=True, extensions=((oids.CSP_ID, wrong),)).certificate
        with pytest.raises(ExtensionError, match="expected an IA5String"):
            oids.read_extensions(leaf, "Genoa")


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_reserved_components_are_zero(number: int) -> None:
    oid = f"1.3.6.1.4.1.3704.1.3.{number}"  # AMD 57230
    leaves = [Hierarchy(extensions=((oid, bytes((2, 1, level))),)).certificate for level in (0, 1)]
    assert oids.read_extensions(leaves[0], "Genoa")
    with pytest.raises(ExtensionError, match=f"extension {oid}: a reserved component is not zero"):
        oids.read_extensions(leaves[1], "Genoa")


def test_the_product_that_a_leaf_names() -> None:
    for product in ("Milan", "Genoa", "Turin"):
        assert oids.named_product(Hierarchy(product).certificate) == product
    other = Hierarchy(extensions=((oids.PRODUCT_NAME, b"\x16\x04Rome"),)).certificate
    missing = Hierarchy(extensions=((oids.PRODUCT_NAME, None),)).certificate
    assert oids.named_product(other) is oids.named_product(missing) is None


def test_the_revocation_list_of_a_certificate_table_is_read() -> None:
    table = struct.pack("<16sII", certs.CRL_GUID, 48, 4) + bytes(24) + b"list"
    assert certs.crl_of_table(table) == b"list" and certs.crl_of_table(b"") is None


def found_chain(candidates: list[x509.Certificate], root: TrustRoot) -> Chain | None:
    leaf = chains.leaves(candidates)[0]
    ask = chains.issuer_among(leaf, candidates, root)
    ark = chains.issuer_among(ask, candidates, root) if ask else None
    return Chain(leaf, ask, ark) if ask and ark else None


def test_the_issuers_are_found_by_signature_and_pin() -> None:
    one = chain()
    everything = [one.leaf, one.ask, one.ark]
    other_key = soft._certify(builder("ARK", "ARK", key=rsa_key("ASK")), rsa_key("ASK"))  # the name only
    twin = soft._certify(builder("ARK", "ARK"), rsa_key("ARK"))  # name and key, another certificate
    for order in (everything, everything[::-1] * 2, [other_key, twin, *everything], [*everything, twin, other_key]):
        assert found_chain(order, root_of(one)) == one
    assert found_chain(everything[:2], root_of(one)) is None
    assert found_chain([one.leaf, one.ark], root_of(one)) is None


def test_certificate_table() -> None:
    table = psp().certificate_table()
    assert len(table) % 4096 == 0
    assert certs.certificates_of_table(table) == [psp().vcek, psp().ask, psp().ark]
    assert table[:16] == certs.VCEK_GUID == uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes  # not bytes_le
    assert certs.parse_certificate_table(b"") == {} == certs.parse_certificate_table(bytes(4096))
    entry = struct.Struct("<16sII")
    guid, end = uuid.uuid4().bytes, bytes(24)
    assert certs.parse_certificate_table(entry.pack(guid, 48, 1) + end + b"x") == {guid: b"x"}
    for wrong in (
        entry.pack(guid, 48, 2) + end + b"x",
        entry.pack(guid, 0xFFFFFFFF, 0xFFFFFFFF) + end,
        entry.pack(guid, 0, 1) * 2 + end,
        entry.pack(guid, 0, 1),
        b"\1",
        bytes(1 << 20) + b"\0",
    ):
        with pytest.raises(UserError, match="certificate table"):
            certs.parse_certificate_table(wrong)


def test_unreadable_certificates() -> None:
    pem = psp().ark.public_bytes(Encoding.PEM)
    assert len(certs.load_certificates(pem * 2)) == 2  # control
    for wrong in (b"", b"\x30\x82\1\0", pem.replace(b"M", b"!", 1), pem * 17, certs.der(psp().ark)[:-1], pem * 1000):
        with pytest.raises(UserError, match="certificates"):
            certs.load_certificates(wrong)


AMD: list[tuple[Product, str, str]] = [
    ("Milan", "ask_ark_milan.pem", "milan-v2/vcek.der"),
    ("Milan", "ask_ark_milan.pem", "milan-v2-debug/vcek.der"),
    ("Genoa", "ask_ark_genoa.pem", "genoa-v3/vcek.pem"),
    ("Turin", "ask_ark_turin_vcek.pem", "turin-vcek/vcek.der"),
]


@pytest.mark.parametrize(("product", "bundle", "leaf"), AMD)
@pytest.mark.filterwarnings("error")
def test_amds_chains(product: Product, bundle: str, leaf: str) -> None:
    candidates = [
        certificate
        for path in (f"amd-chains/{bundle}", leaf)
        for certificate in certs.load_certificates(real_data(path).read_bytes())
    ]
    one = found_chain(candidates, _AMD)
    assert one
    chains.verify_chain(one, _AMD, NOW)
    assert chains.root_product(one, _AMD) == product
    extensions = oids.read_extensions(one.leaf, product)
    assert extensions.hwid
    assert extensions.product_name.split("-")[0] == product
    assert len(extensions.hwid) == (8 if product == "Turin" else 64)
    assert refused(one, root_of(chain()))[0] == "unknown-root"
    assert "without the critical extension" in refused(one, root_of(one))[1]
    assert refused(one, _AMD, datetime(2050, 1, 1, tzinfo=UTC))[0] == "validity"


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_an_asvk_does_not_sign_a_vcek(product: str) -> None:
    asvk = certs.load_certificates(real_data(f"amd-chains/ask_ark_{product}_vlek.pem").read_bytes())
    leaf = {"milan": "milan-v2/vcek.der", "genoa": "genoa-v3/vcek.pem", "turin": "turin-vcek/vcek.der"}[product]
    vcek = certs.load_certificates(real_data(leaf).read_bytes())
    assert found_chain([*vcek, *asvk], _AMD) is None
    named = Chain(vcek[0], *asvk)
    with pytest.raises(ChainError, match=r"VCEK: its issuer's name|ASK: its common name"):
        chains.verify_chain(named, _AMD, NOW)
