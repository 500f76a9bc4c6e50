import json
import time

import pytest

from utils.timing import Stopwatch, table


def test_every_second_goes_to_one_part():
    begin = time.perf_counter()
    watch = Stopwatch()
    before = watch.take()["start"]
    assert 0 < before <= time.process_time()
    time.sleep(0.02)
    watch.lap("steps")
    time.sleep(0.03)
    watch.lap("pictures")
    watch.lap("steps")
    seconds = watch.take()
    assert seconds["steps"] >= 0.02 and seconds["pictures"] >= 0.03
    assert sum(seconds.values()) <= time.perf_counter() - begin
    assert watch.take() == {}


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
