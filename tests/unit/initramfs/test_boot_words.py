# SPDX-License-Identifier: Apache-2.0
"""How the guest reads its command line: it reads what the owner's tools write, and stops at anything else."""

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sevsnp.settings.values import data_path, dns_servers
from sevsnp.vm_config.cmdline import build_cmdline, luks_words, verity_words
from tests.support.evidence import load_script
from tests.support.replacing import replaced_once
from tests.support.texts import UNICODE

boot_words = load_script(Path(__file__).parents[3] / "initramfs" / "boot_words.py")

ROOT, SALT = "0123456789abcdef" * 4, "fedcba9876543210" * 4
TABLE = f"1:4096:4096:60672:0:sha256:{ROOT}:{SALT}"
SIZES = {"etc": 1 << 30, "home": 8 << 30, "var": 2 << 30, "tmp": 1 << 30}
VERITY = f"sevsnp.verity={TABLE}"
TMPFS = "sevsnp.tmpfs=etc:1073741824,home:8589934592,var:2147483648,tmp:1073741824"
OWN = ["sevsnp.mode=verity", VERITY, "sevsnp.rootfs=ext4", "sevsnp.writable=overlay", TMPFS]
LINE = " ".join(["console=ttyS0", "acpi=off", *OWN])


def words(line: str) -> Any:
    return boot_words.Words(line)


def built(**changes: Any) -> str:
    values = {"table": TABLE, "rootfs": "ext4", "writable": "overlay", "tmpfs": SIZES, "acpi": False, "emulated": False}
    return build_cmdline(word.text for word in verity_words(**{**values, **changes}))


@pytest.mark.parametrize("rootfs", ["ext4", "erofs"])
@pytest.mark.parametrize("writable", ["overlay", "copy"])
@pytest.mark.parametrize("acpi", [True, False])
@pytest.mark.parametrize("emulated", [True, False])
def test_init_reads_the_command_line_that_the_builder_writes(
    rootfs: str, writable: str, acpi: bool, emulated: bool
) -> None:
    line = built(rootfs=rootfs, writable=writable, acpi=acpi, emulated=emulated)
    for shown in (line, f"{line} initrd=initrd\n"):  # with what the firmware adds, as /proc/cmdline ends
        found = words(shown)
        assert (found.mode, found.rootfs, found.writable) == ("verity", rootfs, writable)
        assert (found.acpi, found.emulated) == (acpi, emulated)
        assert found.tmpfs == SIZES
        assert (found.verity["root"], found.verity["salt"], found.verity["blocks"]) == (ROOT, SALT, "60672")


def test_the_verity_table_has_both_panic_options() -> None:
    assert boot_words.verity_table(words(LINE).verity, "/dev/vda", "/dev/vdb") == (
        f"0 {60672 * 8} verity 1 /dev/vda /dev/vdb 4096 4096 60672 0 sha256 {ROOT} {SALT} "
        "2 panic_on_corruption panic_on_error"
    )


def test_the_line_of_these_tests_is_accepted() -> None:
    """Control for the tests below, which change this line."""
    assert words(LINE).mode == "verity"


@pytest.mark.parametrize("missing", OWN)
def test_a_missing_word_is_refused_by_name(missing: str) -> None:
    line = LINE.replace(f" {missing}", "")
    with pytest.raises(boot_words.BadCommandLine, match=rf"{missing.partition('=')[0]} is missing"):
        words(line)


