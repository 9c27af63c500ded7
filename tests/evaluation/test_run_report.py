"""`vpt report`: what stands on the page, that it needs nothing else, and how browsers lay it out."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml
from small_run import small_run
from webserver import WebServer

from vpt_vision import load_config, train
from vpt_vision.cli import main
from vpt_vision.errors import UserError
from vpt_vision.evaluation.probes import probe
from vpt_vision.evaluation.run_report import page as page_module
from vpt_vision.evaluation.run_report import write_run_report
from vpt_vision.evaluation.run_report.history import read_histories
from vpt_vision.loading import load_backbone
from vpt_vision.training.log import read_log

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tables by caption as rows of cells, headings, figures' descriptions, and what a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.headings, self.alts, self.fetched = {}, [], [], []
        self.words = self.caption = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.alts += [
            attributes[name] for name in ("alt", "aria-label") if name in attributes and tag in ("img", "svg")
        ]
        self.fetched += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        if tag == "link" or tag == "script":
            self.fetched.append(tag)
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("caption", "th", "td", "h1", "h2", "h3"):
            self.words = ""

    def handle_endtag(self, tag):
        if tag == "caption":
            self.caption = self.words
            self.tables[self.caption] = []
        elif tag in ("th", "td"):
            self.tables[self.caption][-1].append(self.words)
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(self.words)

    def handle_data(self, data):
        if self.words is not None:
            self.words += data


def rows(page, caption):
    """A table's rows by their first cell."""
    (table,) = [table for name, table in page.tables.items() if name.startswith(caption)]
    return {row[0]: row[1:] for row in table}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of a learned designer with probes' data, and one of the fixed recipe without."""
    folder = tmp_path_factory.mktemp("reported")
    scenes = {"kind": "fashion_scenes", "size": 32}
    settings = small_run(
        folder / "learned",
        value={"every": 1, "batch": 4, "pairs": 1, "tail_blocks": 1},
        checkpoint={"every": 6, "designers": 2},
        log={"every": 1, "tensorboard": False},
        evaluation={
            "train": {**scenes, "split": "train", "count": 100, "seed": 1},
            "test": {**scenes, "split": "test", "count": 60},
            "image_size": 24,
            "cache": None,
        },
    )
    learned = train(settings).output
    fixed = {**settings, "output": str(folder / "fixed"), "designer": {"kind": "fixed"}}
    del fixed["feedback"], fixed["evaluation"]
    return learned, train(fixed).output


@pytest.fixture(scope="module")
def page(runs):
    """The page of both runs."""
    path = runs[0] / "report.html"
    assert main(["report", *map(str, runs)]) == 0
    return path


def test_the_page_tells_what_the_runs_logged(runs, page, capsys):
    text = page.read_text(encoding="utf-8")
    told = Page(text)
    learned, fixed = map(read_log, (run / "metrics.jsonl" for run in runs))
    summary = rows(told, "Runs")
    assert summary["run"] == ["learned", "fixed"] == summary["designer"]
    assert summary["steps"] == ["6 of 6"] * 2 and summary["images"] == ["48"] * 2
    assert summary["loss, last line"] == [f"{log[-1]['loss']:.3f}" for log in (learned, fixed)]
    rates = sorted(record["images_per_second"] for record in learned[1:])
    assert summary["images per second, median"][0] == f"{rates[2]:,.0f}"
    steps = rows(told, "Milliseconds of a step")
    for words, phase in (("student, teacher and losses", "forward"), ("feedback and designer", "value")):
        mean = sum(record[f"seconds/{phase}"] for record in learned[1:]) / 5
        assert steps[words][0] == f"{1000 * mean:,.1f}"
    assert steps["feedback and designer"][1] == "-"
    indicators = rows(told, "Indicators of collapse")
    first, last = (record["collapse/rankme"] for record in (learned[0], learned[-1]))
    assert indicators["RankMe"][0] == f"{first:.3g} → {last:.3g}"
    for figure in ("loss", "value", "kl/crops", "meta_loss", "collapse/information", "images_per_second"):
        ends = f"learned{{}} from {learned[0][figure]:.4g} to {learned[-1][figure]:.4g}"
        assert any(ends.format("") in alt or ends.format(", meta") in alt for alt in told.alts), figure
    differences = rows(told, "Where the configs differ")
    assert differences["designer.kind"] == ["learned", "fixed"] and "output" not in differences
    assert told.headings[0] == "Run learned, fixed"
    environment = json.loads((runs[0] / "environment.jsonl").read_text().splitlines()[-1])
    for said in (environment["torch"], "parameters: backbone", "% of the learner&#39;s", "thumbnail: 32"):
        assert said in text
    configs = re.findall(r"<pre>(.*?)</pre>", text, flags=re.DOTALL)
    assert yaml.safe_load(configs[0].replace("&#39;", "'"))["designer"]["width"] == 8


