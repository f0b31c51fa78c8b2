"""The report is one well-formed page that says what the records say, whatever they lack."""

import dataclasses
import html.parser
import json
import math
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

from growth.architecture import Architecture
from growth.training.config import TrainConfig, parse
from growth.training.config_sections import OptimizerConfig
from growth.training.optimization import rates
from growth.training.report import plots
from growth.training.report.canvas import canvas
from growth.training.report.comparison import write_comparison
from growth.training.report.page import write_report
from growth.training.report.plots import label_rows, smooth
from growth.training.report.records import ReportError, RunRecords

VOID = {"meta", "br", "path", "use"}

SMALL = Architecture.llama(
    vocab_size=256, max_length=32, embed_dim=16, num_layers=2, num_heads=2, mlp_dim=32
)
CONFIG = TrainConfig(
    SMALL,
    growth=(
        dict(step=10, num_layers=3, num_heads=(4, 4, 8), num_kv_heads=(4, 4, 8), embed_dim=24),
        dict(step=20, mlp_dim=96),
    ),
    num_steps=30,
    seed=7,
    optimizer=OptimizerConfig(decay=0.0),
)


def run(config=CONFIG, last_step=30) -> list[dict]:
    """Every kind of record; each step of stage i costs 1e12 · (i + 1) FLOPs."""
    stages = config.stages
    records, flops = [], 0.0
    records.append(
        {
            "kind": "start",
            "step": 0,
            "stage": 0,
            "date": "2026-11-28T12:00:00+01:00",
            "command": "growth train --config=mine.py --workdir='a b'",
            "seed": 7,
            "devices": "8 × TPU v5 (tpu)",
            "data": "1.0M training tokens of 3 files",
            "versions": {"growth": "0.1.0", "jax": "0.10.2"},
        }
    )
    for stage in stages:
        index = stage.index
        if index:
            before = stages[index - 1].architecture
            records.append(
                {
                    "kind": "growth",
                    "step": stage.start,
                    "stage": index,
                    "loss_before": 2.5,
                    "loss_after": 2.50000025,
                    "logit_error": 3.2e-7 * index,
                    "parameters_before": before.num_parameters,
                    "parameters_after": stage.architecture.num_parameters,
                    "flops": flops,
                    "seconds": 0.75,
                    "changes": {"num_heads": [2, [4, 4, 8]], "norm_eps": [1e-6, 5e-7]},
                }
            )
        for step in range(stage.start + 1, stage.stop + 1):
            if step > last_step:
                return records
            flops += 1e12 * (index + 1)
            records.append(
                {
                    "kind": "train",
                    "step": step,
                    "stage": index,
                    "loss": 3.0 - step / 30,
                    "learning_rate": 1e-3,
                    "grad_norm": 1.0,
                    "tokens_per_second": 5000.0 / (index + 1),
                    "flops": flops,
                    "seconds": 2.5 * step,
                    "clock": {"training": 1.5 * step, "compilation": 10.0, "saving": 0.0},
                }
            )
            if step % 5 == 0:
                records.append(
                    {"kind": "eval", "step": step, "stage": index, "loss": 4 - step / 15}
                    | {"flops": flops}
                )
                records.append(
                    {"kind": "sample", "step": step, "stage": index}
                    | {"prompt": "\n<Once> & ", "text": f"upon </pre><script>{step}"}
                )
    return records


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced; collects text, tags, attributes, tables and <pre>s."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.pres: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("dt", "dd", "div"):
            self.text += "\n"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "pre":
            self.pres.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "pre" in self.open:
            self.pres[-1] += data


def report(workdir: Path, records, config=CONFIG, **options) -> tuple[str, Page]:
    path = write_report(workdir, title="A run", config=config, records=records, **options)
    assert path == workdir / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def svgs(text: str) -> list[xml.etree.ElementTree.Element]:
    return [
        xml.etree.ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", text, re.S)
    ]


def headline(page: Page) -> str:
    return " ".join(page.text.split("Evaluation loss")[1].split("Loss")[0].split())


def test_the_report_is_one_self_contained_page(tmp_path):
    text, page = report(tmp_path, run())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    references = re.findall(r'(?:href="|url\()#(\w+)', text)
    assert set(references) <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_the_headline_says_how_it_ended(tmp_path):
    _, page = report(tmp_path, run())
    assert "Finished: 30 steps in 3 stages." in page.text
    line = headline(page)
    assert line.startswith(f"2.0000 {2 / math.log(2):.3f} bits per byte")
    assert "Training FLOPs 6.0 × 1013" in line  # 10 · (1 + 2 + 3) · 1e12
    assert "Time 1:15 1.5 s of it growing" in line
    assert "Growths 2 logit error at most 6.4 × 10−7" in line


