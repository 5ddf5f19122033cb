"""Reports: the form of the records is frozen, tables say what was measured, the page needs nobody."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.simulated import CELL, MINE, ROOF, Machine, simulate, steady

from minivit.bench.checks.cases import Case
from minivit.bench.checks.findings import Finding
from minivit.bench.report.html import page
from minivit.bench.report.results import line, of_kind, read
from minivit.bench.report.tables import cell_lines, cells, duration, markdown
from minivit.bench.timing.cells import Cell
from minivit.bench.timing.roofs import Roofline, kept
from minivit.bench.timing.roofs import keep as note_down
from minivit.cli import main
from minivit.errors import UsageError

CELL_FIELDS = ["batch", "heads", "tokens", "head_dim", "dtype", "layout", "device", "direction", "mode", "threads"]
COUNTERS = [
    *(
        "cpu_seconds",
        "minor_faults",
        "major_faults",
        "voluntary_switches",
        "involuntary_switches",
        "waited_seconds",
        "stolen_seconds",
    ),
]
FIELDS = {
    "bench": [
        *("schema", "kind", "started", "kernels", "against", "threads", "processes", "budget_seconds", "graph"),
        *("unverified", "seed", "environment"),
    ],
    "roof": [
        *("schema", "kind", "threads", "device", "age_seconds", "gemm", "memory", "cache", "exp", "cache_bytes"),
    ],
    "process": ["schema", "kind", "threads", "process", "torch_threads", "cores"],
    "start": [
        *("schema", "kind", *CELL_FIELDS, "kernel", "process", "status", "detail", "numbers", "load_seconds"),
        *("first_call_seconds", "peak_bytes"),
    ],
    "block": [
        *("schema", "kind", *CELL_FIELDS, "arm", "role", "process", "round", "attempt", "kept", "noise", "status"),
        *("detail", "numbers", "samples_us", "calls", "wall_seconds", *COUNTERS, "clocks"),
    ],
    "row": [
        *("schema", "kind", *CELL_FIELDS, "arm", "kernel", "role", "baseline", "status", "detail", "median_us"),
        *("low_us", "high_us", "p95_us", "best_us", "gflops", "gbytes", "bound_us", "binds", "of_roof", "speedup"),
        *("speedup_low", "speedup_high", "resolution", "load_seconds", "first_call_seconds", "peak_bytes", "blocks"),
        *("repeated", "noisy", "calls", "minor_faults", "involuntary_switches", "of_limit"),
    ],
}


def records_of(*, tokens=(50, 197), dtypes=("float32", "bfloat16"), against=("sdpa", "eager", "flex")):
    """A run with everything a report can hold: two shapes and dtypes, a check, a row that is invalid."""
    takes = {MINE: steady(100), "sdpa": steady(180), "eager": steady(300), "flex": steady(20)}
    machine = Machine(takes, 1)
    sizes = [(n, d) for n in tokens for d in dtypes]
    made = [
        Cell(
            spec=type(CELL.spec)(**{**vars(CELL.spec), "tokens": n, "dtype": getattr(torch, d)}),
            direction="fwd",
            mode="hot",
        )
        for n, d in sizes
    ]
    roof = type(ROOF)(**{**vars(ROOF), "gemm": {"float32": 1e11, "bfloat16": 2e11}})
    machine.verdicts["flex"] = Finding(status="fail", detail="relative L2 is <b>9</b> times what is allowed")
    records = simulate(takes, machine=machine, cells=tuple(made), roof=roof, against=against, processes=2)
    return [*records, *_cases()]


def _cases():
    from minivit.bench.checks.server import Row
    from minivit.bench.report.verdicts import case_record

    found = []
    for check, status, share in (
        ("forward/normal", "pass", 0.3),
        ("needle/permutation", "fail", 40.0),
        ("conduct/scale", "unsupported", None),
    ):
        for dtype in ("float32", "bfloat16"):
            case = Case.parse(f"{check}/2x3x17x32/{dtype}/packed", device="cpu")
            numbers = {} if share is None else {"of_limit": share}
            row = Row(kernel=MINE, case=case, finding=Finding(status=status, detail="so", numbers=numbers))
            found.append(case_record(row, seed=1, command=None))
    return found


@pytest.fixture(scope="module")
def records():
    return records_of()


def test_the_form_of_the_records_is_frozen(records):
    for kind, fields in FIELDS.items():
        found = of_kind(records, kind)
        assert found, kind
        for record in found:
            assert list(record) == fields, kind
            assert record["schema"] == 1
            json.loads(line(record))


def test_records_are_read_back_as_they_were_written(tmp_path: Path, records):
    file = tmp_path / "run.jsonl"
    lines = [line(record) for record in records]
    file.write_text("\n".join(lines) + "\n")
    assert read(file) == read(tmp_path) == json.loads(f"[{','.join(lines)}]")
    file.write_text("\n".join(lines) + '\n{"schema": 1, "ki')  # interrupted
    assert len(read(file)) == len(records)
    file.write_text(lines[1] + "\n")
    with pytest.raises(UsageError, match="holds no run"):
        read(file)
    assert json.loads(line({"schema": 1, "a": [float("nan")], "b": {"c": float("inf")}})) == {
        "schema": 1,
        "a": [None],
        "b": {"c": None},
    }


def test_durations_keep_three_digits():
    cases = {0.0: "0.00 us", 9.876: "9.88 us", 98.76: "98.8 us", 987.6: "988 us", 12345.0: "12.3 ms", 3.2e7: "32.0 s"}
    assert {value: duration(value) for value in cases} == cases


def test_the_table_says_what_was_measured(records):
    first, *_ = cells(of_kind(records, "row"))
    lines = cell_lines(first)
    assert lines[0] == "2x3x50x7 bfloat16 fwd, hot, packed, 2 threads"
    assert re.fullmatch(r"  the gemm roof allows 2.10 us; differences below \d\.\d% are noise here", lines[1])
    mine = next(text for text in lines if text.startswith(f"  {MINE}"))
    assert re.search(r"1\.[78]\d\d +1\.[78]\d\d \.\. 1\.[78]\d\d", mine)
    assert mine.endswith("verified")
    assert any(text.startswith("  flex: INVALID: ") for text in lines)


def test_markdown_is_a_table_of_every_row(records):
    text = markdown(records)
    rows = of_kind(records, "row")
    assert text.count("\n| ") == len(rows) + 2 * len(cells(rows))
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "Imaginary 9000, AVX512; torch 2.14.1" in text


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes; and that all are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "circle", "rect", "polyline") or f"</{tag}>" not in self.get_starttag_text():
            self.open.append(tag) if tag != "meta" else None

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_holds_no_address_and_no_script(records):
    text = page(records)
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    assert "script" not in names
    assert not {"img", "link", "iframe", "object"} & names
    attributes = {name for _, attrs in tags.seen for name in attrs}
    assert not {"src", "href", "srcset", "onload", "onclick"} & attributes
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "url(" not in text
    assert "<b>9</b>" not in text
    assert "&lt;b&gt;9&lt;/b&gt;" in text
    assert sum(tag == "figure" for tag, _ in tags.seen) == 2 + 2 + 1  # times and speed-ups per dtype, one roofline
    for chart in re.findall(r"<svg viewBox=\"0 0 (\d+) (\d+)\".*?</svg>(?=</figure>)", text):
        assert all(float(size) > 0 for size in chart)
    for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', text):
        assert 0 <= float(x) <= 560
        assert 0 <= float(y) <= 900


def test_a_page_of_one_small_run_has_no_empty_parts():
    text = page(simulate({MINE: steady(100), "sdpa": steady(200)}, 1))
    assert "Time over tokens" not in text
    assert "<h2>Check</h2>" not in text
    assert "Speed-up" in text


def test_the_page_opens_in_a_browser_without_a_request(tmp_path: Path, records):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no Chromium with its driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium")
    file = tmp_path / "report.html"
    file.write_text(page(records), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"),
        *("disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}", "window-size=1280,2600"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver)) as chrome:
        chrome.get(file.as_uri())
        width = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert chrome.execute_script(width)  # nothing has to be scrolled across but tables
        drawn = "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
        assert len(chrome.execute_script(drawn)) == 5
        assert min(chrome.execute_script(drawn)) > 50
        messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
        requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        # The browser's own new tab, where it starts, is no concern of the page.
        asked = {one["request"]["url"] for one in requests if one["documentURL"] == file.as_uri()}
        assert asked == {file.as_uri()}
        assert not chrome.get_log("browser")  # no complaint of the console
        if folder := os.environ.get("MINIVIT_SCREENSHOT"):
            chrome.save_screenshot(folder)


def test_roofs_are_kept_with_their_fingerprint_and_age(tmp_path: Path):
    file = tmp_path / "new" / "roofline.json"
    here, there = {"cpu": "A", "threads": 2}, {"cpu": "A", "threads": 1}
    assert kept(file, here, [torch.float32], now=100.0) is None
    note_down(file, ROOF, there, now=50.0)
    note_down(file, ROOF, here, now=60.0)
    assert kept(file, here, [torch.float32], now=100.0) == (ROOF, 40.0)
    assert kept(file, there, [torch.float32], now=100.0) == (ROOF, 50.0)
    assert kept(file, here, [torch.float32, torch.bfloat16], now=100.0) is None  # that one was not measured
    assert kept(file, {"cpu": "B", "threads": 2}, [torch.float32], now=100.0) is None
    note_down(file, ROOF, here, now=90.0)
    assert kept(file, here, [torch.float32], now=100.0) == (ROOF, 10.0)
    file.write_text("[{")
    assert kept(file, here, [torch.float32], now=100.0) is None


# --- the command, on a kernel that is really run

KERNEL = (
    "import torch.nn.functional as F\n\ndef attention(q, k, v):\n    return F.scaled_dot_product_attention(q, k, v)\n"
)
SMALL = ["--shapes", "1,2,17,16", "--budget", "1s", "--processes", "1", "--threads", "1"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The check of one case, and roofs that nothing exceeds, so that the command takes seconds."""
    case = Case.parse("forward/normal/2x3x17x32/float32/packed", device="cpu")
    sky = type(ROOF)(gemm={"float32": 1e15, "bfloat16": 1e15}, memory=1e15, cache=1e15, exp=1e15, cache_bytes=1 << 20)
    monkeypatch.setattr("minivit.bench.timing.run.quick_cases", lambda *a: [case])
    found = Roofline(roof=sky, threads=1, device="cpu", age_seconds=12.0)
    monkeypatch.setattr("minivit.bench.timing.run.roofline", lambda *a, **k: found)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(KERNEL)


