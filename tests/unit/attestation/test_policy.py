# SPDX-License-Identifier: Apache-2.0
"""The policy: no optional field, no unknown field, and the shipped profiles agree with their documentation."""

import base64
import copy
import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.policy import Policy, make_policy, read_policy
from sevsnp.attestation.profiles import DEFAULT, LEGACY_MILAN, PROFILES, STRICT
from sevsnp.attestation.report import GUEST_POLICY_BITS, PLATFORM_INFO_BITS
from sevsnp.attestation.rules import (
    AllSet,
    Anything,
    AtLeast,
    Bits,
    OneOf,
    TcbFloor,
    Unstated,
    comparison,
    show,
    show_rule,
)
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Tcb, read_vm_config, render_vm_config
from tests.support.evidence import REPORT_DATA, ROOT, config

HERE = Path("policy.toml")


def policy(document: dict[str, Any], **changes: Any) -> Policy:
    return make_policy(document, HERE, config(**changes), REPORT_DATA)


def own(**changes: Any) -> dict[str, Any]:
    """A policy that begins with no profile, and says everything itself."""
    return {**copy.deepcopy(dict(DEFAULT)), **changes}


def test_a_policy_without_a_profile_must_set_every_field() -> None:
    assert policy(own()).profile == "own"  # control
    for key in DEFAULT:
        document = own()
        del document[key]
        with pytest.raises(UserError, match=f"{key}: missing"):
            policy(document)
    for group, names in (("guest_policy_bits", GUEST_POLICY_BITS), ("platform_info", PLATFORM_INFO_BITS)):
        for name in names:
            document = own()
            del document[group][name]
            with pytest.raises(UserError, match=rf"{group}\.{name}: missing"):
                policy(document)


def test_report_data_is_given_once_and_is_not_zero() -> None:
    def bound(document: dict[str, Any], report_data: bytes | None) -> Any:
        return make_policy(document, HERE, config(), report_data).report_data

    said = {"profile": "default", "report_data": "ab" * 64}
    assert bound({"profile": "default"}, REPORT_DATA) == OneOf((REPORT_DATA,))
    assert bound(said, None) == OneOf((b"\xab" * 64,))
    free = {"profile": "default", "report_data": {"any": "a demonstration"}}
    assert bound(free, None) == Anything("a demonstration")
    assert bound(free, REPORT_DATA) == OneOf((REPORT_DATA,))
    for document, given in (
        ({"profile": "default"}, None), (said, REPORT_DATA), ({**said, "report_data": "00" * 64}, None),
        ({"profile": "default"}, bytes(64)), ({"profile": "default"}, b"short"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"(?i)report.data"):
            bound(document, given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": "lenient"}, "profile: found 'lenient'"),
        ({"profile": ["strict"]}, r"profile: found \['strict'\]"),
        ({"measurments": "vm-config"}, "measurments: found 'vm-config', expected no such field"),
        ({"vmpl": {"any": ""}}, "the reason"),
        ({"vmpl": {"any": True}}, "the reason"),
        ({"vmpl": {"any": "why", "at_least": 1}}, "the reason"),
        ({"vmpl": []}, "at least one value"),
        ({"vmpl": 4}, "vmpl: found 4"),
        ({"vmpl": True}, "vmpl: found True"),
        ({"vmpl": None}, "vmpl: found None"),
        ({"measurement": "00"}, "96 hex digits"),
        ({"measurement": {"at_least": "00" * 48}}, "no order"),
        ({"product": "Naples"}, "one of Milan, Genoa, Turin"),
        ({"signer": "none"}, "one of VCEK, VLEK"),
        ({"chip_id": "vm-config"}, "the VM config has none"),
        ({"chip_id": "ab" * 9}, "128 hex digits"),
        ({"firmware": {"at_least": "1.55"}}, "a version of 3 numbers"),
        ({"reported_tcb": {"snp": 1}}, "a table with"),
        ({"reported_tcb": {"bootloader": 1, "tee": 0, "snp": 256, "microcode": 0}}, "0 to 255"),
        ({"reported_tcb": {"bootloader": 1, "tee": 0, "snp": 2, "microcode": 0, "fmc": 1}}, "a table with"),
        ({"reported_tcb": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}}, "at least one number above 0"),
        ({"launch_mitigations": 0}, "launch_mitigations"),
        ({"guest_policy_bits": {"debug": True}}, "false: the host could read"),
        ({"guest_policy_bits": {"debug": {"any": "I am curious"}}}, "false: the host could read"),
        ({"guest_policy_bits": {"migrate_ma": True}}, "false: the host could move"),
        ({"guest_policy_bits": {"smt": 1}}, "true, false or"),
        ({"guest_policy_bits": {"turbo": True}}, "turbo: found True, expected no such bit"),
        ({"platform_info": {"any": "all of it"}}, "each of smt_en"),
        ({"platform_info": {"smt_en": True}}, "the VM config asks for what the policy forbids"),
        ({"revocation": "sometimes"}, "one of required"),
        ({"id_key": "nowhere.pem"}, r"nowhere\.pem"),
    ],
)
def test_wrong_fields_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    policy({"profile": "default"})  # control
    with pytest.raises(UserError, match=words):
        policy({"profile": "default", **changes})