def test_the_probes_are_those_of_vpt_eval(runs, page, tmp_path, monkeypatch):
    """Of the start and of the end, once: another report reads what the first one found."""
    told = Page(page.read_text(encoding="utf-8"))
    found = rows(told, "Probes on 60 test images")
    assert found["backbone"] == ["start of learned", "learned, step 6"]
    backbone = load_backbone(runs[0])
    config = load_config(runs[0] / "config.yaml")
    result = probe(backbone, config.evaluation, ("knn",), renderer=config.renderer())["knn"][0]
    accuracy = found["kNN, k = 10: accuracy"][1]
    assert accuracy.startswith(f"{100 * result.interval('accuracy').mean:.1f} %[")

    def fail(*arguments, **options):
        raise AssertionError("probed again")

    monkeypatch.setattr(page_module, "probe", fail)
    monkeypatch.setattr(page_module, "designer_pictures", lambda history: [])
    write_run_report(runs, tmp_path / "again.html")
    assert rows(Page((tmp_path / "again.html").read_text()), "Probes")["kNN, k = 10: accuracy"][1] == accuracy
    write_run_report(runs, tmp_path / "none.html", probes=False)
    assert "Probes" not in Page((tmp_path / "none.html").read_text()).headings


def test_the_page_needs_nothing_else(page):
    """No file, no host: pictures are inside, the learned designer's heat maps and tasks among them."""
    text = page.read_text(encoding="utf-8")
    told = Page(text)
    assert all(fetched.startswith(("data:image/png;base64,", "#")) for fetched in told.fetched)
    assert sum(fetched.startswith("data:") for fetched in told.fetched) == 2
    assert not re.search(r"@import|url\((?!['\"]?#)", text)
    assert any(alt.startswith("Heat maps of crops and masks") for alt in told.alts)
    assert "What the designer asked" in told.headings


def test_a_phase_that_a_line_has_none_of_counts_as_nothing_there(runs):
    """Value comes every other step: its mean is over all steps, so that phases add up to the step."""
    (history,) = read_histories(runs[:1])
    lines = [{"step": step, "seconds/forward": 1.0, "images_per_second": 4.0} for step in range(5)]
    lines[2]["seconds/value"] = lines[4]["seconds/value"] = 2.0
    timed = replace(history, records=tuple(lines))
    assert [timed.phase_seconds(phase) for phase in ("forward", "value")] == [1.0, 1.0]
    assert timed.step_seconds() == 2.0 and math.isnan(timed.phase_seconds("data"))


