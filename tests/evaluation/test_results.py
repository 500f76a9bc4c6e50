import json

import pytest

from utils.evaluation.evaluation import Results
from utils.system.errors import InputError


def test_what_was_added_is_found_again(tmp_path):
    results = Results(tmp_path / "results.json")
    results.add({"name": "teacher", "steps": 8, "seed": 0, "fid": 1.5, "distances": {8: 0.1}})
    results.add({"name": "teacher", "steps": 8, "seed": 1, "fid": 2.5, "sampler": None})
    results.add({"name": "a path that is no text: \udcff"})
    again = Results(tmp_path / "results.json")
    assert again.find({"name": "teacher", "steps": 8, "seed": 1})["fid"] == 2.5
    assert again.find({"name": "teacher", "steps": 4, "seed": 1}) is None
    assert again.find({"name": "teacher", "seed": 0, "sampler": None}) is None  # an unknown is no None


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"evaluations": []}', "[" * 100_000, "\udcff"])
def test_something_else_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"results.json: damaged, or not of this version"):
        Results(path)


@pytest.mark.parametrize(("version", "entries"), [(2, []), (3, [1]), (3, {})])
def test_another_version_is_refused(tmp_path, version, entries):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format_version": version, "evaluations": entries}))
    with pytest.raises(InputError, match=r"results.json: damaged, or not of this version"):
        Results(path)