def test_bits_are_per_token_if_a_token_is_no_byte(tmp_path):
    config = TrainConfig(SMALL.replace(vocab_size=300), num_steps=10)
    _, page = report(tmp_path, run(config), config)
    assert "bits per token" in headline(page)


def test_the_stage_table(tmp_path):
    _, page = report(tmp_path, run())
    header = next(row for row in page.rows if row[0] == "stage")
    first, second, third = (
        dict(zip(header, row, strict=True)) for row in page.rows if row[0] in ("1", "2", "3")
    )
    assert second["steps"] == "10–20"
    assert [row["layers"] for row in (first, second, third)] == ["2", "3", "3"]
    assert [row["heads"] for row in (first, second, third)] == ["2", "4/4/8", "4/4/8"]
    assert [row["mlp"] for row in (first, second, third)] == ["32", "32", "96"]
    assert [row["share"] for row in (first, second, third)] == ["16.7%", "33.3%", "50.0%"]
    assert [row["tokens / s"] for row in (first, second, third)] == ["5,000", "2,500", "1,667"]
    assert [row["eval loss"] for row in (first, second, third)] == ["3.3333", "2.6667", "2.0000"]


def test_a_stage_ends_at_the_growth_even_if_its_last_steps_were_not_recorded(tmp_path):
    records = [r for r in run() if r["kind"] == "growth" or r["step"] % 10 in (3, 7)]
    _, page = report(tmp_path, records)
    flops = [" ".join(row[11].split()) for row in page.rows if row[0] in ("1", "2", "3")]
    # The last stage was seen until step 27.
    assert flops == ["1.0 × 1013", "2.0 × 1013", "2.1 × 1013"]


def test_the_stage_table_highlights_exactly_what_grew(tmp_path):
    text, _ = report(tmp_path, run())
    rows = re.findall("<tr>.*</tr>", text)
    changed = [re.findall('<td class="changed">([^<]*)</td>', row) for row in rows]
    assert [cells for cells in changed if cells] == [["3", "24", "4/4/8", "4/4/8"], ["96"]]


def test_many_layers_are_shown_as_runs(tmp_path):
    deep = SMALL.replace(num_layers=12, num_heads=(2,) * 9 + (4,) * 3, num_kv_heads=2)
    _, page = report(tmp_path, [], TrainConfig(deep, num_steps=10))
    assert "2 (×9) / 4 (×3)" in page.text


def test_the_preservation_table(tmp_path):
    _, page = report(tmp_path, run())
    first, second = (row for row in page.rows if "→" in row[0])
    assert first[:3] == ["1 → 2", "10", "heads 2→4/4/8"]
    numbers = [" ".join(cell.split()) for cell in first[4:]]
    assert numbers == ["2.500000", "2.500000", "2.5 × 10−7", "3.2 × 10−7", "0.75 s"]
    assert second[0] == "2 → 3"


def test_samples_and_titles_are_escaped(tmp_path):
    text, page = report(tmp_path, run(), description="1 < 2 & $title </p>")
    assert "1 < 2 & $title </p>" in page.text
    samples = [pre for pre in page.pres if "Once" in pre]
    assert samples[0] == "\n\n<Once> & upon </pre><script>30"  # the page drops the first line break
    assert len(samples) == 6
    assert "<b>\n&lt;Once&gt; &amp; </b>upon" in text


def test_a_sample_that_repeats_its_prompt_shows_it_once(tmp_path):
    sample = {"kind": "sample", "step": 1, "stage": 0, "prompt": "Once ", "text": "Once upon"}
    _, page = report(tmp_path, [sample])
    assert page.pres[0] == "\nOnce upon"


FIGURES = [
    *(f"Loss against {axis}" for axis in ("steps", "training tokens", "training FLOPs")),
    "Loss against wall-clock time",
    *(f"{name} against steps" for name in ("Learning rate", "Parameters", "Gradient norm")),
    "Tokens per second against steps",
]


