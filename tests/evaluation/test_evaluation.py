import json
from types import SimpleNamespace

import pytest
import torch
from test_sampling import lesson
from tqdm import tqdm
from utils.checkpoint_files import load_checkpoint, save_checkpoint
from utils.compute import Compute
from utils.evaluation.candidate import TRAINING_IMAGES, UNIFORM_NOISE, Candidate, NumPictures

from utils.evaluation.evaluation import Evaluation, to_bytes
from utils.evaluation.metrics import Extractor
from utils.evaluation.results import Results

PIXELS = Extractor("pixels", 3, 2, lambda images: (images.double().mean(dim=(2, 3)), (images[:, 0, 0, 0] > 99).long()))


def evaluation(folder, **changes) -> Evaluation:
    """Of the model of test_sampling.py, with bytes for images."""
    model, config = lesson()
    path = folder / "diffusion-1.pt"
    if not path.exists():
        save_checkpoint(path, model.network.state_dict(), config=config, step=1, sampling_steps=16)
    torch.manual_seed(0)
    settings = {
        "config": config,
        "teacher": load_checkpoint(path),
        "training_images": torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8),
        "test_images": torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8),
        "extractor": PIXELS,
        "results": Results(folder / "results.json"),
        "num_samples": 20,
        "num_few": 20,
        "seed": 0,
        "batch_size": 6,
        "compute": Compute(torch.device("cpu"), "fp32", compile=False),
    }
    return Evaluation(**settings | changes)


def test_bytes_are_those_of_a_picture():
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0])
    assert to_bytes(x).tolist() == [0, 0, 0, 128, 191, 255, 255]
    assert torch.equal(to_bytes(torch.arange(256) / 127.5 - 1), torch.arange(256).byte())  # as the data go in


def test_the_distance_is_to_the_teacher_at_its_full_number_of_steps_from_the_same_noise(tmp_path):
    evaluated = evaluation(tmp_path)
    path = evaluated.teacher.path
    whole, few = (evaluated.evaluate(Candidate("teacher", path, "ddim", steps)) for steps in (16, 2))
    assert whole["distance"] < 1e-6 and few["distance"] > 1e-3
    assert evaluated.evaluate(Candidate("teacher", path, "ancestral", 2))["distance"] is None
    other_noise = evaluation(tmp_path, seed=1).evaluate(Candidate("teacher", path, "ddim", 2))
    assert other_noise["distance"] != few["distance"] and other_noise["fid"] != few["fid"]


def test_what_is_in_the_file_is_not_computed_again(tmp_path):
    candidates = [TRAINING_IMAGES, UNIFORM_NOISE]
    candidates += [Candidate("teacher", tmp_path / "diffusion-1.pt", sampler, 3) for sampler in ("ddim", "ancestral")]
    first = evaluation(tmp_path, bar=tqdm(disable=True))
    assert first.num_network_evaluations(candidates) == 2 * 3 * 4 + 11 * 16
    found = [first.evaluate(candidate) for candidate in candidates]

    def computed(*_):
        raise AssertionError("computed again")

    again = evaluation(tmp_path, extractor=Extractor("pixels", 3, 2, computed), batch_size=7)
    assert again.num_network_evaluations(candidates) == 0
    assert [again.evaluate(candidate) for candidate in candidates] == found


def test_results_are_of_one_checkpoint_number_seed_and_sampler(tmp_path):
    candidate = Candidate("teacher", tmp_path / "diffusion-1.pt", "ancestral", 1)
    evaluated = evaluation(tmp_path)
    evaluated.evaluate(candidate)
    others = [evaluation(tmp_path, num_samples=19), evaluation(tmp_path, seed=1)]
    model, config = lesson()
    others.append(
        evaluation(
            tmp_path,
            config=config.model_copy(update={"sampling": config.sampling.model_copy(update={"variance": "small"})}),
        )
    )
    others.append(evaluation(tmp_path, extractor=Extractor("other", 3, 2, PIXELS.extract)))
    for other in others:
        assert other.results.find(other.key(candidate)) is None
    save_checkpoint(
        candidate.path, model.network.state_dict(), config=config, step=2, sampling_steps=None, trained_on=None
    )
    assert evaluated.results.find(evaluation(tmp_path).key(candidate)) is None