@pytest.mark.parametrize("doubled", [*OWN, "sevsnp.emulated=1"])
@pytest.mark.parametrize("other", [None, ""])
def test_a_doubled_word_is_refused_whatever_its_value(doubled: str, other: "str | None") -> None:
    name = doubled.partition("=")[0]
    line = LINE if doubled in LINE else f"{LINE} {doubled}"
    for one in (f"{line} {doubled if other is None else name + '='}", f"{name}= {line}"):
        with pytest.raises(boot_words.BadCommandLine, match=f"{name} given twice"):
            words(one)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ROOT, ROOT.upper()),
        (ROOT, ROOT[:-1]),
        (ROOT, ROOT + "0"),
        (ROOT, ""),
        (SALT, "-"),
        (SALT, SALT + ":1:ignore_corruption"),
        ("1:4096", "0:4096"),
        ("4096:4096", "4096:1024"),
        ("4096:4096", "512:4096"),
        (":60672:", ":0:"),
        (":60672:", ":060672:"),
        (":60672:", ":-1:"),
        (":60672:", ":+60672:"),
        (":60672:", ":6_0672:"),
        (":60672:", ":9999999999999:"),
        ("sha256", "sha1"),
        ("sha256", "sha512"),
        ("mode=verity", "mode=plain"),
        ("mode=verity", "mode=Verity"),
        ("mode=verity", "mode="),
        ("mode=verity", "mode"),
        ("sevsnp.mode=verity", "sevsnp.mode=verity,plain"),
        ("rootfs=ext4", "rootfs=btrfs"),
        ("rootfs=ext4", "rootfs=ext4|erofs"),
        ("writable=overlay", "writable=yes"),
        ("etc:1073741824", "etc:0"),
        ("etc:1073741824", "etc:1G"),
        ("etc:1073741824", "etc:100%"),
        ("etc:1073741824", "etc:1,mode=0777"),
        ("etc:1073741824,home", "home:1,home"),
        ("etc:1073741824,", ""),
        (",tmp:1073741824", ",tmp:1073741824,root:1"),
        (TMPFS, f"{TMPFS} sevsnp.emulated=0"),
        (TMPFS, f"{TMPFS} sevsnp.emulated"),
        (TMPFS, f"{TMPFS} sevsnp.shell=1"),
        (TMPFS, f"{TMPFS} sevsnp."),
        (TMPFS, f"{TMPFS} sevsnp.mode.x=verity"),
        (TMPFS, f"{TMPFS} --"),
        (TMPFS, f"{TMPFS} -- sevsnp.debug=1"),
        (VERITY, f'"{VERITY}"'),
        (VERITY, f"'{VERITY}'"),
        (VERITY, f'x="a {VERITY}"'),
        ("console=ttyS0", 'console="ttyS0"'),
        ("console=ttyS0", "console=tty\\S0"),
        ("console=ttyS0", "console=tty\0"),
        ("console=ttyS0", "console=tty\u00e4"),
        ("60672", "\u0666\u0660\u0666\u0667\u0662"),
        (VERITY, VERITY.replace(":0:sha256", "::sha256")),
    ],
)
def test_a_changed_word_is_refused(old: str, new: str) -> None:
    line = replaced_once(LINE, old, new)
    with pytest.raises(boot_words.BadCommandLine) as refused:
        words(line)
    assert str(refused.value)


def test_an_empty_line_is_refused() -> None:
    with pytest.raises(boot_words.BadCommandLine):
        words("")


@given(st.data())
def test_a_line_cut_off_anywhere_is_refused(data: st.DataObject) -> None:
    # The tmpfs sizes are the last word, and a shorter number is a number: cut before them.
    cut = data.draw(st.integers(0, LINE.index("tmp:1073741824") + len("tmp:")))
    with pytest.raises(boot_words.BadCommandLine):
        words(LINE[:cut])


@given(st.text(UNICODE, max_size=300))
@example(LINE)
def test_any_text_is_read_as_written_or_refused(text: str) -> None:
    try:
        found = words(text)
    except boot_words.BadCommandLine:
        return
    own = [word for word in text.split() if word.startswith("sevsnp.")]
    assert sorted(word.partition("=")[0] for word in own if "emulated" not in word) == sorted(
        word.partition("=")[0] for word in OWN
    )
    assert f"sevsnp.rootfs={found.rootfs}" in own


@given(st.lists(st.sampled_from([*OWN, "sevsnp.emulated=1", "sevsnp.x=1", "quiet", "--", VERITY.replace("0", "1")])))
def test_words_may_have_any_order_and_each_occurs_once(chosen: list[str]) -> None:
    names = [word.partition("=")[0] for word in chosen if word.startswith("sevsnp.")]
    wanted = {word.partition("=")[0] for word in OWN}
    good = (
        len(set(names)) == len(names) and set(names) - {"sevsnp.emulated"} == wanted
        and "--" not in chosen and VERITY.replace("0", "1") not in chosen
    )  # fmt: skip
    if good:
        assert words(" ".join(chosen)).mode == "verity"
    else:
        with pytest.raises(boot_words.BadCommandLine):
            words(" ".join(chosen))


OWNER = base64.b64encode(bytes(range(201))).decode()
DIGEST, TABLES = "ab" * 32, "cd" * 32
LUKS = f"sevsnp.luks=1:1048576:{DIGEST}:{TABLES}"
LUKS_OWN = ["sevsnp.mode=luks", LUKS, "sevsnp.rootfs=ext4", f"sevsnp.owner={OWNER}"]
LUKS_LINE = " ".join(["console=ttyS0", "acpi=off", *LUKS_OWN])