def test_the_report_says_which_run_it_is(tmp_path):
    resumed = {**run()[0], "step": 12, "stage": 1, "date": "2026-11-29T08:00:00+01:00"}
    text, page = report(tmp_path, [*run(), resumed])
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert facts["started"] == (
        "2026-11-28T12:00:00+01:00; resumed after step 12: 2026-11-29T08:00:00+01:00"
    )
    assert facts["command"] == "growth train --config=mine.py --workdir=&#x27;a b&#x27;"
    assert facts["seed"] == "7"
    assert facts["data"] == "1.0M training tokens of 3 files"
    assert facts["batch"] == "16 sequences of 32 tokens: 512 tokens a step"
    assert facts["devices"] == "8 × TPU v5 (tpu)"
    assert facts["versions"] == "growth 0.1.0, jax 0.10.2"
    assert "warm-up over 2 steps" in facts["optimizer"]
    assert facts["time"] == "1:15: training 0:45 (60%), all else 0:20 (27%), compilation 0:10 (13%)"
    (config,) = (pre for pre in page.pres if '"batch_size"' in pre)
    assert parse(json.loads(config)) == parse(json.loads(json.dumps(CONFIG.to_dict())))


@pytest.mark.parametrize("start", [1.1, 5.5, 60.0, 1e4])
def test_no_loss_is_cut_off(start, monkeypatch):
    """However steep the first steps are: all that is drawn is within the axes."""
    made = []
    monkeypatch.setattr(plots, "canvas", lambda *a, **k: made.append(canvas(*a, **k)) or made[-1])
    records = [
        record | {"loss": max(start / record["step"], 1.0)} if "loss" in record else record
        for record in run()
    ]
    seen = RunRecords("a", CONFIG, records)
    for plot in (plots.loss_plot, plots.comparison_plot):
        plot(seen if plot is plots.loss_plot else [seen], "step")
        axes = made[-1][1]
        low, high = axes.get_ylim()
        drawn = [line.get_ydata() for line in axes.lines if line.get_transform() == axes.transData]
        assert len(drawn) >= 3
        assert low <= np.min(np.concatenate(drawn)) <= np.max(np.concatenate(drawn)) <= high
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_the_learning_rate_is_drawn_at_every_step(tmp_path):
    """Though records were written at every tenth: a dip of two steps shows."""
    growth = ({"step": 15, "mlp_dim": 96, "rewarming": dict(steps=2, start=0.1)},)
    config = dataclasses.replace(CONFIG, growth=growth)
    records = [r for r in run() if r["kind"] == "train" and r["step"] % 10 == 0]
    svg = plots.learning_rate_plot(RunRecords("a", config, records))
    (line,) = (d for d in re.findall(r'd="([^"]*)"', svg) if d.count("L") > 5)
    heights = [-float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", line)]
    low, high = min(heights), max(heights)
    rate = rates(config, 0, 30)
    assert rate[15] < 0.6 * rate[14] == 0.6 * rate[17]
    # The line falls to the dip and comes back: it turns there.
    after_peak = heights[heights.index(high) :]
    assert min(after_peak) < high - 0.3 * (high - low)
    assert after_peak[-1] == pytest.approx(high)


def test_the_figures_mark_and_label_the_growths(tmp_path):
    text, _ = report(tmp_path, run())
    figures = svgs(text)
    assert [figure.get("aria-label") for figure in figures] == FIGURES
    for figure in figures[:4]:
        labels = [element.text for element in figure.iter() if element.tag.endswith("text")]
        assert sum(bool(re.fullmatch(r"\d→\d: .*→.*", label)) for label in labels) == 2
    for figure in figures:
        dashed = [e for e in figure.iter() if "stroke-dasharray" in e.get("style", "")]
        assert len(dashed) == 2


def test_figures_take_their_colours_and_font_from_the_page(tmp_path):
    text, _ = report(tmp_path, run())
    defined = set(re.findall(r"(--\w+):", text))
    for svg in re.findall("<svg.*?</svg>", text, re.S):
        assert not re.search(r"(fill|stroke): #", svg)
        assert "font-family" not in svg
        assert set(re.findall(r"var\((--\w+)\)", svg)) <= defined


def test_the_same_run_gives_the_same_report(tmp_path):
    assert report(tmp_path / "a", run())[0] == report(tmp_path / "b", run())[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("last_step", [1, 9, 10, 11, 25])
def test_an_unfinished_run(tmp_path, last_step):
    _, page = report(tmp_path, run(last_step=last_step))
    stage = 1 + (last_step >= 10) + (last_step >= 20)
    assert f"Not finished: step {last_step} of 30, in stage {stage} of 3." in page.text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", ["train", "eval", "growth", "sample"])
def test_any_kind_of_record_may_be_missing(tmp_path, missing):
    records = [record for record in run() if record["kind"] != missing]
    text, page = report(tmp_path, records)
    assert len(svgs(text)) == (3 if missing == "train" else 8)
    assert ("Preservation" in page.text) == (missing != "growth")
    assert ("Samples" in page.text) == (missing != "sample")


@pytest.mark.filterwarnings("error")
def test_a_run_without_records(tmp_path):
    _, page = report(tmp_path, [])
    assert "Nothing has been measured yet." in page.text
    assert "Not finished: step 0 of 30, in stage 1 of 3." in page.text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("since", [0, 10, 15])
def test_numbers_that_were_not_finite_are_left_out(tmp_path, since):
    records = [
        {n: None if isinstance(v, float) else v for n, v in record.items()}
        if record["step"] > since
        else record
        for record in run()
    ]
    text, page = report(tmp_path, records)
    assert len(svgs(text)) == 8
    assert "nan" not in text
    assert "None" not in page.text


def saved(directory: Path, config=CONFIG, records=None) -> Path:
    """The directory of a run."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    lines = [json.dumps(record) + "\n" for record in (run(config) if records is None else records)]
    (directory / "metrics.jsonl").write_text("".join(lines))
    return directory


def test_runs_side_by_side(tmp_path):
    slower = [
        record | {"loss": record["loss"] + 0.5} if record["kind"] == "eval" else record
        for record in run()
    ]
    one = saved(tmp_path / "one")
    other = saved(tmp_path / "other", dataclasses.replace(CONFIG, seed=8), slower)
    path = write_comparison(tmp_path / "pages" / "both.html", [one, other])
    text = path.read_text()
    page = Page(text)
    axes = ("steps", "training tokens", "training FLOPs", "wall-clock time")
    assert [svg.get("aria-label") for svg in svgs(text)] == [
        f"Evaluation loss against {axis}" for axis in axes
    ]
    assert ["seed", "7", "8"] in page.rows
    costs = [row for row in page.rows if row[0] in ("one", "other")][-2:]
    # Both reach 2.5: one between its evaluations at steps 20 and 25, the other at its last step.
    assert [row[1] for row in costs] == ["22", "30"]
    assert [row[4] for row in costs] == ["0:56", "1:15"]
    for number in (1, 2):
        assert f"var(--run{number})" in text


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = [saved(tmp_path / name / "run") for name in ("a", "b")]
    text = write_comparison(tmp_path / "both.html", paths).read_text()
    for path in paths:
        assert str(path) in text
    assert "Their configs are the same." in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("records", [[], run()[:1], run(last_step=3), run(last_step=7)])
def test_a_run_that_has_just_begun_is_compared(tmp_path, records):
    paths = [saved(tmp_path / "a", records=records), saved(tmp_path / "b")]
    text = write_comparison(tmp_path / "both.html", paths).read_text()
    assert len(svgs(text)) == 4
    assert "nan" not in Page(text).text


def test_what_is_no_run_is_not_compared(tmp_path):
    with pytest.raises(ReportError, match=r"is no run: its config\.json cannot be read"):
        write_comparison(tmp_path / "page.html", [saved(tmp_path / "a"), tmp_path / "b"])
    with pytest.raises(ReportError, match="no run is given"):
        write_comparison(tmp_path / "page.html", [])
    assert not (tmp_path / "page.html").exists()


def test_labels_meet_neither_each_other_nor_a_line():
    generator = np.random.default_rng(0)
    for _ in range(200):
        marks = sorted(generator.uniform(size=generator.integers(1, 9)).tolist())
        width = float(generator.uniform(0.01, 0.4))
        rows = label_rows(marks, width)
        for left, (mark, row) in enumerate(zip(marks, rows, strict=True)):
            covered = [i for i in range(left + 1, len(marks)) if marks[i] < mark + width]
            assert all(rows[i] < row for i in covered)
            assert row == 0 or max(rows[i] for i in covered) == row - 1


def test_smoothing_is_a_mean_of_the_finite_neighbours():
    curve = np.array([1.0, 2.0, math.nan, 6.0, 10.0])
    np.testing.assert_allclose(smooth(curve, 1), curve)
    np.testing.assert_allclose(smooth(curve, 3), [1.5, 1.5, 4.0, 8.0, 8.0])
    assert np.isnan(smooth(np.array([math.nan, math.nan]), 3)).all()
