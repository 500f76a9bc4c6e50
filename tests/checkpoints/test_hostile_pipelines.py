from hostile_pipelines import survive_pipelines


def test_mutated_folders_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts = survive_pipelines(tmp_path, 120, seed=1)
    assert verdicts["json", "refused"] > 20 and verdicts["weights", "refused"] > 20, verdicts
