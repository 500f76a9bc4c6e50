"""Ten thousand mutated checkpoints, training states and configurations."""

from survival import survive


def test_ten_thousand_mutated_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts = survive(tmp_path, 10_000, seed=0)
    assert sum(verdicts.values()) == 10_000
