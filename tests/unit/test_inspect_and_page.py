"""inspect_report and the HTML page: everything a report says, and nothing that the evidence could smuggle in."""

import html.parser
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sevsnp.attestation import cli, inspect_cli, kds
from sevsnp.attestation.inspection import describe, inspect
from sevsnp.attestation.page import render_page
from sevsnp.attestation.report import parse_report
from sevsnp.emulation.verify import appraise_emulated
from sevsnp.vm.config import BANNER
from tests.unit.browser import blank_page, find_browser
from tests.unit.evidence import VECTORS, evidence, expected, needs_vectors, now, psp, root
from tests.unit.hierarchy import NOW, Hierarchy
from tests.unit.test_forged_reports import outcome

GENOA = Hierarchy()


def test_authentic_or_not() -> None:
    found = inspect(GENOA.evidence(), NOW, GENOA.root)
    assert (found.authentic, found.reason, found.product, found.signer) == (True, "", "Genoa", "VCEK")
    document = json.loads(json.dumps(found.to_json()))
    assert document.keys() >= {"authentic", "reason", "product", "signer", "fields"}
    # What nobody should accept may still be authentic: a debug policy, a zero REPORT_DATA.
    odd = inspect(GENOA.evidence(policy=0xB0000, report_data=bytes(64)), NOW, GENOA.root)
    assert odd.authentic and odd.fields["policy"]["debug"] is True
    forged = inspect(Hierarchy(keys="-other").evidence(), NOW, GENOA.root)
    assert forged.authentic is False and "not a trusted root" in forged.reason
    assert inspect(GENOA.evidence([]), NOW, GENOA.root).authentic is None
    assert inspect(GENOA.evidence(chip_id=b"x" * 64), NOW, GENOA.root).authentic is False
    broken = inspect(evidence(), NOW, GENOA.root)
    assert broken.authentic is False and broken.to_json()["authentic"] is False
    assert (broken.to_json()["emulated"], broken.to_json()["confidential"]) == (True, False)
    assert document["emulated"] is False and "confidential" not in document
    turin = inspect(GENOA.evidence(chip_id=b"EMULATED".ljust(64, b"\0")), NOW, GENOA.root)
    assert turin.emulated and turin.authentic is False
    short = inspect(type(evidence())(b"short"), NOW, GENOA.root)
    assert short.authentic is False and short.fields == {} and "1184" in short.reason


def test_a_version_2_report_takes_its_product_from_its_certificate() -> None:
    turin = Hierarchy("Turin")
    for one in (Hierarchy("Milan"), GENOA, turin):
        found = inspect(one.evidence(version=2), NOW, one.root)
        assert (found.authentic, found.product) == (True, one.product), found.reason
    assert found.fields["reported_tcb"]["fmc"] == 3


def test_siena_and_bergamo_are_named() -> None:
    from sevsnp.attestation.report import Cpuid

    assert inspect(GENOA.evidence(cpuid=Cpuid(0x19, 0xA0, 2)), NOW, GENOA.root).product == "Bergamo/Siena"


def test_every_field_is_described() -> None:
    report = parse_report(GENOA.report(mitigations=5), "Genoa")
    fields = describe(report)
    renamed = {"raw", "product", "signature_algorithm", "author_key", "launch_mitigations", "current_mitigations",
               "signature_r", "signature_s"}  # fmt: skip
    assert {name for name in vars(report) if name not in renamed} <= set(fields)
    assert fields["launch_mit_vector"] == "0x5"


