"""The table of claims shows what is recorded, and the pages show the table."""

import json
import shutil

import pytest
from conftest import ROOT
from notebooks import NBS, cells, execute, source

RESULTS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def chapter():
    """The functions of the chapter."""
    return execute("evidence/10_claims").names


def test_pages_show_the_table(chapter):
    claims_of, claims_table = chapter["claims_of"], chapter["claims_table"]
    assert claims_table(claims_of()) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert claims_table(claims_of(), links="") in map(source, cells(NBS / "index.ipynb"))


def test_notebooks_of_the_claims_are_there_and_end_with_a_verdict(chapter):
    for claim in chapter["claims_of"]():
        last = source(cells(NBS / "figures" / f"{claim.notebook}.ipynb")[-1])
        assert last.startswith("**Verdict**") and "What would change the verdict" in last, claim.notebook


@pytest.fixture
def results(tmp_path):
    return shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "search"))


def test_numbers_follow_the_records(chapter, results):
    before = chapter["claims_of"](results)
    assert before == chapter["claims_of"]()
    for path in (results / "length").glob("euclidean-seed*/outcomes.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["responses"] = {kind: [2 * x for x in sizes] for kind, sizes in content["responses"].items()}
        path.write_text(json.dumps(content))
    changed = [a.claim for a, b in zip(before, chapter["claims_of"](results)) if a != b]
    assert changed == ["Wasserstein critics are more robust"]
    (results / "length" / "study.json").unlink()
    with pytest.raises(FileNotFoundError, match="study.json does not exist"):
        chapter["claims_of"](results)


def test_gain_in_retrieval_is_the_mean_over_queries(chapter):
    recorded = json.loads((RESULTS / "retrieval.json").read_text())
    hits = recorded["found"]["14"]["hits"]
    expected = (sum(map(int, hits["Wasserstein-2"]["5"])) - sum(map(int, hits["Euclidean"]["5"]))) / 5 / 1000
    found = chapter["retrieval_gain"](recorded, "14")
    assert found.mean == pytest.approx(expected) and found.low < found.mean < found.high and found.n == 1000
