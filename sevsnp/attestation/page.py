"""The HTML page of a verdict: what was proven, what was checked, each value beside what was expected of it."""

from datetime import datetime
from pathlib import Path

from sevsnp.attestation.inspection import describe
from sevsnp.attestation.outcome import REMEDY, Appraisal
from sevsnp.files import write_atomic
from sevsnp.vm.config import BANNER

TEMPLATE = Path(__file__).resolve().parents[2] / "templates" / "verdict.html.j2"
_WORDS = {
    ("accepted", "amd"): ("Accepted", "AMD hardware runs the guest of the VM config."),
    ("accepted", "emulated"): (
        "Accepted as emulated",
        "A software secure processor runs the guest of the VM config.",
    ),
    ("refused", "amd"): ("Refused", "Do not trust this guest with anything."),
    ("refused", "emulated"): ("Refused", "Do not trust this guest with anything."),
}


def render_page(appraisal: Appraisal, at: datetime) -> str:
    """The page, complete in itself: no script, no link, nothing loaded from anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    title, sentence = _WORDS.get(
        (appraisal.decision, appraisal.trust_domain),
        ("Undecided", "What AMD says of this chip could not be had. That is no acceptance."),
    )
    templates = Environment(loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True)
    return templates.get_template(TEMPLATE.name).render(
        title=title,
        sentence=sentence,
        remedy=REMEDY,
        banner=BANNER,
        appraisal=appraisal,
        at=f"{at:%Y-%m-%d %H:%M} UTC",
        product=appraisal.report.processor if appraisal.report else "",
        fields=describe(appraisal.report) if appraisal.report else {},
    )


def write_page(appraisal: Appraisal, at: datetime, path: Path) -> None:
    """Write the page to ``path``."""
    write_atomic(path, render_page(appraisal, at))
