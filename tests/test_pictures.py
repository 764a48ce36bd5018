"""Pages of their own: what they say, that nothing foreign gets into them, and how they look in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nimpull.cli.main import cli
from nimpull.core.artifacts import Action, Artifact, Listing, Outcome
from nimpull.core.criteria import Criteria
from nimpull.core.digest import Digest
from nimpull.core.fit import Match, MatchRule, Mismatch, Reason
from nimpull.core.manifest import Profile
from nimpull.core.names import ModelUri, SafePath, Url
from nimpull.core.report.contents import (
    Failure,
    Pause,
    PhaseSpan,
    RateLine,
    Report,
    Repository,
    SelectionSummary,
    State,
    StoreSummary,
    Timeline,
    TransferSummary,
)
from nimpull.core.selection import Selection
from nimpull.errors import NoSpaceError
from nimpull.pictures import report_page
from nimpull.pictures.page import MOST_FILES
from tests.reports import a_report, to_json
from tests.running import check

MIB = 1 << 20
URI = ModelUri.parse("ngc://nim/meta/llama3-8b-instruct:hf-1d2c9a")
MANIFEST = Path(__file__).parent / "vectors/manifests-public/v1-03-llm.yaml"
EVIL = "</style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}\u202e\x1b[2J"


def an_outcome(path: str, size: int, action: Action = Action.FETCHED) -> Outcome:
    digest = Digest("blake3", "ab" * 32)
    fetched = {Action.FETCHED: size, Action.RESUMED: size // 3}.get(action, 0)
    artifact = Artifact(SafePath(path), size, (digest,), URI.with_path(path))
    return Outcome(artifact, action, fetched, 2, 12.5 if fetched else 0.0, "blake3", size, digest)


def a_document(**changes: Any) -> dict[str, Any]:
    """A run of two minutes over two hosts, with a pause in its middle."""
    outcomes = (
        an_outcome("model-00001-of-00002.safetensors", 4 << 30),
        an_outcome("model-00002-of-00002.safetensors", 3 << 30, Action.RESUMED),
        an_outcome("tokenizer.json", 17 * MIB, Action.SKIPPED),
    )
    rates = tuple(0 if 60 <= second < 75 else (60 + second % 7) * MIB for second in range(120))
    profile = Profile("031d3a7e" * 8, {"tp": "1", "llm_engine": "vllm"}, "meta/llama3-8b-instruct", "1.0.0")
    other = Profile("77" * 32, {"tp": "8", "llm_engine": "vllm"}, "meta/llama3-8b-instruct", "1.0.0")
    verdicts = (
        (profile, Match((0, 0, 0, 0, 0, 0), MatchRule.GENERIC, "names no GPU")),
        (other, Mismatch(Reason.COUNT, "needs 8 GPUs, found 1", "seven more")),
    )
    listing = Listing(URI, "hf", tuple(outcome.artifact for outcome in outcomes), Url("https://ngc.example"))
    report = a_report(
        updated=1_795_000_122.0,
        profiles=(),
        sources=(Repository.of(listing),),
        selection=SelectionSummary.of(Selection(verdicts, (profile,), "best fit"), Criteria()),
        store=StoreSummary("/model-store", "cache", 7 << 30, 40 << 30),
        transfer=TransferSummary(5 << 30, 116.0, 13, 8),
        artifacts=outcomes,
        timeline=Timeline(
            1.0,
            rates,
            (RateLine("files.example", rates), RateLine("cdn.example", (0,) * 120)),
            2.0,
            tuple(
                RateLine("files.example", tuple(rate // 8 for rate in rates[::2]), each) for each in range(8)
            ),
            (Pause(20.0, 0.0, "reset by files.example"), Pause(60.0, 15.0, "HTTP 429", 12)),
            (PhaseSpan("listing", 0.0, 2.0), PhaseSpan("fetching", 2.0, 118.0)),
            {"hash": 9.0, "sync": 1.5},
        ),
    )
    document = to_json(report) | changes
    check(document)
    return document


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside of the style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._in_style = False
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.texts.append(data)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_the_page_says_what_was_pulled_and_when() -> None:
    page = Elements(report_page(a_document()))
    for said in (
        "Ready",
        str(URI),
        "In the store 7.0 GiB 3 files",
        "13 each one is below",
        "pause tried again at once",
        "1m00s 15s HTTP 429 12\u00d7",
        "fetch 1m43s wait 15s",  # of the fetch, the pause is shown beside the rest
        "hash 9.0s sync 1.5s",
        "blake3 3 7.0 GiB",
        "model-00002-of-00002.safetensors 3.0 GiB",
        "resumed, blake3, 2 attempts",
        "vllm-tp1 031d3a7e031d chosen",
        "the right GPU, too little of it: needs 8 GPUs, found 1. It would take: seven more",
    ):
        assert said in page.text, (said, page.text)
    assert sum(tag == "svg" for tag, _ in page.found) == 2 + 8
    bands = [
        given["class"] for tag, given in page.found if tag == "rect" and "band" in (given["class"] or "")
    ]
    assert bands == ["band retry", "band pause"] * 2


def test_the_bars_are_in_proportion() -> None:
    page = report_page(a_document())
    widths = re.findall(r'class="(fetched|kept)" style="width: ([\d.]+)%', page)
    assert widths == [
        ("fetched", "100.0"),
        ("fetched", "25.0"),
        ("kept", "50.0"),
        ("fetched", "0.0"),
        ("kept", "0.42"),
    ]


def test_a_failure_says_what_to_do() -> None:
    document = a_document(
        status={"state": "Failed", "profiles": [], "conditions": []},
        error=to_json(
            Report(
                State.FAILED, 0, 0, error=Failure.of(NoSpaceError("/model-store is full", hint="Enlarge it."))
            )
        )["error"],
    )
    page = Elements(report_page(document))
    assert (
        "no-space /model-store is full What to do: Enlarge it. Exit code 40; a retry may help." in page.text
    )


def test_a_run_that_has_just_begun_has_a_page() -> None:
    report = to_json(Report(State.IN_PROGRESS, 0, 0))
    page = Elements(report_page(report))
    assert "In progress Nothing was listed" in page.text


def test_pods_that_share_a_pull_are_shown_side_by_side() -> None:
    pods = [
        {"name": "job-0:7", "state": "Ready", "files": 3, "bytes": 4 * MIB, "waitingFor": ""},
        {"name": "job-1:7", "state": "InProgress", "files": 1, "bytes": MIB, "waitingFor": "1 file of job-0"},
    ]
    page = report_page(a_document(pods=pods))
    assert "job-0:7 4.0 MiB 3 files Ready" in Elements(page).text
    assert "job-1:7 1.0 MiB 1 file waiting for 1 file of job-0" in Elements(page).text
    assert 'width: 25.0%"></i></span>\n<span class="number">1.0 MiB' in page
    assert "Pods" not in Elements(report_page(a_document(pods=pods[:1]))).text, "one pod shares with nobody"


def test_without_the_extra_the_hint_names_it(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(a_document()))
    program = "import sys; sys.modules['pygal'] = None; from nimpull.__main__ import main; main()"
    command = [sys.executable, "-c", program, "report", str(tmp_path / "report.json")]
    words = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert words.returncode == 0, words.stderr
    page = subprocess.run([*command, "--html", "-"], capture_output=True, text=True, check=False, timeout=60)
    assert (page.returncode, page.stdout) == (2, "")
    assert "pip install 'nimpull[html]'" in page.stderr


def test_drawing_leaves_no_import_hook_behind() -> None:
    report_page(a_document())
    assert [hook for hook in sys.meta_path if "pygal" in repr(hook)] == []


def test_many_files_are_cut_and_counted() -> None:
    one = a_document()["artifacts"][0]
    many = [{**one, "path": f"file-{number}"} for number in range(MOST_FILES + 5)]
    page = Elements(report_page(a_document(artifacts=many)))
    assert "and 5 smaller files, 20.0 GiB." in page.text


def test_the_page_asks_nothing_of_the_network_and_runs_nothing() -> None:
    page = report_page(a_document())
    elements = Elements(page)
    policy = [given["content"] for tag, given in elements.found if given.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert not {tag for tag, _ in elements.found} & {"script", "iframe", "object", "embed", "base", "form"}
    for _, given in elements.found:
        assert not {name for name in given if name.startswith("on")}
        assert {given.get("src"), given.get("href"), given.get("xlink:href")} <= {None, "data:,"}
    assert "@import" not in page
    assert "url(" not in page


def poisoned(value: Any) -> Any:
    """The same with hostile text in the place of every text that is no number, time or one of a few words."""
    if isinstance(value, dict):
        return {name: poisoned(each) for name, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return EVIL if isinstance(value, str) else value


def test_f57_foreign_text_is_text() -> None:
    page = report_page(poisoned(a_document()))
    clean = Elements(report_page(a_document()))
    elements = Elements(page)
    assert {tag for tag, _ in elements.found} <= {tag for tag, _ in clean.found}
    assert not any(name.startswith("on") for _, given in elements.found for name in given)
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "{{7*7}}" in elements.text, "no text is a template"
    assert page.count("&lt;script&gt;") > 20


@pytest.mark.parametrize(
    "junk",
    [
        "[]",
        "{}",
        "null",
        '"x"',
        '{"status": 3}',
        '{"status": {"state": "Ready", "conditions": [4]}}',
        '{"status": {"state": "Ready", "conditions": []}, "artifacts": [{}]}',
        '{"status": {"state": "Ready", "conditions": []}, "artifacts": [{"size": "x"}]}',
        '{"status": {"state": "Ready", "conditions": []}, "timeline": {"bytesPerSecond": [1], "pauses": []}}',
        '{"status": {"state": "Ready", "conditions": []}, "timeline": {"bytesPerSecond": [1e999],'
        ' "intervalSeconds": 1e999, "hosts": [], "pauses": []}}',
        '{"status": {"state": "Ready", "conditions": []}, "selection": {"verdicts": [{"matches": 1}]}}',
        "[" * 100_000,
        "NaN",
    ],
)
def test_what_is_no_report_is_told(tmp_path: Path, junk: str) -> None:
    (tmp_path / "report.json").write_text(junk)
    result = run("report", str(tmp_path / "report.json"), "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 2, result.output
    assert "is no report of nimpull" in result.output
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_the_page_of_a_store(tmp_path: Path) -> None:
    (tmp_path / ".nimpull").mkdir()
    (tmp_path / ".nimpull/report.json").write_text(json.dumps(a_document()))
    page = tmp_path / "page.html"
    result = run("report", "--store", str(tmp_path), "--html", str(page))
    assert (result.exit_code, result.output) == (0, "")
    assert page.read_text() == report_page(a_document())


def test_in_words(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(a_document()))
    result = run("report", str(tmp_path / "report.json"))
    assert result.exit_code == 0
    first, second = result.output.splitlines()
    assert first.startswith("Ready: 3 files, 7.0 GiB in /model-store, verified by blake3; fetched 5.0 GiB")
    assert second == "  seconds by phase: list 2.0s, fetch 1m58s, wait 15s, hash 9.0s, sync 1.5s"


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(a_document()))
    result = run("report", str(tmp_path / "report.json"), "--html", str(tmp_path / "no/page.html"))
    assert (result.exit_code, "is not a directory" in result.output) == (2, True), result.output


def test_profiles_are_shown_for_the_hardware_that_the_manifest_names(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("list-profiles", "--manifest", str(MANIFEST), "--gpu", "H100:4", "--html", str(page))
    assert (result.exit_code, result.output) == (0, "")
    elements = Elements(page.read_text())
    columns = [
        given for tag, given in elements.found if tag == "th" and "hardware" in (given.get("class") or "")
    ]
    signs = [
        given for tag, given in elements.found if tag == "span" and "sign s-" in (given.get("class") or "")
    ]
    assert len(columns) > 5
    assert "4x H100 80GB HBM3" in elements.text
    assert "8x Tesla T4" in elements.text
    rows = elements.text.count("best fit")
    assert rows == 1
    explained = [given["title"] for given in signs if given.get("title")]
    assert len(explained) % len(columns) == 0
    assert all(": " in (why or "") for why in explained)


# -- in a browser --------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--v=0",
    ),
)
#: Looks at the page from outside: what it loads, how wide it is, and the contrast of each text.
LOOK = """
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, faint = [];
  const rgba = text => text.match(/[\\d.]+/g).map(Number).concat(1).slice(0, 4);
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = colour => { const [r, g, b] = colour.map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  function behind(element) {
    if (!element) return [255, 255, 255, 1];
    const colour = rgba(view.getComputedStyle(element).backgroundColor);
    return colour[3] === 1 ? colour : over(colour, behind(element.parentElement));
  }
  const walker = page.createTreeWalker(page.body, 4);
  let texts = 0;
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, style = view.getComputedStyle(element);
    if (!node.data.trim() || !element.getClientRects().length || element.tagName === "title") continue;
    const text = element.closest("svg") ? style.fill : style.color;
    const below = behind(element), above = over(rgba(text), below);
    const [bright, dark] = [light(above), light(below)].sort((a, b) => b - a);
    texts += 1;
    if ((bright + 0.05) / (dark + 0.05) < 4.5) faint.push(node.data.trim().slice(0, 40) + " " + text);
  }
  return {
    width: page.documentElement.scrollWidth, inside: view.innerWidth, texts, faint,
    loaded: view.performance.getEntriesByType("resource").map(each => each.name),
    background: view.getComputedStyle(page.body).backgroundColor,
    charts: [...page.querySelectorAll("svg")].filter(each => each.getClientRects().length)
      .map(each => each.getBoundingClientRect().width),
  };
}
onload = () => { document.body.textContent = JSON.stringify(look(document.querySelector("iframe"))); };
"""


def seen_in_chromium(page: str, directory: Path, *, width: int, dark: bool) -> Mapping[str, Any]:
    """What a browser makes of the page in a frame of that width (its own window is no narrower than 500)."""
    escaped = page.replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<iframe style="border: 0" width="{width}" height="900" srcdoc="{escaped}"></iframe>'
    outside = directory / "outside.html"
    outside.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}<script>{LOOK}</script></body>")
    theme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    profile = f"--user-data-dir={directory / 'profile'}"
    done = subprocess.run(
        [CHROMIUM or "", *FLAGS, *theme, profile, "--dump-dom", f"file://{outside}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ":CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"<body>(\{.*\})</body>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    seen: Mapping[str, Any] = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<"))
    return seen


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("which", ["report", "profiles"])
def test_in_a_browser(tmp_path: Path, which: str, width: int, dark: bool) -> None:
    if which == "report":
        page = report_page(a_document())
    else:
        run("list-profiles", "--manifest", str(MANIFEST), "--html", str(tmp_path / "page.html"))
        page = (tmp_path / "page.html").read_text()
    seen = seen_in_chromium(page, tmp_path, width=width, dark=dark)
    assert seen["inside"] == width
    assert seen["width"] == width, "it scrolls to the side"
    assert seen["faint"] == []
    assert seen["texts"] > 60
    assert seen["loaded"] == []
    (red, green, blue) = re.findall(r"\d+", seen["background"])
    assert (int(red) + int(green) + int(blue) < 120) is dark
    if which == "report":
        assert len(seen["charts"]) == 1 + 8, "of the two charts of the rate, one is shown"
        assert all(0 < each < width for each in seen["charts"])
