# SPDX-License-Identifier: Apache-2.0
"""The owner's policy: for every field of a report an expected value, a floor, a set, or a don't-care with its reason.

The policy is the ``[policy]`` of a VM config or a file of its own. It either starts from a shipped profile or names
every field itself. A field without a rule is an error; its check is never skipped.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sevsnp.attestation import policy_values as values
from sevsnp.attestation import profiles
from sevsnp.attestation.profiles import VM_CONFIG, VM_CONFIG_IF_ANY
from sevsnp.attestation.report import GUEST_POLICY_BITS, NO_MIGRATION_AGENT, PLATFORM_INFO_BITS
from sevsnp.attestation.rules import AllSet, Anything, AtLeast, Bits, OneOf, Rule, TcbFloor, TcbFloors, Unstated, Value
from sevsnp.errors import UserError
from sevsnp.system import toml_loader
from sevsnp.vm_config.config import MinimumTcb, Tcb, VmConfig, making
from sevsnp.vm_config.floors import parse_floors

REPORT_DATA_SIZE = 64
NEVER = {"debug": "the host could read the guest", "migrate_ma": "the host could move the guest's state elsewhere"}
_TCBS = ("reported_tcb", "committed_tcb", "launch_tcb")
_REASON = 'a value, a list of values, or { any = "why it is not compared" }'


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """One rule for each value in a report; ``profile`` is the shipped profile that the policy starts from, or "own".

    :meth:`of` and :meth:`read` make a policy without a VM config.
    """

    profile: str
    report_version: Rule
    product: Rule
    signer: Rule
    csp: Rule
    mask_chip_key: Rule
    chip_id: Rule
    guest_policy: Rule
    guest_policy_bits: Bits
    guest_abi: Rule
    platform_info: Bits
    reported_tcb: Rule
    committed_tcb: Rule
    launch_tcb: Rule
    provisional_firmware: Rule
    firmware: Rule
    launch_mitigations: Rule
    vmpl: Rule
    guest_svn: Rule
    family_id: Rule
    image_id: Rule
    measurement: Rule
    host_data: Rule
    id_key: Rule
    author_key: Rule
    report_id: Rule
    migration_agent: Rule
    report_data: Rule
    revocation: Rule

    @classmethod
    def of(cls, profile: str = "default", *, place: Path = Path("policy"), **fields: Any) -> "Policy":
        """A policy that states the guest itself: ``fields`` are those of a policy file, in the same forms.

        ``measurement`` (48 bytes) and ``report_data`` (64 bytes) must be there, also as ``bytes``; ``minimum_tcb`` is
        for all three TCB versions. A PEM file of an ID key is looked for beside ``place``. Raises :class:`UserError`.
        """
        return make_policy({"profile": profile, **{key: _as_text(value) for key, value in fields.items()}}, place, None)

    @classmethod
    def read(cls, path: Path, **fields: Any) -> "Policy":
        """A policy file without a VM config; ``fields`` replace what it says. Raises :class:`UserError`."""
        changed = {key: _as_text(value) for key, value in fields.items()}
        return make_policy({**read_policy(path), **changed}, path, None)


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value


def read_policy(path: Path) -> dict[str, Any]:
    """Read a policy file (TOML). Raises :class:`UserError`."""
    try:
        return toml_loader.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such policy file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a policy file: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not a policy file: {error}") from error


def make_policy(
    document: Mapping[str, Any], source: Path, config: VmConfig | None, report_data: bytes | None = None
) -> Policy:
    """Make the policy for a VM config's guest from ``document``; without a VM config, ``document`` states the guest.

    ``report_data`` (64 bytes) is the REPORT_DATA that the verifier asked for. Raises :class:`UserError` for a field
    that is missing, is unknown or contradicts another one.
    """
    return _Reader(document, source, config, report_data).policy()


class _Reader:
    def __init__(
        self, document: Mapping[str, Any], source: Path, config: VmConfig | None, report_data: bytes | None
    ) -> None:
        self.source, self.config, self.report_data = source, config, report_data
        given = dict(document)
        self.profile = given.pop("profile", "own")
        if self.profile not in ("own", *profiles.PROFILES):  # a list in a file has no hash
            raise self.error("profile", self.profile, f"one of {', '.join(profiles.PROFILES)}")
        base = profiles.PROFILES.get(self.profile, {})
        if config is None:
            base = profiles.without_vm_config(base)
        if "minimum_tcb" in given:
            minimum = given.pop("minimum_tcb")
            given = {**dict.fromkeys(_TCBS, minimum), **given}
        if "tcb_floors" in given:
            dated = self.dated(given.pop("tcb_floors"))
            given = {**dict.fromkeys(_TCBS, dated), **given}
        for key in ("guest_policy_bits", "platform_info"):
            # A document may state a single bit; the profile states the others.
            if isinstance(given.get(key), dict) and isinstance(base.get(key), dict) and "any" not in given[key]:
                given[key] = {**base[key], **given[key]}
        self.values = {**base, **given}
        self.overridden = sorted(set(given) & set(base)) if base else []

    def error(self, key: str, found: Any, expected: str) -> UserError:
        return UserError(f"{self.source}: policy: {key}: found {found!r}, expected {expected}")

    def policy(self) -> Policy:
        own = _values_of(self.config)
        integer = values.integers
        rules: dict[str, Any] = {
            "report_version": self.rule("report_version", integer(2, 5)),
            "product": self.rule("product", values.words("Milan", "Genoa", "Turin")),
            "signer": self.rule("signer", values.words("VCEK", "VLEK")),
            "csp": self.rule("csp", values.text),
            "mask_chip_key": self.rule("mask_chip_key", values.boolean),
            "chip_id": self.rule("chip_id", values.bytes_of(64, pad_from=8)),
            "guest_policy": self.rule("guest_policy", integer(0, (1 << 64) - 1), own.get("guest_policy")),
            "guest_policy_bits": self.bits("guest_policy_bits", GUEST_POLICY_BITS, 0, 0),
            "guest_abi": self.rule("guest_abi", values.version(2)),
            "platform_info": self.bits(
                "platform_info", PLATFORM_INFO_BITS, own.get("required", 0), own.get("forbidden", 0)
            ),
            **{key: self.tcb(key, own.get("minimum_tcb")) for key in _TCBS},
            "provisional_firmware": self.rule("provisional_firmware", values.boolean),
            "firmware": self.rule("firmware", values.version(3)),
            "launch_mitigations": self.mask("launch_mitigations"),
            "vmpl": self.rule("vmpl", integer(0, 3), own.get("vmpl")),
            "guest_svn": self.rule("guest_svn", integer(0, (1 << 32) - 1), own.get("guest_svn")),
            "family_id": self.rule("family_id", values.bytes_of(16), own.get("family_id")),
            "image_id": self.rule("image_id", values.bytes_of(16), own.get("image_id")),
            "measurement": self.rule("measurement", values.bytes_of(48), own.get("measurement")),
            "host_data": self.rule("host_data", values.bytes_of(32), own.get("host_data")),
            "id_key": self.rule("id_key", self.key, own.get("id_key")),
            "author_key": self.rule("author_key", self.key, own.get("author_key")),
            "report_id": self.rule("report_id", values.bytes_of(32)),
            "migration_agent": self.rule("migration_agent", values.bytes_of(32, none=NO_MIGRATION_AGENT)),
            "report_data": self.bound(),
            "revocation": self.rule("revocation", values.words("required")),
        }
        assert set(rules) == {field.name for field in fields(Policy)} - {"profile"}
        if self.values:
            raise self.error(next(iter(self.values)), next(iter(self.values.values())), "no such field")
        changed = f", with its own {', '.join(self.overridden)}" if self.overridden else ""
        return Policy(profile=f"{self.profile}{changed}", **rules)

    def take(self, key: str) -> Any:
        if key not in self.values:
            why = "" if self.profile == "own" else f" (the profile {self.profile} does not set it)"
            raise UserError(f"{self.source}: policy: {key}: missing{why}", f"say {_REASON}")
        return self.values.pop(key)

    def rule(self, key: str, parse: Callable[[Any], Value], own: Value | None = None) -> Rule:
        """The rule for ``key``; ``own`` is the VM config's value, which the word vm-config stands for."""
        value = self.take(key)
        if reason := self.any_reason(key, value):
            return Anything(reason)
        if isinstance(value, dict) and set(value) == {"at_least"}:
            floor = self.parsed(key, parse, value["at_least"])
            if isinstance(floor, bool | str | bytes):
                raise self.error(key, value, "a list, because these values have no order")
            return AtLeast(floor)
        items = value if isinstance(value, list) else [value]
        if not items:
            raise self.error(key, value, "at least one value")
        found: list[Value] = []
        for item in items:
            if item == VM_CONFIG:
                if own is None:
                    raise self.error(key, item, "a value: the VM config has none")
                found.append(own)
            else:
                found.append(self.parsed(key, parse, item))
        return OneOf(tuple(found))

    def parsed(self, key: str, parse: Callable[[Any], Value], item: Any) -> Value:
        try:
            return parse(item)
        except ValueError as error:
            raise self.error(key, item, str(error)) from None

    def any_reason(self, key: str, value: Any) -> str:
        if not isinstance(value, dict) or "any" not in value:
            return ""
        reason = value["any"]
        if set(value) != {"any"} or not isinstance(reason, str) or len(reason.strip()) < 3:
            raise self.error(key, value, '{ any = "the reason" }')
        return reason

    def bits(self, key: str, names: Mapping[str, int], required: int, forbidden: int) -> Bits:
        value = self.take(key)
        if not isinstance(value, dict) or "any" in value:
            raise self.error(key, value, f"each of {', '.join(names)}: true, false or {{ any = … }}")
        value = dict(value)
        rules: dict[str, tuple[int, bool | Anything]] = {}
        for name, position in names.items():
            if name not in value:
                raise UserError(f"{self.source}: policy: {key}.{name}: missing", "write true, false or { any = … }")
            said = value.pop(name)
            rule = Anything(reason) if (reason := self.any_reason(f"{key}.{name}", said)) else said
            if not isinstance(rule, bool | Anything):
                raise self.error(f"{key}.{name}", said, "true, false or { any = … }")
            if key == "guest_policy_bits" and name in NEVER and rule is not False:
                raise self.error(f"{key}.{name}", said, f"false: {NEVER[name]}")
            rules[name] = (position, rule)
        if value:
            raise self.error(f"{key}.{next(iter(value))}", next(iter(value.values())), "no such bit")
        return Bits(self.with_masks(key, rules, required, forbidden))

    def with_masks(
        self, key: str, rules: dict[str, tuple[int, bool | Anything]], required: int, forbidden: int
    ) -> dict[str, tuple[int, bool | Anything]]:
        """``rules`` and the VM config's masks, which may contain bits that have no name yet."""
        by_position = {position: name for name, (position, _) in rules.items()}
        for position in range(64):
            asked = [wanted for mask, wanted in ((required, True), (forbidden, False)) if mask >> position & 1]
            name = by_position.get(position, f"bit_{position}")
            before = rules.get(name, (position, None))[1]
            if len(asked) == 2 or (asked and isinstance(before, bool) and before is not asked[0]):
                raise UserError(f"{self.source}: {key}.{name}: the VM config asks for what the policy forbids")
            if asked:
                rules[name] = (position, asked[0])
        return rules

    def tcb(self, key: str, own: MinimumTcb) -> Rule:
        """The floor for ``key``; ``own`` is the VM config's floor. The appraisal judges a missing floor."""
        value = self.take(key)
        if isinstance(value, TcbFloors):
            return value
        if reason := self.any_reason(key, value):
            return Anything(reason)
        if value in (VM_CONFIG, VM_CONFIG_IF_ANY):
            if isinstance(own, tuple):
                return TcbFloors(own)
            if own is None or (own != "any" and own.is_zero()):
                return Unstated(demanded=value == VM_CONFIG)
            if own != "any":
                return TcbFloor(own)
            if value == VM_CONFIG_IF_ANY:
                return Anything("the VM config accepts any TCB version (MIN_TCB=any)")
            raise UserError(
                f"{self.source}: policy: {key}: the VM config accepts any TCB version, expected a minimum",
                f"make the VM config again: {self.making()} MIN_TCB=PARTS",
            )
        if isinstance(value, list) or (isinstance(value, dict) and "cpuid" in value):
            try:
                return TcbFloors(parse_floors(value if isinstance(value, list) else [value]))
            except ValueError as error:
                raise self.error(key, value, str(error)) from None
        parts = ("bootloader", "tee", "snp", "microcode", *(["fmc"] if self.is_turin(value) else []))
        if not isinstance(value, dict) or set(value) != set(parts):
            raise self.error(
                key, value, f"a table with {', '.join(parts)}, a list of such tables with cpuid, or {_REASON}"
            )
        for name, number in value.items():
            if type(number) is not int or not 0 <= number <= 255:
                raise self.error(f"{key}.{name}", number, "a number from 0 to 255")
        floor = Tcb(**value)
        if floor.is_zero():
            raise self.error(key, value, 'at least one number above 0, or { any = "the reason" }')
        return TcbFloor(floor)

    def dated(self, value: Any) -> TcbFloors:
        """The floors in a signed file beside the policy: ``{ file = "…", key = "…" }``."""
        from sevsnp.attestation.floors_file import read_floors

        if (
            not isinstance(value, dict)
            or set(value) != {"file", "key"}
            or not all(isinstance(one, str) for one in value.values())
        ):
            raise self.error("tcb_floors", value, '{ file = "FILE", key = "PUBLIC_KEY.pem" }')
        path = self.source.parent / value["file"]
        found = read_floors(path, self.source.parent / value["key"])
        source = f"{path.name}, edition {found.version} of {found.issued}, which ends on {found.expires}"
        return TcbFloors(found.floors, source, found.end)

    def is_turin(self, floor: Any) -> bool:
        """Whether a floor has Turin's layout: that of the VM config's product, or without a VM config its own."""
        return self.config.launch.product == "Turin" if self.config else isinstance(floor, dict) and "fmc" in floor

    def making(self) -> str:
        return making(self.config.source, self.config.launch.workflow) if self.config else ""

    def mask(self, key: str) -> Rule:
        value = self.take(key)
        if reason := self.any_reason(key, value):
            return Anything(reason)
        mask = self.parsed(key, values.integers(1, (1 << 64) - 1), value)
        assert isinstance(mask, int)
        return AllSet(mask)

    def bound(self) -> Rule:
        """The rule for REPORT_DATA: the value that the verifier asked for, or else the policy's."""
        if self.report_data is None:
            if "report_data" not in self.values:
                raise UserError(
                    f"{self.source}: policy: report_data: missing, and no nonce was given for this verification",
                    "give it: --nonce HEX with every --host-key FILE of the guest, or --report-data HEX",
                )
            rule = self.rule("report_data", values.bytes_of(REPORT_DATA_SIZE))
        else:
            if "report_data" in self.values and not self.any_reason("report_data", self.values.pop("report_data")):
                raise UserError(
                    f"{self.source}: policy: report_data: found twice, expected in the policy or for this verification"
                )
            rule = OneOf((self.report_data,))
        # A report that the host itself requests has REPORT_DATA zero, so a policy that expects zero binds nothing.
        bound = rule.values if isinstance(rule, OneOf) else ()
        if not all(isinstance(one, bytes) and len(one) == REPORT_DATA_SIZE and any(one) for one in bound):
            raise UserError("expected REPORT_DATA: 64 bytes, not all zero")
        return rule

    def key(self, item: Any) -> bytes:
        """The digest of an ID or author key: given in hex, or computed from a PEM file; zero for the word none."""
        if isinstance(item, str) and item.endswith(".pem"):
            from sevsnp.measurement.id_block import key_digest_of

            return key_digest_of(self.source.parent / item)
        return values.bytes_of(48, none=bytes(48))(item)


def _values_of(config: VmConfig | None) -> dict[str, Any]:
    """What a VM config states for a policy, by the policy's names; empty without a VM config."""
    if config is None:
        return {}
    launch, reference = config.launch, config.require_reference()
    return {
        "guest_policy": launch.guest_policy, "host_data": launch.host_data, "measurement": reference.launch_digest,
        "id_key": reference.id_key_digest, "author_key": reference.author_key_digest,
        "required": reference.platform_info_required, "forbidden": reference.platform_info_forbidden,
        **{key: getattr(reference, key) for key in ("minimum_tcb", "vmpl", "guest_svn", "family_id", "image_id")},
    }  # fmt: skip