def test_a_run_that_goes_on_or_has_collapsed_says_so(runs, tmp_path):
    run = tmp_path / "collapsed"
    shutil.copytree(runs[1], run)
    lines = [
        {"step": step, "loss": 3.0, "collapse/information": 0.3 if step < 3 else 0.001}
        | {"collapse/prototypes": 1.5, "collapse/rankme": 1.1}
        for step in range(1, 6)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (sentence,) = write_run_report([run], tmp_path / "one.html")
    assert sentence == "collapsed: at step 5 of 6, loss 3.000. The learner has collapsed."
    text = (tmp_path / "one.html").read_text()
    assert '<p class="headline alarm">collapsed: at step 5' in text
    assert "step 5: the learner has collapsed: the teacher" in text


def test_what_is_not_there_any_more_is_left_out_and_told(runs, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(runs[0], run, ignore=shutil.ignore_patterns("report*"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    nowhere = {"kind": "folder", "path": str(tmp_path / "nowhere")}
    config["data"]["train"] = config["evaluation"]["test"] = nowhere
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_run_report([run], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for what in ("pictures of moved&#39;s designer", "probes of moved&#39;s start", "probes of moved"):
        assert re.search(f"Without {what}: .*nowhere", text), what
    assert "What the designer asked" not in Page(text).headings


def test_bad_input_is_told_in_a_sentence(runs, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_run_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(UserError, match="named twice"):
        write_run_report([runs[0], runs[0] / ".." / runs[0].name], tmp_path / "page.html")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(runs[0] / "config.yaml", empty)
    with pytest.raises(UserError, match="cannot be read"):
        write_run_report([empty], tmp_path / "page.html")
    other = tmp_path / "a" / "learned"
    shutil.copytree(runs[0], other, ignore=shutil.ignore_patterns("report*"))
    names = [history.name for history in read_histories([runs[0], other])]
    assert names == [
        f"{runs[0].parent.name}/learned",
        "a/learned",
    ]  # as much of the paths as tells them apart


MEASURE = """<!doctype html><body>
<iframe id=f360 src=page.html style="width:360px;height:900px;border:0"></iframe>
<iframe id=f1280 src=page.html style="width:1280px;height:900px;border:0"></iframe>
<script>onload = () => {
  const told = {};
  for (const width of [360, 1280]) {
    const page = document.getElementById("f" + width).contentDocument;
    const small = [...page.querySelectorAll(".panels svg")].map(svg => svg.getBoundingClientRect());
    told[width] = {
      scroll: page.documentElement.scrollWidth,
      broken: [...page.images].filter(image => !image.naturalWidth).length,
      pictures: page.images.length,
      plots: small.length,
      narrowest: Math.min(...small.map(box => box.width)),
      rightmost: Math.max(...small.map(box => box.right)),
      rows: new Set(small.map(box => box.top)).size,
      text: Math.min(...[...page.querySelectorAll("p, td, th, figcaption, li, dd")].map(
        part => parseFloat(page.defaultView.getComputedStyle(part).fontSize))),
    };
  }
  document.body.textContent = JSON.stringify(told);
}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: no page is laid out")
class TestInABrowser:
    """Headless Chromium."""

    def run(self, tmp_path, *options):
        base = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        return subprocess.run(
            [*base, *options], capture_output=True, text=True, timeout=120, check=True
        ).stdout

    def test_it_fits_a_phone_and_a_desk_and_fetches_nothing(self, page, tmp_path):
        shutil.copy(page, tmp_path / "page.html")
        (tmp_path / "frame.html").write_text(MEASURE)
        with WebServer(tmp_path) as server:
            dumped = self.run(
                tmp_path, "--virtual-time-budget=10000", "--dump-dom", f"{server.url}/frame.html"
            )
            fetched = set(server.gets)
        assert fetched <= {"frame.html", "page.html", "favicon.ico"}
        told = json.loads(re.search(r"\{.*\}", dumped)[0])
        for width, found in told.items():
            assert found["scroll"] <= int(width)  # nothing is cut off at the right
            assert found["broken"] == 0 and found["pictures"] == 2 and found["plots"] > 15
            assert found["rightmost"] <= int(width) and found["narrowest"] > 250
            assert found["text"] >= 12  # pixels
        assert told["360"]["rows"] == told["360"]["plots"] > 2 * told["1280"]["rows"]

    def test_it_prints(self, page, tmp_path):
        """On several pages, on which the folded configs are unfolded."""
        text = page.read_text(encoding="utf-8")
        pages = {}
        for name, content in {"whole": text, "bare": re.sub(r"(?s)<details>.*</details>", "", text)}.items():
            (tmp_path / f"{name}.html").write_text(content, encoding="utf-8")
            self.run(tmp_path, f"--print-to-pdf={tmp_path / name}.pdf", f"file://{tmp_path / name}.html")
            pages[name] = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / f"{name}.pdf").read_bytes()))
        assert 3 <= pages["bare"] < pages["whole"] <= 20