def test_the_encrypted_root_s_line_is_accepted() -> None:
    """Control for the tests below, which change this line."""
    found = words(LUKS_LINE)
    assert (found.mode, found.rootfs, found.emulated, found.acpi) == ("luks", "ext4", False, False)
    assert found.luks == {"header_bytes": "1048576", "header": DIGEST, "tables": TABLES}
    assert found.owner == bytes(range(201))
    assert (found.verity, found.tmpfs, found.writable) == ({}, {}, "")
    assert words(f"{LUKS_LINE} sevsnp.emulated=1").emulated


@pytest.mark.parametrize("reports", ["closed", "open"])
def test_the_word_for_an_open_report_interface_is_read(reports: str) -> None:
    made = luks_words(
        header=f"1048576:{DIGEST}", tables=TABLES, owner=OWNER, acpi=False, emulated=False, reports=reports
    )
    assert words(build_cmdline(word.text for word in made)).reports == (reports == "open")


def test_the_verified_guest_refuses_the_word_for_the_report_interface() -> None:
    assert words(LINE).reports and not words(LUKS_LINE).reports
    for line in (f"{LINE} sevsnp.reports=open", f"{LUKS_LINE} sevsnp.reports=closed", f"{LUKS_LINE} sevsnp.reports"):
        with pytest.raises(boot_words.BadCommandLine, match="reports"):
            words(line)


@pytest.mark.parametrize("line", [LINE, LUKS_LINE])
@pytest.mark.parametrize("servers", ["10.0.2.3", "192.0.2.1,2001:db8::1", "::1,::2,::3"])
def test_dns_servers_are_taken_as_written(line: str, servers: str) -> None:
    assert dns_servers(servers) == servers
    assert words(f"{line} sevsnp.dns={servers}").dns == servers.split(",")
    assert words(line).dns == []


def test_the_builder_writes_dns_servers_for_both_roots() -> None:
    made = luks_words(
        header=f"1048576:{DIGEST}", tables=TABLES, owner=OWNER, acpi=False, emulated=False, dns="192.0.2.1"
    )
    for line in (built(dns="192.0.2.1"), build_cmdline(word.text for word in made)):
        assert words(line).dns == ["192.0.2.1"]
    assert "dns" not in built()


@pytest.mark.parametrize(
    "servers",
    ["", ",", "dhcp", "192.0.2.1,", "192.0.2.01", "192.0.2.256", "192.0.2", "2001:DB8::1", "2001:db8:0::1", "fe80::1%e",
     "::1,::1", "::1,::2,::3,::4", "192.0.2.1;x", "192.0.2.1\\n", "a.example", "1"],
)  # fmt: skip
def test_malformed_dns_servers_are_refused(servers: str) -> None:
    for line in (LINE, LUKS_LINE):
        with pytest.raises(boot_words.BadCommandLine):
            words(f"{line} sevsnp.dns={servers}")


@pytest.mark.parametrize("acpi", [True, False])
@pytest.mark.parametrize("emulated", [True, False])
def test_init_reads_the_encrypted_command_line_that_the_builder_writes(acpi: bool, emulated: bool) -> None:
    header = f"1048576:{DIGEST}"
    made = luks_words(header=header, tables=TABLES, owner=OWNER, acpi=acpi, emulated=emulated)
    line = build_cmdline(word.text for word in made)
    found = words(f"{line} initrd=initrd\n")
    assert (found.mode, found.luks["header"], found.owner) == ("luks", DIGEST, bytes(range(201)))
    assert (found.acpi, found.emulated) == (acpi, emulated)


@pytest.mark.parametrize("missing", LUKS_OWN)
def test_a_missing_word_of_the_encrypted_root(missing: str) -> None:
    with pytest.raises(boot_words.BadCommandLine, match=rf"{missing.partition('=')[0]} is missing"):
        words(LUKS_LINE.replace(f" {missing}", ""))


@pytest.mark.parametrize("doubled", LUKS_OWN)
def test_a_doubled_word_of_the_encrypted_root(doubled: str) -> None:
    with pytest.raises(boot_words.BadCommandLine, match=f"{doubled.partition('=')[0]} given twice"):
        words(f"{LUKS_LINE} {doubled}")


