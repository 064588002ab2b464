# SPDX-License-Identifier: Apache-2.0
"""The HTML page: the verdict, the failed checks with advice, and no markup that comes from the evidence."""

import dataclasses
import functools
import html
import html.parser
import itertools
import re
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation import verifier
from sevsnp.attestation.explain import GROUPS, MISSING, advice
from sevsnp.attestation.outcome import ENDED, Appraisal, Check, Reason, Refused
from sevsnp.attestation.page import render_page, write_page
from sevsnp.attestation.verifier import HardwareVerdict
from sevsnp.emulation.verify import appraise_emulated, verify_emulated
from sevsnp.system.template import find_template
from sevsnp.vm_config.config import BANNER, VmConfig
from tests.support.browser import blank_page, find_browser
from tests.support.evidence import config, evidence, expected, now, root
from tests.support.hierarchy import NOW, Hierarchy
from tests.unit.attestation.test_forged_reports import outcome

GENOA = Hierarchy()
SOURCE = Path("build/verity/vm-config-verity.toml")


def for_page(**changes: Any) -> VmConfig:
    return dataclasses.replace(config(**changes), source=SOURCE)


def page_of(appraisal: Appraisal) -> str:
    return render_page(appraisal, for_page(platform="snp" if appraisal.trust_domain == "amd" else "emulated"))


