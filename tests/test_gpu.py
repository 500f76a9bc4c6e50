"""docs/gpu.py, on the CPU at a small size."""

import json

from conftest import ROOT, TINY

from docs import gpu


def test_every_part_of_the_report(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY % (ROOT / "data"))
    monkeypatch.setattr(gpu, "SMALL", "tiny.yaml")
    monkeypatch.setattr(gpu, "BENCH", ["--batch_size", 2, "--rounds", 1, "--json"])
    monkeypatch.setattr(gpu, "SHORT", ["--num_training_steps", 6])
    monkeypatch.setattr(gpu, "HALVINGS", ["--initial_sampling_steps", 2, "--distillation_iterations", 1])
    monkeypatch.setattr("sys.argv", ["gpu.py", "--config_path", "tiny.yaml", "--device", "cpu"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes a minute, and test_compute.py does it
    monkeypatch.chdir(tmp_path)
    for script in ("train.py", "distill.py", "bench.py"):
        (tmp_path / script).symlink_to(ROOT / script)
    gpu.main()
    report = json.loads((tmp_path / "output/gpu/report.json").read_text())
    assert not [name for name, part in report.items() if "failed" in part], report
    assert report["eager"]["steps"]["training step"]["ms"] > 0 and report["compiled"]["compile"] is True
    assert len(report["first losses"]["here"]) == 10 and report["first losses"]["difference"] == 0
    assert report["kill and resume"]["difference of weights"] == 0
    assert abs(report["two processes"]["two"] / report["two processes"]["undisturbed"] - 1) < 1e-3
    assert {"output/gpu/teacher", "output/gpu/students/1_2"} < report["lesson"].keys()
