# SPDX-License-Identifier: Apache-2.0
"""--certs DIR with files as other tools write them: sorted by content; files that are not used are named."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sevsnp.attestation import verifier
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.certificate_files import Contents, read_directory
from sevsnp.attestation.certificates import ARK_GUID, ASK_GUID, CRL_GUID, VCEK_GUID, der
from sevsnp.attestation.chain import pem
from sevsnp.attestation.inspection import inspect
from sevsnp.attestation.kds import Kds
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.sources import Directory
from sevsnp.commands import inspect_report as cli
from sevsnp.errors import UserError
from tests.support.fuzz_targets import _table_of
from tests.support.hierarchy import NOW, Hierarchy, leaf_key, rsa_key
from tests.unit.attestation.test_revocation_lists import pem as pem_crl

GENOA, TURIN = Hierarchy(), Hierarchy("Turin", leaf="of a Turin")


@functools.cache
def crl() -> bytes:
    return GENOA.crl([GENOA.ask.serial_number])


def table(*guids: bytes) -> bytes:
    """A certificate table of a host, with these entries."""
    entries = {
        VCEK_GUID: der(GENOA.certificate), ASK_GUID: der(GENOA.ask), ARK_GUID: der(GENOA.ark), CRL_GUID: crl(),
    }  # fmt: skip
    return _table_of({guid: entries[guid] for guid in guids})


def store(one: Hierarchy) -> str:
    """The name of a VCEK in trustee's offline store."""
    tcb, hwid = one.level, one.chip[:8] if one.product == "Turin" else one.chip
    fmc = "" if tcb.fmc is None else f"_fmc{tcb.fmc:02}"
    return (
        f"vcek/{hwid.hex()}/bl{tcb.bootloader:02}_tee{tcb.tee:02}_snp{tcb.snp:02}_ucode{tcb.microcode:02}{fmc}_vcek.der"
    )


def key(form: PrivateFormat, encoding: Encoding = Encoding.PEM) -> bytes:
    return leaf_key().private_bytes(encoding, form, NoEncryption())


# Names as tools give them, none of which says what is in the file.
AS_PEOPLE_HAVE_IT: dict[str, Callable[[], dict[str, bytes]]] = {
    "snpguest, DER": lambda: {
        "ark.der": der(GENOA.ark), "ask.der": der(GENOA.ask), "vcek.der": der(GENOA.certificate), "crl.der": crl(),
    },
    "snpguest, PEM": lambda: {
        "ark.pem": pem([GENOA.ark]), "ask.pem": pem([GENOA.ask]), "vcek.pem": pem([GENOA.certificate]),
        "crl.pem": pem_crl(crl()),
    },
    "AMD's names": lambda: {
        "cert_chain": pem([GENOA.ask, GENOA.ark]), "crl": crl(), "vcek.cert": der(GENOA.certificate),
    },
    "trustee's offline store": lambda: {
        store(GENOA): der(GENOA.certificate), "genoa/cert_chain.pem": pem([GENOA.ask, GENOA.ark]),
        "genoa/crl.pem": pem_crl(crl()),
    },
    "a certificate table": lambda: {"certs.bin": table(VCEK_GUID, ASK_GUID, ARK_GUID, CRL_GUID)},
    "tables with a part each": lambda: {"a": table(VCEK_GUID, ASK_GUID, ARK_GUID), "b": table(CRL_GUID)},
    "wrong names": lambda: {
        "vcek.crl": pem([GENOA.certificate]), "crl.pem": pem([GENOA.ask, GENOA.ark]), "ark.cer": crl(),
    },
    "all in one file": lambda: {
        "bundle.txt": key(PrivateFormat.PKCS8) + pem([GENOA.certificate, GENOA.ask]) + pem_crl(crl())
        + pem([GENOA.ark]),
    },
}  # fmt: skip


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("name", AS_PEOPLE_HAVE_IT)
def test_directories_written_by_other_tools_are_read(name: str, tmp_path: Path) -> None:
    found = read_directory(fill(tmp_path, AS_PEOPLE_HAVE_IT[name]()))
    assert set(found.certificates) == {GENOA.certificate, GENOA.ask, GENOA.ark} and found.lists == [crl()]
    assert [reason for _, reason in found.passed_over] == (["a private key"] if "all in one" in name else [])
    # The list in it is used, too.
    certs = Directory(tmp_path, Nobody(), found)
    revoked = inspect(GENOA.evidence([]), NOW, GENOA.root, certs)
    assert revoked.authentic is False and "revoked" in revoked.reason
    without = Directory(tmp_path, Nobody(), Contents(found.certificates))
    assert inspect(GENOA.evidence([]), NOW, GENOA.root, without).authentic is True  # control


def test_a_store_of_several_products(tmp_path: Path) -> None:
    fill(tmp_path, {store(one): der(one.certificate) for one in (GENOA, TURIN)})
    fill(tmp_path, {f"{one.product}.pem": pem([one.ask, one.ark]) for one in (GENOA, TURIN)})
    certs = Directory.read(tmp_path, Nobody())
    for one in (GENOA, TURIN):
        for version in (2, 3):
            assert inspect(one.evidence([], version=version), NOW, one.root, certs).authentic is True