class Document(html.parser.HTMLParser):
    """What a browser would load or run, the headings with their levels, and which text is folded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.headings: list[tuple[int, str]] = []
        self.folded = self.unfolded = ""
        self._in: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags |= {tag, *(f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "onload"))}
        if tag not in ("meta", "br", "img"):
            self._in.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._in.pop() == tag  # well-formed

    def handle_data(self, data: str) -> None:
        if "style" in self._in:
            return
        if "details" in self._in:
            self.folded += data
        else:
            self.unfolded += data
        if self.headings and re.fullmatch("h[1-6]", next((tag for tag in self._in[::-1] if tag != "span"), "")):
            level, words = self.headings[-1]
            self.headings[-1] = (level, f"{words}{data}".strip())


def between(page: str, start: str, end: str) -> str:
    """The words of the part of a page from ``start`` to ``end``."""
    return html.unescape(re.sub("<[^>]*>", "", page[page.index(start) : page.index(end)]))


def test_the_page_begins_with_the_verdict_and_what_it_is_about() -> None:
    found = outcome()
    late = dataclasses.replace(found, at=NOW.astimezone(timezone(timedelta(hours=5))))
    for one in (found, late):
        page = page_of(one)
        head = between(page, "<h1>", "</header>")
        passed = sum(check.outcome == "passed" for check in found.checks)
        others = len(found.checks) - passed
        assert found.report
        for wanted in ("Accepted", "AMD hardware runs the guest", f"{passed} passed", f"{others} not compared",
                       found.report.measurement.hex(), str(SOURCE), "Genoa", "2026-06-01 00:00:00 UTC"):  # fmt: skip
            assert wanted in head, wanted
        assert "weaker than strict" in Document(page).unfolded and BANNER not in page
    assert Document(page).tags.isdisjoint({"script", "link", "img", "iframe", "link href", "a href"})


def test_each_verdict_has_its_word_and_its_colour() -> None:
    words = {
        "accepted of-amd": ("Accepted", outcome()),
        "refused of-amd": ("Refused", outcome(GENOA.evidence(vmpl=1))),
        "undecided of-amd": ("Undecided", outcome(GENOA.evidence([]))),
        "emulated of-emulation": ("Accepted as emulated", appraise_emulated(evidence(), expected(), now(), root())),
        "refused of-emulation": ("Refused", appraise_emulated(evidence(), expected(vmpl=1), now(), root())),
    }
    for classes, (word, appraisal) in words.items():
        page = page_of(appraisal)
        assert f'<body class="{classes}">' in page and f"<h1>{word}</h1>" in page
        assert (BANNER in page) is ("emulation" in classes)
    amber = re.findall(r"\.(?:emulated|of-emulation) \{.*?\}", page)
    assert len(amber) == 2 and all("var(--amber)" in rule and "green" not in rule for rule in amber)


def test_failed_checks_come_first_with_both_values_and_advice() -> None:
    found = outcome(GENOA.evidence(vmpl=1, measurement=b"x" * 48))
    page = page_of(found)
    top = between(page, "What failed", "What stays open")
    failed = [check for check in found.checks if check.outcome == "failed"]
    assert [check.name for check in failed] == ["vmpl", "measurement"]
    for check in failed:
        for wanted in (check.name, check.found, check.expected, advice(check, "amd")):
            assert wanted in top
    assert "What failed" not in page_of(outcome())
    # The check that the verdict names comes first, wherever it stands among the others.
    last = dataclasses.replace(found, reason=Reason.MEASUREMENT)
    assert [check.name for check in last.troubles()] == ["measurement", "vmpl"]


def test_checks_that_were_not_reached_are_folded_and_missing_data_is_shown() -> None:
    refused = outcome(evidence())
    read = Document(page_of(refused))
    ended = [check.name for check in refused.checks if check.reason == ENDED]
    assert all(name in read.folded for name in ended) and "unknown-root" in read.unfolded
    for name in ("minimum-launch-tcb", "guest-svn", "report-data"):
        assert name in ended and name not in read.unfolded
    assert "no signature by a trusted key was found" in read.unfolded  # the digest is the report's own claim
    assert "no signature by a trusted key" not in page_of(outcome())
    top = between(page_of(outcome(GENOA.evidence([]))), "What is missing", "What stays open")
    assert "certificates" in top and MISSING in top


def test_every_check_is_in_one_group_and_every_failure_has_advice() -> None:
    grouped = [reason for group in GROUPS for reason in group.reasons]
    assert sorted(grouped) == sorted(Reason)
    for reason in Reason:
        said = {advice(Check(reason, "failed"), domain) for domain in ("amd", "emulated")}
        assert all(words.endswith((".", "…")) for words in said)
        assert len(said) == (2 if reason == Reason.UNKNOWN_ROOT else 1)
    # Bits have a check each, which is in the group of its reason, too.
    text = Document(page_of(outcome())).unfolded
    for check in outcome().checks:
        assert check.name in text


def test_the_headings_are_an_outline() -> None:
    for page in pages().values():
        levels = [level for level, _ in Document(page).headings]
        assert levels[0] == 1 and levels.count(1) == 1 and len(levels) > 5
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert '<html lang="en">' in page and 'name="viewport"' in page and "<main>" in page


def verdict_of_hardware() -> HardwareVerdict:
    # No hardware here: what the production verifier would make, from the inside.
    return HardwareVerdict(outcome(), verifier._TOKEN)


def test_a_page_is_made_from_a_verdict_and_from_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for verdict, word in (
        (verdict_of_hardware(), "<h1>Accepted</h1>"),
        (verify_emulated(evidence(), expected(), now(), root()), "<h1>Accepted as emulated</h1>"),
    ):
        write_page(path, verdict.appraisal, for_page())
        assert word in path.read_text() and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(Refused) as emulated:
        verify_emulated(evidence(), expected(vmpl=1), now(), root())
    with pytest.raises(Refused) as amd:
        verifier.verify_report(evidence(), expected(platform="snp"), NOW)
    for caught in (emulated, amd):
        refused = caught.value
        write_page(path, refused.appraisal, for_page())
        page = path.read_text()
        assert "<h1>Refused</h1>" in page and refused.appraisal.checks == refused.checks
        assert all(check.name in page for check in refused.checks)


def test_a_contradictory_appraisal_gives_no_page_that_says_accepted() -> None:
    """An appraisal that contradicts itself is refused, and so is its page."""
    found = outcome()
    odd = dataclasses.replace(found, checks=(*found.checks, Check("vmpl", "failed")))
    with pytest.raises(Refused) as caught:
        odd.require()
    assert "<h1>Refused</h1>" in page_of(caught.value.appraisal)


# What a provider's name and a policy's reasons could try; none of it may become markup.
HOSTILE = "</div><script>document.title='owned'</script><img src=http://127.0.0.1:9/ onerror=\"document.x=1\">"


@functools.cache
def pages() -> dict[str, str]:
    """A page of each outcome, and one with hostile words wherever evidence and policy have room for words."""
    text = HOSTILE[:120].encode()
    forged = Hierarchy(vlek=True, extensions=(("1.3.6.1.4.1.3704.1.5", bytes((0x16, len(text))) + text),))
    policy = {"signer": ["VLEK"], "csp": {"any": HOSTILE}, "report_id": {"any": "x" * 400}}
    found = {
        "accepted": page_of(outcome()),
        "emulated": page_of(appraise_emulated(evidence(), expected(acpi=True), now(), root())),
        "emulated, refused": page_of(appraise_emulated(evidence(), expected(vmpl=1), now(), root())),
        "refused": page_of(outcome(GENOA.evidence(vmpl=1, measurement=b"x" * 48))),
        "refused, no minimum": page_of(outcome(minimum_tcb=None)),
        "undecided": page_of(outcome(GENOA.evidence([]))),
        "hostile": page_of(outcome(forged.evidence(), policy=policy)),
        "hostile, refused": page_of(outcome(forged.evidence(), policy={"signer": ["VLEK"], "csp": ["x"]})),
    }
    odd = dataclasses.replace(config(), source=Path(f"/{'x' * 300}/{HOSTILE.replace('/', '')}"))
    return {**found, "hostile path": render_page(outcome(), odd)}


def test_hostile_text_never_becomes_markup() -> None:
    for name in ("hostile", "hostile, refused", "hostile path"):
        page = pages()[name]
        assert "&lt;script&gt;" in page and Document(page).tags.isdisjoint({"script", "img"})
    assert {"script", "img", "img src"} <= Document(f"<div>{HOSTILE}").tags  # control


def luminance(colour: str) -> float:
    """Of ``#rrggbb``, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_can_be_read(scheme: str) -> None:
    """WCAG AA, without a browser: each text colour on each background colour."""
    style = find_template("verdict.html.j2").read_text()
    light, dark = style.split("prefers-color-scheme: dark")
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", light if scheme == "light" else dark))
    assert len(colours) == 12
    pairs = [(name, f"{name}-tint") for name in ("green", "red", "amber", "blue")]
    pairs += [(name, tint) for _, tint in pairs for name in ("text", "muted", "red", "amber", "blue")]
    pairs += [(name, "paper") for name in ("text", "muted", "green", "red", "amber", "blue")]
    assert {pair: contrast(*map(colours.get, pair)) for pair in pairs if contrast(*map(colours.get, pair)) < 4.5} == {}  # type: ignore[arg-type]
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")  # control: WCAG's own example