def test_digests_are_read_as_hexadecimal_and_as_base64() -> None:
    digest, chip = bytes(range(48)), bytes(range(200, 208))
    ways = (digest.hex(), digest.hex().upper(), f"0x{digest.hex()}", f"0X{digest.hex().upper()}",
            base64.b64encode(digest).decode(), base64.urlsafe_b64encode(digest).decode().rstrip("="))  # fmt: skip
    for way in ways:
        assert policy({"profile": "default", "measurement": way, "id_key": way}).measurement == OneOf((digest,))
    for way in (chip.hex().upper(), base64.b64encode(chip).decode()):
        assert policy({"profile": "default", "chip_id": way}).chip_id == OneOf((chip.ljust(64, b"\0"),))
    assert policy({"profile": "default", "guest_policy": "0x3D0000"}).guest_policy == OneOf((0x3D0000,))
    for wrong in (digest.hex()[:-1], digest.hex() + "00", "0x" + digest.hex()[2:], digest.hex(":"), "é" * 96,
                  base64.b64encode(digest[1:]).decode(), "", "vmconfig"):  # fmt: skip
        with pytest.raises(UserError, match="96 hex digits"):
            policy({"profile": "default", "measurement": wrong})


def test_the_profile_strict_needs_chip_ids_and_a_minimum_tcb_from_the_owner() -> None:
    with pytest.raises(UserError, match=r"chip_id: missing \(the profile strict does not set it\)"):
        policy({"profile": "strict"})
    chips = {"profile": "strict", "chip_id": ["ab" * 64, "cd" * 8]}
    assert policy(chips).chip_id == OneOf((b"\xab" * 64, (b"\xcd" * 8).ljust(64, b"\0")))
    with pytest.raises(UserError, match="accepts any TCB version, expected a minimum"):
        policy(chips, minimum_tcb="any")
    for nothing in (None, Tcb(0, 0, 0, 0)):
        assert policy(chips, minimum_tcb=nothing).reported_tcb == Unstated(demanded=True)


def test_the_minimum_tcb_of_a_vm_config_sets_the_tcb_rules() -> None:
    for key in ("reported_tcb", "committed_tcb", "launch_tcb"):

        def rule(said: Any, document: dict[str, Any] | None = None, key: str = key) -> Any:
            return getattr(policy({"profile": "default", **(document or {})}, minimum_tcb=said), key)

        floor = Tcb(1, 0, 2, 3)
        assert rule(floor) == TcbFloor(floor)
        assert rule(None) == rule(Tcb(0, 0, 0, 0)) == Unstated(demanded=False)
        any_rule = rule("any")
        assert isinstance(any_rule, Anything) and "MIN_TCB=any" in any_rule.reason
        # A policy's own word goes before the VM config's.
        table = {"bootloader": 1, "tee": 0, "snp": 2, "microcode": 3}
        assert rule(None, {key: table}) == rule("any", {key: table}) == TcbFloor(floor)
        assert rule(None, {key: {"any": "a test"}}) == Anything("a test")


def test_a_weaker_profile_never_demands_more() -> None:
    """strict demands everything that default demands; default demands everything that legacy-milan demands."""

    def demanded(profile: Any, key: str) -> bool:
        return not (isinstance(profile[key], dict) and "any" in profile[key])

    for weaker, stronger in ((DEFAULT, STRICT), (LEGACY_MILAN, DEFAULT)):
        for key in set(weaker) & set(stronger):
            if isinstance(weaker[key], dict) and key in ("guest_policy_bits", "platform_info"):
                for bit in weaker[key]:
                    assert demanded(stronger[key], bit) or not demanded(weaker[key], bit), (key, bit)
                    if demanded(weaker[key], bit):
                        assert weaker[key][bit] == stronger[key][bit]
            else:
                assert demanded(stronger, key) or not demanded(weaker, key), key
    assert set(PROFILES) == {"strict", "default", "legacy-milan"}