@pytest.mark.parametrize("other", [VERITY, "sevsnp.writable=overlay", TMPFS])
def test_no_word_of_the_verified_root_beside_the_encrypted_one(other: str) -> None:
    with pytest.raises(boot_words.BadCommandLine, match=rf"{other.partition('=')[0]} is no word of sevsnp.mode=luks"):
        words(f"{LUKS_LINE} {other}")


def test_no_word_of_the_encrypted_root_beside_the_verified_one() -> None:
    with pytest.raises(boot_words.BadCommandLine, match=r"sevsnp\.luks is no word of sevsnp\.mode=verity"):
        words(f"{LINE} {LUKS}")


DATA = f"sevsnp.data=1:1048576:{'1' * 64}:{'2' * 64}:/var/lib/docker"


@pytest.mark.parametrize("path", ["/srv", "/var/lib/docker", "/opt/a-b/c.d/e_f"])
def test_init_reads_the_data_disk_that_the_builder_writes(path: str) -> None:
    assert data_path(path) == path
    found = words(built(data=f"1048576:{'1' * 64}:{'2' * 64}:{path}", owner=OWNER))
    assert found.data == {"header_bytes": "1048576", "header": "1" * 64, "tables": "2" * 64, "path": path}
    assert found.mode == "verity" and found.owner and not found.luks
    assert words(built()).data == {} and words(built()).owner == b""  # control: without the disk


def test_the_data_disk_changes_no_other_word_of_the_command_line() -> None:
    more = f" sevsnp.data=1:x sevsnp.owner={OWNER}"
    assert replaced_once(built(data="x", owner=OWNER), more, "") == built()


@pytest.mark.parametrize("missing", ["data", "owner"])
def test_a_data_disk_without_its_owner_is_refused_and_the_reverse(missing: str) -> None:
    both = {"data": DATA, "owner": f"sevsnp.owner={OWNER}"}
    assert words(f"{LINE} {' '.join(both.values())}").data  # control
    del both[missing]
    with pytest.raises(boot_words.BadCommandLine, match=rf"sevsnp\.{missing} is missing"):
        words(f"{LINE} {' '.join(both.values())}")


@pytest.mark.parametrize(
    "path", ["", "srv", "/", "/srv/", "//srv", "/srv/..", "/../srv", "/.srv", "/a:b", "/a,b", "/é", "/a\\b"]
)
def test_other_mount_points_are_refused(path: str) -> None:
    with pytest.raises(boot_words.BadCommandLine):
        words(f"{LINE} {DATA.replace('/var/lib/docker', path)} sevsnp.owner={OWNER}")
    with pytest.raises(ValueError):
        data_path(path)


def test_a_data_disk_with_an_encrypted_root_is_refused() -> None:
    with pytest.raises(boot_words.BadCommandLine, match=r"sevsnp\.data is no word of sevsnp\.mode=luks"):
        words(f"{LUKS_LINE} {DATA}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode=luks", "mode=verity"),
        ("mode=luks", "mode=luks|verity"),
        ("mode=luks", "mode=LUKS"),
        ("rootfs=ext4", "rootfs=erofs"),
        ("rootfs=ext4", "rootfs=xfs"),
        ("luks=1:", "luks=0:"),
        ("luks=1:", "luks=2:"),
        (":1048576:", ":0:"),
        (":1048576:", ":512:"),
        (":1048576:", ":01048576:"),
        (":1048576:", ":999999999:"),
        (":1048576:", ":-1048576:"),
        (":1048576:", ":1M:"),
        (DIGEST, DIGEST.upper()),
        (DIGEST, DIGEST[:-1]),
        (DIGEST, ""),
        (TABLES, TABLES + "0"),
        (f":{TABLES}", ""),
        (f":{TABLES}", f":{TABLES}:x"),
        (OWNER, OWNER[:-4]),
        (OWNER, OWNER + "AAAA"),
        (OWNER, ""),
        (OWNER, "=" + OWNER[1:]),
        (OWNER, OWNER[:-1] + "="),
        (OWNER, "-" + OWNER[1:]),
        (OWNER, "." + OWNER[1:]),
    ],
)
def test_a_changed_word_of_the_encrypted_root(old: str, new: str) -> None:
    line = replaced_once(LUKS_LINE, old, new)
    with pytest.raises(boot_words.BadCommandLine) as refused:
        words(line)
    assert str(refused.value)


@given(st.data())
def test_a_line_of_the_encrypted_root_cut_off_anywhere(data: st.DataObject) -> None:
    with pytest.raises(boot_words.BadCommandLine):
        words(LUKS_LINE[: data.draw(st.integers(0, len(LUKS_LINE) - 1))])