@needs_vectors
@pytest.mark.parametrize(
    ("report", "vcek", "product"),
    [("genoa-v3/report.bin", "genoa-v3/vcek.pem", "Genoa"), ("milan-v2/report.hex", "milan-v2/vcek.der", "Milan"),
     ("milan-v2-debug/report.bin", "milan-v2-debug/vcek.der", "Milan")],
)  # fmt: skip
def test_real_reports_are_authentic(
    report: str,
    vcek: str,
    product: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["--input", str(VECTORS / report), "--certs", str(VECTORS / "amd-chains"), "--at", "2026-06-01"]
    words.append("--offline")
    assert inspect_cli.main([*words, "--certificates", str(VECTORS / vcek), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["authentic"], document["product"], document["signer"]) == (True, product, "VCEK")
    assert document["fields"]["policy"]["debug"] is ("debug" in report)
    assert inspect_cli.main([*words, "--certificates", str(VECTORS / vcek)]) == 0
    assert "AUTHENTIC" in capsys.readouterr().out
    assert inspect_cli.main(words) == 3  # the VCEK is nowhere
    monkeypatch.setattr(kds, "KDS", "http://127.0.0.1:9")
    assert inspect_cli.main([word for word in words if word != "--offline"]) == 3
    assert inspect_cli.main([*words, "--certificates", str(VECTORS / vcek), "--at", "2050-01-01"]) == 2


def test_wrong_command_lines() -> None:
    for words in ([], ["--input", "x", "--at", "yesterday"], ["--input", "x", "--bogus"]):
        with pytest.raises(SystemExit) as caught:
            inspect_cli.main(words)
        assert caught.value.code == 64
    assert inspect_cli.main(["--input", "/nowhere"]) == 64


class Tags(html.parser.HTMLParser):
    """What a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag, *(f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "onload"))]


def tags(text: str) -> set[str]:
    parser = Tags()
    parser.feed(text)
    return set(parser.found)


def test_the_page() -> None:
    at = datetime(2026, 6, 1, tzinfo=UTC)
    page = render_page(outcome(), at)
    assert "<h1>Accepted</h1>" in page and 'name="viewport"' in page and "weaker than strict" in page
    assert tags(page).isdisjoint({"script", "link", "img", "iframe", "link href", "a href"})
    for check in outcome().checks:
        assert check.name in page
    refused = render_page(outcome(GENOA.evidence(vmpl=1)), at)
    assert "<h1>Refused</h1>" in refused and "Do not trust" in refused
    assert "<h1>Undecided</h1>" in render_page(outcome(GENOA.evidence([])), at)
    for wanted in (expected(), expected(vmpl=1)):  # accepted as emulated, and refused
        assert BANNER in render_page(appraise_emulated(evidence(), wanted, now(), root()), at)
    assert BANNER not in page
    hostile = Hierarchy(vlek=True, extensions=(("1.3.6.1.4.1.3704.1.5", b"\x16\x19<script>alert(1)</script>"),))
    text = render_page(outcome(hostile.evidence(), policy={"signer": ["VLEK"]}), at)
    assert "&lt;script&gt;" in text and "script" not in tags(text)


# What a provider's name and a policy's reasons could try; none of it may become markup.
HOSTILE = "</div><script>document.title='owned'</script><img src=http://127.0.0.1:9/ onerror=\"document.x=1\">"


def pages() -> dict[str, str]:
    """A page of each outcome, and one with hostile words wherever evidence and policy have room for words."""
    text = HOSTILE[:120].encode()
    forged = Hierarchy(vlek=True, extensions=(("1.3.6.1.4.1.3704.1.5", bytes((0x16, len(text))) + text),))
    policy = {"signer": ["VLEK"], "csp": {"any": HOSTILE}, "report_id": {"any": "x" * 400}}
    return {
        "accepted": render_page(outcome(), NOW),
        "refused": render_page(outcome(GENOA.evidence(vmpl=1, measurement=b"x" * 48)), NOW),
        "undecided": render_page(outcome(GENOA.evidence([])), NOW),
        "hostile": render_page(outcome(forged.evidence(), policy=policy), NOW),
        "hostile, refused": render_page(outcome(forged.evidence(), policy={"signer": ["VLEK"], "csp": ["x"]}), NOW),
    }


SEEN = """[document.documentElement.scrollWidth, document.documentElement.clientWidth,
           document.title, document.scripts.length, document.images.length]"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = find_browser()
    if not found:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["accepted", "refused", "undecided", "hostile", "hostile, refused"])
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
        assert (HOSTILE[:60] in page.evaluate("document.body.textContent")) is name.startswith("hostile")
        assert [one["request"]["url"] for one in page.named("Network.requestWillBeSent")] == [file.as_uri()]
        assert not page.named("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def test_the_browser_would_show_it(browser: str, tmp_path: Path) -> None:
    """Control: in a page without escaping, policy and wrapping, all of this is seen."""
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><meta name="viewport" content="width=device-width">{"x" * 400}{HOSTILE}')
    with blank_page(browser, tmp_path / "profile") as page:
        page.load(file, 360)
        content, window, title, scripts, images = page.evaluate(SEEN)
        assert content > window and (title, scripts, images) == ("owned", 1, 1)
        assert len(page.named("Network.requestWillBeSent")) == 2
        assert page.named("Log.entryAdded")


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    from sevsnp.attestation import idblock_cli, measure_cli
    from sevsnp.vm import feature_info

    for main in (cli.main, inspect_cli.main, measure_cli.main, idblock_cli.main, feature_info.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        text = capsys.readouterr().out
        assert len(text.splitlines()) <= 25, text
    assert psp()
