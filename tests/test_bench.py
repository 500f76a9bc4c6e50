import json

from conftest import ROOT, call


def test_all_that_is_asked_for_is_measured(tiny, capsys):
    flags = ["--config_path", tiny, "--rounds", 2, "--batch_size", 3, "--device", "cpu"]
    assert call("bench.py", *flags, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["steps"]) == ["training step", "distillation step", "sampler step", "network evaluation"]
    assert found["precision"] == "fp32" and found["compile"] is False and found["gflop_per_image"] > 0
    for passes, row in zip((3, 5, 1, 1), found["steps"].values(), strict=True):
        seconds = row["ms"] / 1000
        assert row["batch_size"] == 3
        assert abs(row["images_per_second"] * seconds - 3) < 1e-6
        assert abs(row["gflop_per_second"] * seconds - 3 * passes * found["gflop_per_image"]) < 1e-9
        assert abs(row["of_peak"] * found["matrix_product_gflop_per_second"] - row["gflop_per_second"]) < 1e-9
        assert abs(row["ratio"] * row["ms"] - row["plain_ms"]) < 1e-9
    assert call("bench.py", *flags, "--precision", "bf16") == 0
    table = capsys.readouterr().out
    assert "bf16" in table and all(name in table for name in found["steps"])


def test_a_wrong_setting_gets_one_line(tiny, capsys):
    assert call("bench.py", "--config_path", tiny, "--compile", "perhaps") == 2
    assert "should be 'auto', True or False, not 'perhaps'" in capsys.readouterr().err
    assert call("bench.py", "--config_path", ROOT / "nowhere.yaml") == 2