def test_batches_change_nothing_but_rounding(tmp_path):
    candidate = Candidate("teacher", tmp_path / "diffusion-1.pt", "ancestral", 2)
    found = []
    for batch_size in (1, 6, 20):
        evaluated = evaluation(tmp_path, batch_size=batch_size)
        evaluated.results.entries.clear()
        found.append([evaluated.evaluate(c)["fid"] for c in (TRAINING_IMAGES, UNIFORM_NOISE, candidate)])
    torch.testing.assert_close(torch.tensor(found[1:]), torch.tensor(found[:1]).expand(2, 3), rtol=1e-2, atol=1e-2)


def test_the_fewest_steps_that_give_the_same_pictures(tmp_path, monkeypatch):
    """Pictures that lie 1/steps from where they would end: 128 steps are 0.007 from 1024, 64 are 0.015."""
    drawn = []

    def sampler(self, candidate):
        drawn.append(candidate.sampling_steps)
        return lambda indices: torch.full((len(indices), 3, 8, 8), 1 / candidate.sampling_steps)

    monkeypatch.setattr(Evaluation, "_sampler", sampler)
    model, config = lesson()
    save_checkpoint(
        tmp_path / "diffusion-1.pt",
        model.network.state_dict(),
        config=config,
        step=1,
        sampling_steps=None,
    )
    assert evaluation(tmp_path).fewest_steps() == 128
    assert sorted(drawn) == [1, 2, 4, 8, 16, 32, 64, 128, 1024]
    assert evaluation(tmp_path).fewest_steps() == 128 and len(drawn) == 9


def shifted(per_step: float):
    """In place of `_sampler`: pictures of smooth noise, the same at any number of steps but for a shift with each."""

    def sampler(_, candidate):
        def draw(indices, tick=int):
            for _ in range(candidate.sampling_steps):
                tick()
            noise = [torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(i)).expand(3, 8, 8) for i in indices]
            return torch.stack(noise) / 4 + per_step * candidate.sampling_steps

        return draw

    return sampler


def test_many_steps_are_scored_by_how_a_few_pictures_differ_from_those_of_half_as_many(tmp_path, monkeypatch):
    sees = Extractor("means", 3, 2, lambda images: (images.double().mean((2, 3)), (images[:, 0, 0, 0] > 127).long()))
    path = evaluation(tmp_path).teacher.path
    base, many, more = (Candidate("teacher", path, "ddim", steps) for steps in (32, 64, 128))

    def scores(name, candidate, **changes):
        (tmp_path / name).mkdir()
        evaluated = evaluation(tmp_path, extractor=sees, results=Results(tmp_path / name / "results.json"), **changes)
        return evaluated, evaluated.evaluate(candidate)

    monkeypatch.setattr(Evaluation, "_sampler", shifted(0.0))
    evaluated, found = scores("equal", more, num_few=14)
    for fewer in (base, many):
        other = evaluated.results.find(evaluated.key(fewer))
        assert all(found[name] == pytest.approx(other[name]) for name in ("fid", "kid", "class_distance", "classes"))

    monkeypatch.setattr(Evaluation, "_sampler", shifted(0.001))
    for row, count, share in ((many, 14, 0.1), (more, 12, 0.3)):
        _, alone = scores(f"alone-{count}", row, num_few=20)
        _, few = scores(f"few-{count}", row, num_samples=count, num_few=count)
        _, found = scores(f"difference-{count}", row, num_few=14)
        assert abs(found["fid"] - alone["fid"]) < share * abs(few["fid"] - alone["fid"])
        assert found["classes"] != few["classes"] and sum(found["classes"]) == pytest.approx(1)