@pytest.mark.slow
def test_a_run_from_the_check_to_the_reports(quick, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "run", "mine.py", "--against", "sdpa", *SMALL, "-o", "out", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert "the check says right (1 pass)" in err
    assert "1x2x17x16 float32 fwd, hot, packed, 1 thread" in out
    records = read("out")
    order = [record["kind"] for record in records]
    assert order.index("verdict") < order.index("block") < order.index("row")  # no time before the check has passed
    assert {r["status"] for r in of_kind(records, "row")} <= {"verified", "noisy", "unsteady"}
    (process,) = of_kind(records, "process")
    assert process["torch_threads"] == 1
    assert len(process["cores"]) == 1
    for kind in ("bench", "start", "block", "row"):
        assert all(list(record) == FIELDS[kind] for record in of_kind(records, kind))
    assert all(record["samples_us"] and min(record["samples_us"]) > 0 for record in of_kind(records, "block"))
    assert Path("out/report.md").read_text().startswith("# mine.py against sdpa")
    assert "mine.py against sdpa" in Path("out/report.html").read_text()
    assert main(["bench", "run", "mine.py", *SMALL, "-o", "out"]) == 2
    assert "left alone" in capsys.readouterr().err

    assert main(["bench", "report", "out", "-o", "again"]) == 0
    assert Path("again/report.md").read_text() == Path("out/report.md").read_text()
    capsys.readouterr()
    assert main(["bench", "report", "out", "-o", "mine.py"]) == 2
    assert "mine.py: cannot be made" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_wrong_is_not_timed_unless_asked_to_and_then_says_so(quick, capsys: pytest.CaptureFixture[str]):
    Path("mine.py").write_text(KERNEL.replace("(q, k, v)\n", "(q, k, v) * 1.01\n"))
    assert main(["bench", "run", "mine.py", "--against", "sdpa", *SMALL, "-o", "out"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the check says wrong (1 fail)" in err
    assert "nothing was timed" in err
    assert not of_kind(read("out"), "block")
    assert main(["bench", "run", "sdpa:math", "--against", "sdpa", *SMALL, "--unverified", "--json"]) == 0
    rows = of_kind([json.loads(text) for text in capsys.readouterr().out.splitlines()], "row")
    assert {row["status"] for row in rows} == {"unverified"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "no such file"),
        (["mine.py", "--against", "nothing.py"], "no such file"),
        (["mine.py", "--shapes", "vit-q"], "B,A,N,K"),
        (["mine.py", "--dtypes", "float8"], "no float8"),
        (["mine.py", "--threads", "0"], "not a whole number of at least 1"),
        (["mine.py", "--threads", "100000"], "cores"),
        (["mine.py", "--layout", "heap"], "choose from contiguous"),
        (["mine.py", "--direction", "bwd", "--mode", "cold"], "hot only"),
        (["mine.py", "--graph"], "CUDA graphs"),
        (["sdpa"], "against itself"),
    ],
)
def test_mistakes_of_the_caller_are_one_line_and_2(quick, capsys: pytest.CaptureFixture[str], arguments, message):
    assert main(["bench", "run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_roofline_prints_what_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    found = Roofline(roof=ROOF, threads=1, device="cpu", age_seconds=7300.0)
    monkeypatch.setattr("minivit.bench.timing.roofs.roofline", lambda *a, **k: found)
    assert main(["bench", "roofline", "--dtypes", "float32", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "cpu, 1 thread, measured 2 hours ago" in out
    assert "10.0 GFLOP/s" in out
    assert main(["bench", "roofline", "--dtypes", "float32", "--threads", "1", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == FIELDS["roof"]
