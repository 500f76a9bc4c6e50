import json

import pytest
from one_weight import make_loop, take_steps
from utils.training.log import table


def test_a_run_that_was_cut_off_forgets_the_lines_it_will_write_again(tmp_path):
    take_steps(make_loop(tmp_path, num_steps=20))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 24, "loss": 1.0}\n{"step": 28, "lo')
    (tmp_path / "diffusion-20.pt").unlink()
    take_steps(make_loop(tmp_path, num_steps=20))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
    assert (tmp_path / "diffusion-20.pt").exists()


def test_a_table_of_runs_and_their_sum(tmp_path):
    for name, steps in (("one", 1.5), ("other", 2.25)):
        (tmp_path / name).mkdir()
        lines = [{"step": 1, "loss": 3.0}, {"step": 1, "seconds": {"start": 1.0, "steps": steps}}]
        lines.append({"step": 2, "seconds": {"steps": 10.0, "pictures": 0.5}})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head, one, other, both = table([tmp_path / "one", tmp_path / "other"]).splitlines()
    assert head.split() == ["seconds", "start", "first", "step", "steps", "pictures", "checkpoints", "in", "all"]
    assert [float(cell) for cell in one.split()[1:]] == [1.0, 0.0, 11.5, 0.5, 0.0, 13.0]
    assert float(other.split()[3]) == pytest.approx(12.25, abs=0.06)
    assert both.split()[:2] == ["in", "all"] and float(both.split()[-1]) == pytest.approx(26.75, abs=0.06)
