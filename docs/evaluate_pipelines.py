"""FID of what stock pipelines of diffusers draw, by the features that evaluate.py takes.

    python -m docs.evaluate_pipelines MNIST output/diffusers_pipeline:100,16,8,4 output/student_of_8:8

Each folder is loaded by `DDIMPipeline.from_pretrained`, and called with `num_inference_steps` as any user of diffusers
would: what its own scheduler then does, it does. For pipelines without classes, of grey pictures of 32x32.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDIMPipeline
from utils.data.load import load_images
from utils.sampling import batches_of
from utils.schema import Data

from utils.evaluation.evaluation import to_bytes
from utils.evaluation.metrics import Features, QualityMetrics, classifier_features

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", choices=["MNIST", "FashionMNIST"], help="what the pictures are compared with")
parser.add_argument("pipelines", nargs="+", metavar="FOLDER:STEPS", help="pipelines, and numbers of steps")
parser.add_argument("--num_samples", type=int, default=2500, help="pictures a row (default: 2500)")
arguments = parser.parse_args()

settings, device = Data(name=arguments.data, root="data", image_size=32, num_channels=1), torch.device("cpu")
training, test = load_images(settings), load_images(settings, test=True)
extractor = classifier_features(arguments.data, training, test, device)


def features(images: torch.Tensor) -> Iterator[Features]:
    """In batches, of uint8 images [N, 1, 32, 32]."""
    for indices in batches_of(len(images), 250):
        with torch.inference_mode():
            yield extractor.extract(images[indices.start : indices.stop])


def draw(pipeline: DDIMPipeline, steps: int) -> torch.Tensor:
    """Pictures as uint8 [N, 1, 32, 32]; always from the same noise."""
    generator, pictures = torch.Generator().manual_seed(0), []
    for indices in batches_of(arguments.num_samples, 250):
        options = {"batch_size": len(indices), "generator": generator, "num_inference_steps": steps}
        drawn = pipeline(**options, output_type="np", return_dict=False)[0]
        pictures.append(torch.from_numpy(drawn).permute(0, 3, 1, 2).float() * 2 - 1)
    return to_bytes(torch.cat(pictures))


metrics = QualityMetrics(extractor, features(test.images), device)
generator = torch.Generator().manual_seed(0)
chosen = torch.randperm(len(training.images), generator=generator)[: arguments.num_samples]
print(f"training images: FID {metrics.score(features(training.images[chosen])).fid:.3f}", flush=True)
for text in arguments.pipelines:
    folder, _, numbers = text.rpartition(":")
    pipeline = DDIMPipeline.from_pretrained(Path(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for steps in map(int, numbers.split(",")):
        scores = metrics.score(features(draw(pipeline, steps)))
        print(f"{folder}, {steps} steps: FID {scores.fid:.3f}, KID x 1000 {1000 * scores.kid:.2f}", flush=True)
