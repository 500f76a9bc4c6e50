"""FID of the samples of stock diffusers pipelines, with the features of evaluate.py.

    python -m docs.evaluate_pipelines MNIST output/diffusers_pipeline:100,16,8,4 output/student_of_8:8

Each folder is loaded by `DDIMPipeline.from_pretrained`, and called with `num_inference_steps` as any user of diffusers
would do it. For unconditional pipelines of grey images of 32x32 pixels.
"""

import argparse

import torch
from diffusers import DDIMPipeline

from utils.checkpoints.sampling import batches_of
from utils.config.schema import Data
from utils.data.datasets import load_images
from utils.evaluation.evaluation import to_bytes
from utils.evaluation.metrics import Features, classifier_features, fid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", choices=["MNIST", "FashionMNIST"], help="the data set to compare with")
parser.add_argument("pipelines", nargs="+", metavar="FOLDER:STEPS", help="pipelines, and numbers of steps")
parser.add_argument("--num_samples", type=int, default=2500, help="samples a row (default: 2500)")
arguments = parser.parse_args()
settings = Data(name=arguments.data, root="data", image_size=32, num_channels=1)
training, test = load_images(settings), load_images(settings, test=True)
extractor = classifier_features(arguments.data, training, test, torch.device("cpu"))


@torch.inference_mode()
def features(images: torch.Tensor) -> Features:
    """The features of uint8 images [N, 1, 32, 32]."""
    return Features(torch.cat([extractor.extract(batch)[0] for batch in images.split(250)]))


def draw(pipeline: DDIMPipeline, steps: int) -> torch.Tensor:
    """Samples as uint8 [N, 1, 32, 32]; always from the same noise."""
    generator, drawn = torch.Generator().manual_seed(0), []
    for indices in batches_of(arguments.num_samples, 250):
        options = {"batch_size": len(indices), "generator": generator, "num_inference_steps": steps}
        samples = pipeline(**options, output_type="np", return_dict=False)[0]
        drawn.append(torch.from_numpy(samples).permute(0, 3, 1, 2).float() * 2 - 1)
    return to_bytes(torch.cat(drawn))


real, generator = features(test.images), torch.Generator().manual_seed(0)
chosen = torch.randperm(len(training.images), generator=generator)[: arguments.num_samples]
print(f"training images: FID {fid(real, features(training.images[chosen]))['fid']:.3f}", flush=True)
for text in arguments.pipelines:
    folder, _, numbers = text.rpartition(":")
    pipeline = DDIMPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for steps in map(int, numbers.split(",")):
        print(f"{folder}, {steps} steps: FID {fid(real, features(draw(pipeline, steps)))['fid']:.3f}", flush=True)
