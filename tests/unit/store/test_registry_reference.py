# SPDX-License-Identifier: Apache-2.0
"""The address of a shared cache, and the messages about it."""

import pytest

from sevsnp.errors import UserError
from sevsnp.store.oci_reference import Reference, clean, is_loopback, parse_reference

GOOD = {
    "oci://registry.example.org/cache": ("https", "registry.example.org", "cache"),
    "oci://registry.example.org:5000/team/some_project/build-cache": (
        "https", "registry.example.org:5000", "team/some_project/build-cache",
    ),
    "oci://registry/a.b__c--d": ("https", "registry", "a.b__c--d"),
    "oci://127.0.0.1:5000/cache": ("http", "127.0.0.1:5000", "cache"),
    "oci://127.8.9.10/cache": ("http", "127.8.9.10", "cache"),
    "oci://localhost:5000/cache": ("http", "localhost:5000", "cache"),
    "oci://[::1]:5000/cache": ("http", "[::1]:5000", "cache"),
    "oci://[2001:db8::1]/cache": ("https", "[2001:db8::1]", "cache"),
    # What looks like loopback and need not be.
    "oci://localhost.example.org/cache": ("https", "localhost.example.org", "cache"),
    "oci://127.0.0.1.example.org/cache": ("https", "127.0.0.1.example.org", "cache"),
    "oci://127.1/cache": ("https", "127.1", "cache"),
    "oci://[::ffff:127.0.0.1]/cache": ("https", "[::ffff:127.0.0.1]", "cache"),
    "oci://10.0.0.1:5000/cache": ("https", "10.0.0.1:5000", "cache"),
}  # fmt: skip
BAD = (
    "", "oci://", "oci://registry", "oci://registry/", "registry/cache", "https://registry/cache", "OCI://registry/cache",
    "oci:registry/cache", "oci:///cache", "oci://user:secret@registry/cache", "oci://user@registry/cache",
    "oci://registry/cache:tag", "oci://registry/cache@sha256:0", "oci://registry/Cache", "oci://Registry/cache",
    "oci://registry/a//b", "oci://registry/a/", "oci://registry/../a", "oci://registry/.a", "oci://registry/a..b",
    "oci://registry:0/cache", "oci://registry:65536/cache", "oci://registry:x/cache", "oci://registry:/cache",
    "oci://registry/cache?x", "oci://registry/cache#x", "oci://registry/ca che", "oci://registry/cache\n",
    "oci://[::g]/cache", "oci://[127.0.0.1]/cache", "oci://::1/cache", "oci://-a/cache", "oci://a..b/cache",
    "oci://registry\\@evil/cache", "oci://b\u00fccher/cache", "oci://registry/" + 256 * "a",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_references(text: str) -> None:
    assert parse_reference(text) == Reference(*GOOD[text])
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize("text", BAD)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected oci://") as refused:
        parse_reference(text)
    assert "secret" not in str(refused.value)


def test_only_loopback_addresses_count_as_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.255.255.255", "::1", "[::1]")))
    others = ("", "0.0.0.0", "128.0.0.1", "127.1", "2130706433", "::", "::2", "::ffff:127.0.0.1", "localhost.", "local")
    assert not any(map(is_loopback, others))


def test_text_of_a_registry_becomes_one_printable_line() -> None:
    assert clean("a\r\n\x1b[31mb\u202e\0c ") == "a [31mb c"
    assert clean("x" * 1000) == "x" * 199 + "…"


def test_the_registry_client_is_not_imported_before_it_is_needed() -> None:
    import subprocess
    import sys

    script = (
        "import sys, sevsnp.store.registry as r; r.Registry(r.parse_reference('oci://127.0.0.1:1/x'))\n"
        "print([name for name in ('requests', 'oras', 'urllib3', 'zstandard', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