SEEN = """[document.documentElement.scrollWidth, document.documentElement.clientWidth,
           document.title, document.scripts.length, document.images.length]"""

# The contrast of every text with what is behind it: the least of all, and the words.
CONTRAST = """(() => {
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(one => one / 255)
    .map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const found = numbers(getComputedStyle(element).backgroundColor);
      if (found[3] !== 0) return found;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = [99, ''], count = 0;
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim();
    if (!text) continue;
    count += 1;
    const both = [numbers(getComputedStyle(texts.currentNode.parentElement).color),
                  behind(texts.currentNode.parentElement)].map(light).sort((a, b) => a - b);
    const ratio = (both[1] + 0.05) / (both[0] + 0.05);
    if (ratio < least[0]) least = [ratio, text.slice(0, 80)];
  }
  return [...least, count];
})()"""
COLOURS = "[...document.querySelectorAll('*')].map(one => getComputedStyle(one).color)"


PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> str:
    found = find_browser()
    if not found:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", [
    "accepted", "emulated", "emulated, refused", "refused", "refused, no minimum", "undecided", "hostile",
    "hostile, refused", "hostile path",
])  # fmt: skip
def test_the_page_in_a_browser(name: str, width: int, browser: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(pages()[name])
    with blank_page(browser, tmp_path / "profile") as page:
        page.load(file, width)
        for opened in (False, True):
            if opened:
                page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            content, window, title, scripts, images = page.evaluate(SEEN)
            assert content <= window == width  # nothing to scroll sideways
            assert (title.endswith(": SNP attestation"), scripts, images) == (True, 0, 0)
        for scheme in ("light", "dark"):
            page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            ratio, words, count = page.evaluate(CONTRAST)
            assert ratio >= 4.5 and count > 20, f"{scheme}: {ratio}: {words}"
            green = {"light": "rgb(17, 99, 41)", "dark": "rgb(86, 211, 100)"}[scheme]
            assert (green in page.evaluate(COLOURS)) is not name.startswith("emulated")
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.ask("Emulation.setEmulatedMedia", media="print", features=dark)
        assert page.evaluate(PAPER) == "rgb(255, 255, 255)" and page.evaluate(CONTRAST)[0] >= 4.5
        assert (HOSTILE[6:14] in page.evaluate("document.body.textContent")) is name.startswith("hostile")
        assert [one["request"]["url"] for one in page.named("Network.requestWillBeSent")] == [file.as_uri()]
        assert not page.named("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def test_control_the_browser_test_detects_markup_overflow_and_bad_contrast(browser: str, tmp_path: Path) -> None:
    """Control: a page without escaping, content policy, line wrapping and contrast shows each of these faults."""
    file = tmp_path / "page.html"
    head = '<!doctype html><meta name="viewport" content="width=device-width">'
    file.write_text(f'{head}<p style="color: #777777">{"x" * 400}{HOSTILE}')
    with blank_page(browser, tmp_path / "profile") as page:
        page.load(file, 360)
        content, window, title, scripts, images = page.evaluate(SEEN)
        assert content > window and (title, scripts, images) == ("owned", 1, 1)
        assert len(page.named("Network.requestWillBeSent")) == 2
        assert page.named("Log.entryAdded")
        assert page.evaluate(CONTRAST)[0] < 4.5
