import json

from conftest import call
from PIL import Image
from utils.training.curves import curves_below


def test_the_losses_of_all_runs_below_a_folder(tmp_path, capsys):
    for name, losses in (("9_2", [3.0, None, 1.0]), ("10_1", [4.0]), ("empty", [])):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses)]
        lines.append(json.dumps({"step": 3, "seconds": {"steps": 1.0}}))
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    curves = curves_below(tmp_path)
    assert curves == {"9_2": ((0, 2), (3.0, 1.0)), "10_1": ((0,), (4.0,))} and list(curves) == ["9_2", "10_1"]
    assert call("utils.training.curves", tmp_path) == 0
    assert Image.open(tmp_path / "loss.png").size == (1040, 650)
    assert call("utils.training.curves", tmp_path / "empty") == 2
    assert "no runs there" in capsys.readouterr().err