def test_twice_the_steps_take_half_the_pictures_but_enough_for_the_features():
    def counts(*steps, name="teacher", sampler="ddim", num_samples=5000, num_few=1000, num_features=100):
        rows = (Candidate(name, sampler=sampler, sampling_steps=n) for n in steps)
        return list(map(NumPictures(num_samples, num_few, num_features).of, rows))

    assert counts(1, 32, 33, 48, 64, 128, 256, 1024) == [5000, 5000, 1000, 1000, 1000, 500, 400, 400]
    assert counts(64, 128, num_few=10) == [400, 400] and counts(64, 128, num_features=2048) == [5000, 5000]
    assert counts(32, 64, 128, num_samples=1000) == [1000, 1000, 1000]
    assert counts(64, 256, num_samples=600, num_few=599) == [599, 400]
    assert counts(64, sampler="ancestral") == counts(64, name="distilled") == counts(None, sampler=None) == [5000]
    rows = [Candidate("teacher", sampler="ddim", sampling_steps=n) for n in (32, 33, 64, 65, 128, 1024)]
    none, *bases = map(NumPictures(5000, 1000, 100).base_of, rows)
    assert none is None and [base.sampling_steps for base in bases] == [32, 32, 32, 64, 512]


def test_what_a_row_of_many_steps_costs(tmp_path, monkeypatch):
    """A few pictures of it, and its base, whose few are not drawn again, unless its row was found in the file."""
    evaluated = evaluation(tmp_path, num_few=14, bar=tqdm(disable=True))
    base, many, more = (Candidate("teacher", evaluated.teacher.path, "ddim", steps) for steps in (32, 64, 128))
    whole, few, fewer, compared = 4, 3, 2, 11  # batches of 6 pictures of 20, 14, 12 and 64
    expected = whole * 32 + few * 64 + compared * 16
    assert evaluated.num_network_evaluations([many, more]) == expected + fewer * 128
    assert evaluated.num_network_evaluations([many, base]) == expected
    assert evaluated.num_network_evaluations([more]) == expected + fewer * 128
    far = Candidate("teacher", evaluated.teacher.path, "ddim", 512)
    assert evaluated.num_network_evaluations([far]) == expected + fewer * (128 + 256 + 512)
    drawn, draw = [], Evaluation._features
    monkeypatch.setattr(Evaluation, "_features", lambda self, *args: drawn.append(args[0]) or draw(self, *args))
    for row in (many, base):
        assert evaluated.evaluate(row)["evaluations"] == row.sampling_steps
    assert [row.sampling_steps for row in drawn] == [32, 64]
    again = evaluation(tmp_path, num_few=14)
    assert again.num_network_evaluations([more]) == fewer * 128 + few * 64 + compared * 16
    again.evaluate(more)
    assert [row.sampling_steps for row in drawn] == [32, 64, 128, 64]
    assert again.num_network_evaluations([many, more, base]) == 0
    for num_few in (15, 20):
        other = evaluation(tmp_path, num_few=num_few)
        assert other.results.find(other.key(many)) is None and other.results.find(other.key(base)) is not None


def test_other_test_images_are_another_reference(tmp_path):
    """The rows of all candidates depend on them; that of the training images on these, too."""
    teacher = Candidate("teacher", tmp_path / "diffusion-1.pt", "ddim", 1)
    before = evaluation(tmp_path)
    for candidate in (TRAINING_IMAGES, UNIFORM_NOISE, teacher):
        before.evaluate(candidate)
        other = evaluation(tmp_path, test_images=255 - before.test_images)
        assert other.results.find(other.key(candidate)) is None
        assert before.results.find(evaluation(tmp_path).key(candidate)) is not None
    other = evaluation(tmp_path, training_images=255 - before.training_images)
    assert other.results.find(other.key(TRAINING_IMAGES)) is None
    assert other.results.find(other.key(teacher)) is not None


