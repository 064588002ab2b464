# SPDX-License-Identifier: Apache-2.0
"""What a host's kernel log says about SEV-SNP: upstream's messages, and those of AMD's older trees.

Sources: Linux arch/x86/virt/svm/sev.c (SEV-SNP:), drivers/iommu/amd/init.c (AMD-Vi:), drivers/crypto/ccp/sev-dev.c
(ccp), arch/x86/kvm/svm/sev.c (kvm_amd:). The log may be a part: a message that is missing then proves nothing.
"""

import re
from dataclasses import dataclass

_PAGE = 4096
_ENTRY = 16  # bytes of the RMP for each page
_BOOKKEEPING = 16 << 10  # bytes of the RMP before its first entry


@dataclass(frozen=True)
class Asids:
    """The ASIDs by the kind of guest; None: the log does not say."""

    sev: int | None = None
    sev_es: int | None = None
    sev_snp: int | None = None


@dataclass(frozen=True)
class KernelLog:
    """The messages that matter, each as it was found; an empty string, None or 0: it was not found."""

    complete: bool
    iommu_refused: str
    iommu_lacks_snp: str
    iommu_snp: bool
    iommu_features: tuple[int, ...]
    rmp_refused: str
    rmp_range: str
    rmp_covers: tuple[int, int] | None
    firmware: tuple[int, int, int] | None
    snp_firmware: bool
    firmware_wanted: str
    init_failed: str
    init_error: int | None
    asids: Asids


def read_log(text: str) -> KernelLog:
    """Read a kernel log with or without time stamps."""
    covers = _groups(text, r"does not cover full system RAM \(expected (0x[0-9a-f]+) got (0x[0-9a-f]+)\)")
    api = _last(text, r"SEV(-SNP)? API:\s*(\d{1,9})\.(\d{1,9}) build:\s*(\d{1,9})")
    init = _groups(text, r"SEV-SNP: +failed to INIT.*?[Ee]rror:? (0x[0-9a-f]+)") or _groups(
        text, r"SEV: +failed to (?:INIT|get status).*?[Ee]rror:? (0x[0-9a-f]+)"
    )
    features = re.findall(r"AMD-Vi: .*(?:EFR:|Extended features \()(0x[0-9a-f]+)", text, re.IGNORECASE)
    return KernelLog(
        complete="Linux version" in text,
        iommu_refused=_line(
            text, r"IOMMU (?:is )?(?:either )?disabled or |IOMMU is configured with V2|Default domain type: Passthrough"
        ),
        iommu_lacks_snp=_line(text, r"IOMMU SNP feature (?:is )?not enabled"),
        iommu_snp=bool(re.search(r"AMD-Vi: (?:IOMMU )?SNP (?:support )?(?:is )?enabled", text)),
        iommu_features=tuple(int(value, 16) for value in features),
        rmp_refused=_line(
            text,
            r"RMP table has not been reserved|RMP table does not cover|RMP configuration not valid|Failed to map RMP",
        ),
        rmp_range=_line(text, r"RMP (?:segment )?table physical (?:range|address)|Segmented RMP"),
        rmp_covers=(_memory(covers[0]), _memory(covers[1])) if covers else None,
        firmware=(int(api[2]), int(api[3]), int(api[4])) if api else None,
        snp_firmware="SEV-SNP API:" in text,
        firmware_wanted=_line(text, r"SEV-SNP support requires firmware version"),
        init_failed=_line(text, r"SEV-SNP: +failed to INIT") or _line(text, r"SEV: +failed to (?:INIT|get status)"),
        init_error=int(init[0], 16) if init else None,
        asids=_asids(text),
    )


def _asids(text: str) -> Asids:
    """Count the ASIDs by kind. The kernel writes these lines together, so a kind without a line has none."""
    found: dict[str, int] = {}
    for kind, first, last in re.findall(r"\b(SEV(?:-ES|-SNP)?) \w+ \(ASIDs (\d{1,9}) - (\d{1,9})\)", text):
        found[kind] = max(0, int(last) - max(1, int(first)) + 1)
    for kinds, count in re.findall(r"\b(SEV(?:-ES|-SNP)?(?: and SEV-SNP)?) supported: (\d{1,9}) ASIDs", text):
        found |= dict.fromkeys(kinds.split(" and "), int(count))
    if not found:
        return Asids()
    # Before Linux 6.11 SEV-SNP guests had no line of their own: they take the ASIDs of SEV-ES.
    es = found.get("SEV-ES", 0)
    return Asids(found.get("SEV", 0), es, found.get("SEV-SNP", es))


def _memory(size: str) -> int:
    """The bytes of memory that an RMP of ``size`` (hexadecimal, in bytes) covers."""
    return max(0, int(size, 16) - _BOOKKEEPING) // _ENTRY * _PAGE


def _last(text: str, pattern: str) -> re.Match[str] | None:
    return next(iter(reversed(list(re.finditer(pattern, text)))), None)


def _groups(text: str, pattern: str) -> tuple[str, ...]:
    found = _last(text, pattern)
    return found.groups() if found else ()


def _line(text: str, pattern: str) -> str:
    """The last line that has ``pattern``, without its time stamp and the name of the kernel."""
    found = [line for line in text.splitlines() if re.search(pattern, line)]
    return re.sub(r"^(?:\[[^\]]*\])?\s*(?:kernel:\s*)?", "", found[-1].strip().rstrip(".")) if found else ""