def test_the_documentation_has_every_field_and_bit() -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    rows = set(re.findall(r"^\| `([a-z0-9_.]+)`", text, re.MULTILINE))
    fields = {field.name for field in dataclasses.fields(Policy)} - {"profile", "guest_policy_bits", "platform_info"}
    bits = {f"guest_policy_bits.{name}" for name in GUEST_POLICY_BITS} | {
        f"platform_info.{name}" for name in PLATFORM_INFO_BITS
    }
    assert rows == fields | bits
    # And what it says of each bit is what the profiles say.
    shown = {True: "1", False: "0"}
    for name in bits:
        group, bit = name.split(".")
        (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")][:3]
        said = [PROFILES[profile][group][bit] for profile in ("strict", "default", "legacy-milan")]
        assert cells == ["–" if isinstance(one, dict) else shown[one] for one in said], name


def test_rules_that_change_a_profile_are_named() -> None:
    assert policy({"profile": "default"}).profile == "default"
    made = policy({"profile": "default", "vmpl": [0, 1], "platform_info": {"tio_en": False}})
    assert made.profile == "default, with its own platform_info, vmpl"
    assert made.vmpl == OneOf((0, 1)) and made.platform_info.rules["tio_en"] == (7, False)
    assert PROFILES["default"]["platform_info"]["tio_en"] != False  # noqa: E712 - the profile itself is untouched


def test_the_platform_info_masks_of_the_vm_config_are_added() -> None:
    bits = policy({"profile": "default"}, platform_info_required=1 << 40, platform_info_forbidden=0x40).platform_info
    assert isinstance(bits, Bits) and bits.rules["bit_40"] == (40, True) and bits.rules["bit_6"] == (6, False)


def test_a_policy_in_the_vm_config_and_in_a_file(tmp_path: Path) -> None:
    said = {"profile": "default", "vmpl": [0, 1], "chip_id": {"any": 'a "reason"'}, "platform_info": {"tio_en": False}}
    made = dataclasses.replace(config(), source=tmp_path / "vm.toml", policy=said)
    made.source.write_text(render_vm_config(made))
    assert read_vm_config(made.source).policy == said
    assert "[policy" not in render_vm_config(dataclasses.replace(made, reference=None))  # a host bundle has none
    (tmp_path / "policy.toml").write_text('profile = "strict"\nchip_id = { any = "any of my machines" }\n')
    document = read_policy(tmp_path / "policy.toml")
    assert make_policy(document, tmp_path / "policy.toml", config(), REPORT_DATA).profile.startswith("strict")
    for content in (b"\xff", b"profile = "):
        (tmp_path / "policy.toml").write_bytes(content)
        with pytest.raises(UserError, match="not a policy file"):
            read_policy(tmp_path / "policy.toml")
    with pytest.raises(UserError, match="no such policy"):
        read_policy(tmp_path / "nowhere")


def test_each_kind_of_rule_judges_a_value() -> None:
    tcb = Tcb(1, 2, 3, 4)
    cases: list[tuple[Any, Any, bool]] = [
        (OneOf((1, 2)), 2, True), (OneOf((1, 2)), 3, False), (OneOf((b"a", b"b")), b"b", True),
        (OneOf((b"a",)), b"ab", False), (OneOf(("VCEK",)), "VCEK", True), (OneOf(("VCEK",)), None, False),
        (AtLeast(3), 3, True), (AtLeast(3), 2, False), (AtLeast((1, 55, 40)), (1, 56, 0), True),
        (AtLeast((1, 55, 40)), (1, 55, 39), False), (AtLeast(3), None, False), (AtLeast(3), b"3", False),
        (TcbFloor(tcb), tcb, True), (TcbFloor(tcb), Tcb(9, 2, 2, 9), False), (AllSet(5), 7, True),
        (AllSet(5), 6, False), (AllSet(1), None, False), (Anything("x"), None, True),
        (Unstated(demanded=False), tcb, False),
    ]  # fmt: skip
    for rule, value, wanted in cases:
        assert comparison(rule)(value) is wanted, (rule, value)
        assert show_rule(rule) and show(value)
    # Equal to Python, and not to people.
    assert [show_rule(OneOf((one,))) for one in (0, False, 1, True, 0x30000)] == ["0", "no", "1", "yes", "0x30000"]


def test_the_policy_section_that_feature_info_prints_is_valid() -> None:
    from sevsnp.commands.feature_info import policy_section
    from sevsnp.host_setup.platform_status import parse_status

    tcb = bytes((10, 0, 0, 0, 0, 0, 23, 84))
    status = parse_status(bytes((1, 55, 1, 1, 40, 0, 0, 0)) + bytes(8) + tcb + tcb, "Genoa")
    document = tomllib.loads(policy_section(status))["policy"]
    made = policy(document)
    assert made.reported_tcb == TcbFloor(Tcb(10, 0, 23, 84)) and made.firmware == AtLeast((1, 55, 40))
