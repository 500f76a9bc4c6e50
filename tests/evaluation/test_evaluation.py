import pytest
import torch
from conftest import save_model
from test_sampling import lesson
from tqdm import tqdm

from utils.checkpoints.checkpoint import load_checkpoint
from utils.checkpoints.compute import Compute
from utils.config.schema import SamplerSettings
from utils.evaluation.evaluation import TRAINING_IMAGES, Candidate, Evaluation, Results
from utils.evaluation.metrics import Extractor

PIXELS = Extractor("pixels", 2, lambda images: (images.double().mean(dim=(2, 3)), (images[:, 0, 0, 0] > 99).long()))


def evaluation(folder, **changes) -> Evaluation:
    """Of the model of test_sampling.py, with bytes for images; 16 steps in place of 1024."""
    model, config = lesson()
    path = folder / "diffusion-1.pt"
    if not path.exists():
        save_model(path, model.network.state_dict(), config=config, sampling_steps=16, kind="teacher")
    torch.manual_seed(0)
    settings = {
        "config": config,
        "teacher": load_checkpoint(path),
        "training_images": torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8),
        "test_images": torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8),
        "extractor": PIXELS,
        "results": Results(folder / "results.json"),
        "num_samples": 20,
        "seed": 0,
        "batch_size": 6,
        "compute": Compute(torch.device("cpu"), "fp32", compile=False),
    }
    return Evaluation(**settings | changes)


def teacher_row(evaluated: Evaluation, sampler: str, steps: int, guidance: float = 1.0, **settings) -> Candidate:
    sampling = SamplerSettings(steps=steps, sampler=sampler, **settings)
    return Candidate.of("teacher", evaluated.teacher, sampling, guidance)


def test_the_distance_is_to_the_teacher_at_its_full_number_of_steps_from_the_same_noise(tmp_path):
    evaluated = evaluation(tmp_path)
    whole, few = (evaluated.evaluate(teacher_row(evaluated, "ddim", steps)) for steps in (16, 2))
    assert whole["distance"] < 1e-6 and few["distance"] > 1e-3
    assert evaluated.evaluate(teacher_row(evaluated, "ancestral", 2))["distance"] is None
    other_noise = evaluation(tmp_path, seed=1).evaluate(teacher_row(evaluated, "ddim", 2))
    assert other_noise["distance"] != few["distance"] and other_noise["fid"] != few["fid"]


def test_what_is_in_the_file_is_not_computed_again(tmp_path):
    first = evaluation(tmp_path, bar=tqdm(disable=True))
    candidates = [TRAINING_IMAGES, *(teacher_row(first, sampler, 3) for sampler in ("ddim", "ancestral"))]
    assert first.num_network_evaluations(candidates) == 2 * 3 * 4 + 11 * 16
    found = [first.evaluate(candidate) for candidate in candidates]

    def computed(*_):
        raise AssertionError("computed again")

    again = evaluation(tmp_path, extractor=Extractor("pixels", 2, computed), batch_size=7)
    assert again.num_network_evaluations(candidates) == 0
    assert [again.evaluate(candidate) for candidate in candidates] == found


def test_results_are_of_one_checkpoint_number_seed_and_sampler(tmp_path):
    evaluated = evaluation(tmp_path)
    candidate = teacher_row(evaluated, "ancestral", 1)
    evaluated.evaluate(candidate)
    for other in (
        evaluation(tmp_path, num_samples=19),
        evaluation(tmp_path, seed=1),
        evaluation(tmp_path, extractor=Extractor("other", 2, PIXELS.extract)),
    ):
        assert other.results.find(other.key(candidate)) is None
    for row in (
        teacher_row(evaluated, "ancestral", 1, variance="large"),
        teacher_row(evaluated, "ancestral", 1, clip=True),
        teacher_row(evaluated, "ancestral", 1, guidance=2.0),
    ):
        assert evaluated.results.find(evaluated.key(row)) is None
    same = teacher_row(evaluated, "ancestral", 1, variance=0.0)  # is "small"
    assert evaluated.results.find(evaluated.key(same)) is not None
    model, config = lesson()
    save_model(candidate.path, model.network.state_dict(), config=config, step=2, sampling_steps=16, kind="teacher")
    other = evaluation(tmp_path)
    assert other.results.find(other.key(teacher_row(other, "ancestral", 1))) is None


