"""A thousand mutated folders of diffusers."""

from hostile_pipelines import survive_pipelines


def test_a_thousand_mutated_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts = survive_pipelines(tmp_path, 1000, seed=0)
    print(dict(verdicts))
    assert sum(verdicts.values()) == 1000