PASSED_OVER: dict[str, tuple[Callable[[], bytes], str]] = {
    "key.pem": (lambda: key(PrivateFormat.PKCS8), "a private key"),
    "id_rsa": (lambda: key(PrivateFormat.OpenSSH), "a private key"),
    "sec1.pem": (lambda: key(PrivateFormat.TraditionalOpenSSL), "a private key"),
    "key.der": (lambda: key(PrivateFormat.PKCS8, Encoding.DER), "a private key"),
    "rsa.der": (
        lambda: rsa_key("small", 2048).private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        "a private key",
    ),
    "broken.pem": (lambda: pem([GENOA.ark])[:-40], "a broken PEM block"),
    "garbled.pem": (lambda: pem([GENOA.ark]).replace(b"M", b"!", 9), "a broken PEM block"),
    "page.pem": (lambda: b"<html>Sign in", "neither a certificate nor a revocation list"),
    "empty.der": (lambda: b"", "neither a certificate nor a revocation list"),
    "half.der": (lambda: der(GENOA.ark)[:-1], "neither a certificate nor a revocation list"),
    "request.pem": (lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
                    "a PEM block 'CERTIFICATE REQUEST'"),
    "large.der": (lambda: bytes((1 << 20) + 1), "more than 1048576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED_OVER)
def test_files_that_are_not_used_are_named_with_the_reason(name: str, tmp_path: Path) -> None:
    make, reason = PASSED_OVER[name]
    fill(tmp_path, {name: make(), "ark.pem": pem([GENOA.ark])})
    found = read_directory(tmp_path)
    assert found.passed_over == [(tmp_path / name, reason)] and found.certificates == [GENOA.ark]


def test_the_list_of_unused_files_is_limited(tmp_path: Path) -> None:
    fill(tmp_path, {f"{number:03}\x1b[2J.key": key(PrivateFormat.PKCS8) for number in range(100)})
    lines = read_directory(tmp_path).describe(tmp_path)
    assert len(lines) == 10 and "0 certificates, 0 revocation lists" in lines[0] and "92 more" in lines[-1]
    assert not any("\x1b" in line for line in lines)
    fill(tmp_path / "two", {f"{number}.key": key(PrivateFormat.PKCS8) for number in range(8)})
    assert len(read_directory(tmp_path / "two").describe(tmp_path)) == 9


def test_links_pipes_and_depth(tmp_path: Path) -> None:
    fill(tmp_path, {"real/..data/ark.pem": pem([GENOA.ark]), "a/b/c/d/ask.pem": pem([GENOA.ask])})
    fill(tmp_path, {"a/b/c/d/e/vcek.pem": pem([GENOA.certificate]), ".hidden.pem": pem([TURIN.ark])})
    (tmp_path / "ark.pem").symlink_to("real/..data/ark.pem")
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "gone.pem").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.pem")  # opening it would wait for a writer
    found = read_directory(tmp_path)
    assert set(found.certificates) == {GENOA.ark, GENOA.ask}
    reasons = {path.name: reason for path, reason in found.passed_over}
    assert reasons.keys() == {"again", "gone.pem", "pipe.pem", "e"} and "4 directories deep" in reasons["e"]


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {f"{number}.pem": pem([GENOA.ark]) for number in range(3)})
    assert len(read_directory(tmp_path).certificates) == 1  # control; without duplicates
    for name, value in (("_MAX_FILES", 2), ("_MAX_ALL", 4000)):
        with monkeypatch.context() as patch:
            patch.setattr(f"sevsnp.attestation.certificate_files.{name}", value)
            with pytest.raises(UserError, match="more than"):
                read_directory(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        read_directory(tmp_path / "0.pem")


LACKING: dict[str, tuple[Callable[[], dict[str, bytes]], list[str]]] = {
    "the VCEK": (lambda: {"a": pem([GENOA.ask, GENOA.ark])}, ["has no VCEK of this Genoa chip", "vcek-Genoa-0102"]),
    "the ASK": (lambda: {"a": pem([GENOA.certificate, GENOA.ark])}, ["lacks Genoa's ASK or ARK", "vcek-Genoa.pem"]),
    "the ARK": (lambda: {"a": pem([GENOA.certificate, GENOA.ask])}, ["lacks Genoa's ASK or ARK", "vcek-Genoa.pem"]),
    "everything": (lambda: {"a.crl": crl()}, ["has no VCEK of this Genoa chip", "vcek-Genoa-0102"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_the_message_names_the_missing_certificates(name: str, tmp_path: Path) -> None:
    make, words = LACKING[name]
    offline = Kds(GENOA.root, Cache(tmp_path / "cache"), offline=True)
    certs = Directory.read(fill(tmp_path / "certs", make()), offline)
    found = inspect(GENOA.evidence([]), NOW, GENOA.root, certs)
    assert found.authentic is None and all(word in found.reason for word in words), found.reason


def test_the_message_for_a_report_signed_with_a_vlek(tmp_path: Path) -> None:
    provider = Hierarchy(vlek=True)
    offline = Kds(provider.root, Cache(tmp_path / "cache"), offline=True)
    for files, words in (
        ({"a": pem([provider.certificate])}, ["lacks Genoa's ASVK or ARK", "vlek-Genoa.pem"]),
        ({"b": pem([provider.ask, provider.ark])}, ["only the cloud provider can supply it"]),
    ):
        certs = Directory.read(fill(tmp_path / "".join(files), files), offline)
        found = inspect(provider.evidence([]), NOW, provider.root, certs)
        assert found.authentic is None and all(word in found.reason for word in words), found.reason


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "report").write_bytes(GENOA.report())
    certs = fill(tmp_path / "certs", AS_PEOPLE_HAVE_IT["snpguest, DER"]())
    (certs / "vcek.key").write_bytes(key(PrivateFormat.PKCS8))
    words = ["--input", f"{tmp_path}/report", "--certs", str(certs), "--offline", "--at", f"{NOW:%F}"]
    assert cli.main(words) == 2  # the list revokes its ASK
    (certs / "crl.der").unlink()
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 0
    said = capsys.readouterr().err
    assert f"{certs}: 3 certificates, 0 revocation lists\n" in said
    assert f"{certs}/vcek.key: ignored: a private key\n" in said