def test_where_the_gpu_knows_no_float64_scores_are_computed_on_the_cpu(tmp_path):
    """Apple's, which is not at hand: a device of its name, to which nothing can be moved."""
    evaluated = evaluation(tmp_path, compute=SimpleNamespace(device=SimpleNamespace(type="mps")))
    evaluated._extract = lambda *_: iter([PIXELS.extract(evaluated.test_images)])
    assert evaluated._metrics.fid.device.type == evaluated._metrics.kid.device.type == "cpu"
    assert evaluated._metrics.fid.real_features_sum.dtype == torch.float64


def test_guidance_is_a_row_of_its_own_with_its_own_evaluations(tmp_path):
    evaluated = evaluation(tmp_path, num_samples=12)
    path, seen = evaluated.teacher.path, {}
    for scale, evaluations in ((1.0, 1), (3.0, 2)):
        for steps in (16, 2):
            candidate = Candidate("teacher", path, "ddim", steps, scale, evaluations)
            reference = 11 * 16 if (scale, steps) == (1.0, 16) else 0
            assert evaluated.num_network_evaluations([candidate]) == 2 * steps * evaluations + reference
            seen[scale, steps] = found = evaluated.evaluate(candidate)
            assert found["evaluations"] == steps * evaluations and found["guidance"] == scale
    assert seen[1, 16]["distance"] < 1e-6 < seen[1, 2]["distance"]
    assert seen[3, 16]["distance"] is None
    assert seen[1, 2]["fid"] != seen[3, 2]["fid"]
    assert str(Candidate("teacher", path, "ddim", 1, 1.5)) == "teacher, ddim, 1 step, guidance 1.5"


def test_a_row_of_another_scale_is_another_row_whichever_came_first(tmp_path):
    evaluated = evaluation(tmp_path, num_samples=12)
    three, one = (Candidate("teacher", evaluated.teacher.path, "ddim", 2, s, n) for s, n in ((3.0, 2), (1.0, 1)))
    assert evaluated.evaluate(three)["fid"] != evaluated.evaluate(one)["fid"]
    assert [evaluated.evaluate(row)["guidance"] for row in (three, one)] == [3.0, 1.0]


def test_rows_of_the_time_before_guidance_are_found(tmp_path):
    before = evaluation(tmp_path, num_samples=12)
    row = Candidate("teacher", before.teacher.path, "ddim", 2)
    before.evaluate(row)
    path = before.results.path
    content = json.loads(path.read_text())
    for entry in content["evaluations"]:
        del entry["guidance"], entry["num_few"], entry["base_steps"]
    path.write_text(json.dumps(content))
    after = evaluation(tmp_path, num_samples=12)
    assert after.results.find(after.key(row)) is not None


def test_the_distance_is_from_the_teacher_at_the_scale_that_is_compared(tmp_path):
    """Also where the same row, without a distance, is in the file already."""
    evaluated = evaluation(tmp_path, num_samples=12)
    first, second = (Candidate("teacher", evaluated.teacher.path, "ddim", steps, 3.0, 2) for steps in (16, 2))
    assert evaluated.evaluate(first)["distance"] is evaluated.evaluate(second)["distance"] is None
    evaluated.compared_guidance = 3.0
    assert evaluated.num_network_evaluations([first, second]) == 2 * 2 * (16 + 2) + 11 * 16 * 2
    assert evaluated.evaluate(first)["distance"] < 1e-6 < evaluated.evaluate(second)["distance"]


def test_the_share_of_right_classes_by_hand(tmp_path):
    """A classifier that sees class 2 everywhere is right about a third of the pictures, whose classes take turns."""
    sees_two = Extractor("two", 3, 3, lambda images: (PIXELS.extract(images)[0], torch.full((len(images),), 2)))
    candidate = Candidate("teacher", tmp_path / "diffusion-1.pt", "ddim", 1)
    assert evaluation(tmp_path, extractor=sees_two, num_samples=10).evaluate(candidate)["right"] == 3 / 10
    assert evaluation(tmp_path, num_samples=10).evaluate(candidate)["right"] is None  # it knows other classes
    for baseline in (TRAINING_IMAGES, UNIFORM_NOISE):  # which no class was asked of
        assert evaluation(tmp_path, extractor=sees_two, num_samples=10).evaluate(baseline)["right"] is None
