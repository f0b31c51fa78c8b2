"""The report is one well-formed page that says what the records say, whatever they lack."""

import html.parser
import math
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

from growth.architecture import Architecture
from growth.training.report.page import write_report
from growth.training.report.plots import label_rows, smooth
from growth.training.schedule import Stage

VOID = {"meta", "br", "path", "use"}

SMALL = Architecture.llama(
    vocab_size=256, max_length=32, embed_dim=16, num_layers=2, num_heads=2, mlp_dim=32
)
MIDDLE = SMALL.replace(num_layers=3, num_heads=(4, 4, 8), num_kv_heads=(4, 4, 8), embed_dim=24)
LARGE = MIDDLE.replace(mlp_dim=96)
STAGES = tuple(
    Stage(index, start, start + 10, architecture)
    for index, (start, architecture) in enumerate(((0, SMALL), (10, MIDDLE), (20, LARGE)))
)


def run(stages=STAGES, last_step=30) -> list[dict]:
    """Every kind of record; each step of stage i costs 1e12 · (i + 1) FLOPs."""
    records, flops = [], 0.0
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


def report(workdir: Path, records, stages=STAGES, **options) -> tuple[str, Page]:
    path = write_report(workdir, title="A run", stages=stages, records=records, **options)
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
    assert "Training time 1:15 1.5 s of it growing" in line
    assert "Growths 2 logit error at most 6.4 × 10−7" in line


def test_bits_are_per_token_if_a_token_is_no_byte(tmp_path):
    stages = [Stage(0, 0, 10, SMALL.replace(vocab_size=300))]
    _, page = report(tmp_path, run(stages), stages)
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
    _, page = report(tmp_path, [], [Stage(0, 0, 10, deep)])
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


def test_the_figures_mark_and_label_the_growths(tmp_path):
    text, _ = report(tmp_path, run())
    figures = svgs(text)
    assert [figure.get("aria-label") for figure in figures] == [
        "Loss against steps",
        "Loss against training FLOPs",
        "Learning rate against steps",
        "Parameters against steps",
    ]
    for figure in figures[:2]:
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
    assert len(svgs(text)) == (2 if missing == "train" else 4)
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
        {name: None if isinstance(value, float) else value for name, value in record.items()}
        if record["step"] > since
        else record
        for record in run()
    ]
    text, page = report(tmp_path, records)
    assert len(svgs(text)) == 4
    assert "nan" not in text
    assert "None" not in page.text


def test_a_run_needs_a_stage(tmp_path):
    with pytest.raises(ValueError, match="stages is empty"):
        write_report(tmp_path, title="A run", stages=[], records=[])


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