def test_batches_change_nothing_but_rounding(tmp_path):
    found = []
    for batch_size in (1, 6, 20):
        evaluated = evaluation(tmp_path, batch_size=batch_size)
        evaluated.results.entries.clear()
        rows = (TRAINING_IMAGES, teacher_row(evaluated, "ancestral", 2))
        found.append([evaluated.evaluate(row)["fid"] for row in rows])
    torch.testing.assert_close(torch.tensor(found[1:]), torch.tensor(found[:1]).expand(2, 2), rtol=1e-2, atol=1e-2)


def test_other_test_images_are_another_reference(tmp_path):
    """The rows of all candidates depend on them; that of the training images on these, too."""
    before = evaluation(tmp_path)
    teacher = teacher_row(before, "ddim", 1)
    for candidate in (TRAINING_IMAGES, teacher):
        before.evaluate(candidate)
        other = evaluation(tmp_path, test_images=255 - before.test_images)
        assert other.results.find(other.key(candidate)) is None
        assert before.results.find(evaluation(tmp_path).key(candidate)) is not None
    other = evaluation(tmp_path, training_images=255 - before.training_images)
    assert other.results.find(other.key(TRAINING_IMAGES)) is None
    assert other.results.find(other.key(teacher)) is not None


def test_guidance_is_a_row_of_its_own_with_its_own_evaluations(tmp_path):
    evaluated = evaluation(tmp_path, num_samples=12)
    seen = {}
    for scale, evaluations in ((1.0, 1), (3.0, 2)):
        for steps in (16, 2):
            candidate = teacher_row(evaluated, "ddim", steps, scale)
            reference = 11 * 16 if scale == 1 else 0
            assert evaluated.num_network_evaluations([candidate]) == 2 * steps * evaluations + reference
            seen[scale, steps] = found = evaluated.evaluate(candidate)
            assert found["evaluations"] == steps * evaluations and found["guidance"] == scale
    assert seen[1, 16]["distance"] < 1e-6 < seen[1, 2]["distance"]
    assert seen[3, 16]["distance"] is None
    assert seen[1, 2]["fid"] != seen[3, 2]["fid"]
    assert str(teacher_row(evaluated, "ddim", 1, 1.5)) == "teacher, ddim, 1 step, guidance 1.5"


def test_the_distance_is_from_the_teacher_at_the_scale_that_is_compared(tmp_path):
    """Also where the same row, without a distance, is in the file already."""
    evaluated = evaluation(tmp_path, num_samples=12)
    first, second = (teacher_row(evaluated, "ddim", steps, 3.0) for steps in (16, 2))
    assert evaluated.evaluate(first)["distance"] is evaluated.evaluate(second)["distance"] is None
    other = evaluation(tmp_path, num_samples=12, compared_guidance=3.0)
    assert other.num_network_evaluations([first, second]) == 2 * 2 * (16 + 2) + 11 * 16 * 2
    assert other.evaluate(first)["distance"] < 1e-6 < other.evaluate(second)["distance"]


def test_the_share_of_right_classes_by_hand(tmp_path):
    """A classifier that sees class 2 everywhere is right about a third of the samples, whose classes take turns."""
    sees_two = Extractor("two", 3, lambda images: (PIXELS.extract(images)[0], torch.full((len(images),), 2)))
    evaluated = evaluation(tmp_path, extractor=sees_two, num_samples=10)
    assert evaluated.evaluate(teacher_row(evaluated, "ddim", 1))["right"] == pytest.approx(3 / 10)
    assert evaluated.evaluate(TRAINING_IMAGES)["right"] is None  # they were not requested
