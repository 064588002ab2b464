# SPDX-License-Identifier: Apache-2.0
"""The sources of packages: apt's two kinds of source lists, mirrors in lists, proxies, and mmdebstrap's defaults."""

from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages import hostapt
from sevsnp.packages.hostapt import Source, find_debian, find_proxy, parse_deb822, parse_one_line
from sevsnp.packages.sources import Sources, ask_mmdebstrap, beside, clean_uri, find_keyring, find_sources
from sevsnp.system.command import find

DEB822 = """\
# made by an installer
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
# between the fields
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb-src http://mirror.invalid/debian bookworm main
# deb http://commented.invalid/debian bookworm main
deb [ arch=amd64 signed-by=/k.gpg ] https://vendor.invalid/repo stable main # a vendor
deb http://mirror.invalid/debian/ bookworm main contrib
deb http://security.invalid/debian-security bookworm-security main
"""


def test_deb822_sources() -> None:
    found = tuple(parse_deb822(DEB822))
    assert [source.suite for source in found] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert found[0].components == ("main", "contrib")
    assert find_debian(found) == ("http://mirror.invalid/debian", "http://mirror.invalid/debian-security")


def test_one_line_sources() -> None:
    found = tuple(parse_one_line(ONE_LINE))
    assert Source("https://vendor.invalid/repo", "stable", ("main",), "/k.gpg") in found
    assert find_debian(found) == ("http://mirror.invalid/debian/", "http://security.invalid/debian-security")


@pytest.mark.parametrize(
    ("uri", "components", "signed_by", "taken"),
    [
        ("http://x.invalid/debian", ("main",), "", True),
        ("http://x.invalid/frozen/20250520", ("main",), "/usr/share/keyrings/debian-archive-keyring.gpg", True),
        ("http://x.invalid/archive/debian/20250520T000000Z", ("main",), "", True),
        ("http://x.invalid/linux/debian", ("stable",), "", False),
        ("http://x.invalid/debian", ("main",), "/etc/apt/keyrings/vendor.gpg", False),
        ("http://x.invalid/repo", ("main",), "", False),
        ("http://x.invalid/ubuntu", ("main",), "", False),
    ],
)
def test_only_debians_own_archive_is_taken(uri: str, components: tuple[str, ...], signed_by: str, taken: bool) -> None:
    assert find_debian((Source(uri, "bookworm", components, signed_by),)) == (uri if taken else "", "")


def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc "{tmp_path}";\nDir::Etc::parts "/dev/null";\nAcquire::http::Proxy "http://p.invalid:1";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))


def test_the_hosts_own_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "mirrors.list"
    listed.write_text("# nearest first\nhttp://near.invalid/debian\tpriority:1\nhttp://far.invalid/debian\n")
    host(
        tmp_path,
        monkeypatch,
        {
            "sources.list": f"deb mirror+file:{listed} trixie main\n",
            "sources.list.d/off.list.disabled": "deb http://off.invalid/debian trixie-security main\n",
            "sources.list.d/security.sources": DEB822,
        },
    )
    found = find_sources()
    assert (found.main, found.security) == ("http://near.invalid/debian", "http://mirror.invalid/debian-security")
    assert found.origin == "the host's apt configuration"
    assert find_proxy(dict(found.settings), "http://near.invalid/x") == "http://p.invalid:1"


def test_the_mirror_setting_comes_first() -> None:
    assert find_sources("http://a.invalid/debian/").main == "http://a.invalid/debian"
    assert find_sources("http://a.invalid/debian").security == ""
    assert find_sources("http://a.invalid/debian http://b.invalid/s/").security == "http://b.invalid/s"
    for bad in ("ftp://a.invalid/debian", "/srv/debian", "debian", "http:/one-slash", "a b c"):
        with pytest.raises(UserError, match="MIRROR: found"):
            find_sources(bad)


@pytest.mark.skipif(find("mmdebstrap") is None, reason="mmdebstrap is not here")
def test_mmdebstraps_defaults_without_any_debian_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on Ubuntu: the host's own archive is another distribution's.
    host(tmp_path, monkeypatch, {"sources.list": "deb http://archive.invalid/ubuntu noble main universe\n"})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # whatever goes to the network from here fails
    found = find_sources()
    assert found.origin == "mmdebstrap's defaults"
    assert found.main.startswith("http")
    assert found.main.endswith("/debian")
    assert found.security.endswith("/debian-security")


def test_a_failed_question_to_mmdebstrap_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mmdebstrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="names no mirror") as caught:
        ask_mmdebstrap("trixie")
    assert "MIRROR" in caught.value.hint


def test_uris_are_normalised() -> None:
    assert clean_uri("file:///srv/debian/", "x") == clean_uri("copy:/srv/debian", "x") == "file:/srv/debian"
    assert beside("http://x.invalid/debian") == "http://x.invalid/debian-security"
    assert beside("http://x.invalid/archive/debian/2025Z") == "http://x.invalid/archive/debian-security/2025Z"
    assert Sources("http://x.invalid/debian", "", "t").uri("debian-security") == "http://x.invalid/debian-security"


def test_proxies_as_apt_chooses_them() -> None:
    settings = {"Acquire::http::Proxy": "http://p.invalid:1", "Acquire::http::proxy::near.invalid": "DIRECT"}
    assert find_proxy(settings, "http://far.invalid/x") == "http://p.invalid:1"
    assert find_proxy(settings, "https://far.invalid/x") == "http://p.invalid:1"
    assert find_proxy(settings, "http://near.invalid/x") == hostapt.DIRECT
    assert find_proxy({"Acquire::http::Proxy": "false"}, "http://x.invalid/") == hostapt.DIRECT
    assert find_proxy({}, "http://far.invalid/x") == ""


def test_a_missing_keyring_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_keyring(tmp_path / "none.gpg")
    assert "debian-archive-keyring" in caught.value.hint
