"""The table of claims shows what is recorded, and the pages show the table."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from wwgan.evidence.claims import claims_of, claims_table, main, retrieval_gain

RESULTS = ROOT / "data" / "results"


def test_pages_show_the_table():
    assert claims_table(claims_of()) in (ROOT / "README.md").read_text(encoding="utf-8")
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    assert claims_table(claims_of(), links="") in ["".join(cell["source"]) for cell in cells]


def test_notebooks_of_the_claims_are_there_and_end_with_a_verdict():
    for claim in claims_of():
        cells = json.loads((ROOT / "nbs" / "figures" / f"{claim.notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        last = "".join(cells[-1]["source"])
        assert last.startswith("**Verdict**") and "What would change the verdict" in last, claim.notebook


@pytest.fixture
def results(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "learning_rates"))
    return tmp_path / "results"


def change(path, how):
    content = json.loads(path.read_text(encoding="utf-8"))
    how(content)
    path.write_text(json.dumps(content))


def test_numbers_follow_the_records(results, capsys):
    assert main([str(results)]) == 0
    assert capsys.readouterr().out.strip() == claims_table(claims_of())

    def double(content):
        for name, run in content["critics"].items():
            if name.startswith("euclidean-"):
                run["responses"] = {kind: [2 * x for x in sizes] for kind, sizes in run["responses"].items()}
                run["paths"] = {}

    before = claims_of(results)
    change(results / "critics" / "robustness.json", double)
    after = claims_of(results)
    assert [a == b for a, b in zip(before, after)] == [True, False, True, True, True, True]


def test_gain_in_retrieval_is_the_mean_over_queries(results):
    recorded = json.loads((results / "ground_metric.json").read_text())
    of = recorded["retrieval"]["digits"]["precisions"]
    expected = np.mean(of["Wasserstein-2"], axis=(0, 1))[1] - np.mean(of["Euclidean"], axis=(0, 1))[1]
    found = retrieval_gain(recorded, "digits")
    assert found.mean == pytest.approx(expected) and found.low < found.mean < found.high and found.n == 200


def test_missing_records_are_named(results, capsys):
    (results / "ablation" / "ablation.json").unlink()
    with pytest.raises(FileNotFoundError, match="ablation.json does not exist"):
        claims_of(results)
    assert main([str(results)]) == 2 and "ablation.json" in capsys.readouterr().err
