"""The documentation: its size, its links, its commands, its notebooks, and docs/minimal.py."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from models import diffusion
from models.noise_schedule import CosineSchedule, angle_of

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/README.md")), *sorted(ROOT.glob("docs/*.md"))]
NOTEBOOKS = sorted(ROOT.glob("docs/*.ipynb"))


def cells(notebook) -> list[dict]:
    found = json.loads(notebook.read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def text_of(page) -> str:
    if page.suffix == ".md":
        return page.read_text()
    return "\n\n".join(cell["source"] for cell in cells(page) if cell["cell_type"] == "markdown")


def test_the_readme_is_read_in_one_sitting_and_the_method_is_on_one_page():
    readme, minimal = (ROOT / "README.md").read_text(), (ROOT / "docs/minimal.py").read_text()
    assert len(readme.splitlines()) <= 200 and len(readme.split()) <= 1500
    assert len(minimal.splitlines()) <= 150
    assert not re.search(r"^(from|import) (utils|models)", minimal, re.MULTILINE)


def anchors(page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_image_exists(page):
    text = text_of(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if not re.match("https?://", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def commands() -> list[tuple[str, str]]:
    """Every command in the pages' code blocks, with the page's name."""
    found = []
    for page in PAGES:
        blocks = page.read_text().replace("\\\n", " ").split("\n")
        for line in (line for line in blocks if line.startswith("    ")):
            for part in re.sub(r"\s#.*", "", line).split("&&"):
                if re.match(r"\s*(python|torchrun|make) ", part):
                    found.append((page.name, " ".join(part.split())))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_parses(page, command, monkeypatch):
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    if words[:2] == ["python", "-m"] and words[2] in ("pytest", "http.server"):
        return
    script = words.index("-m") + 1 if "-m" in words else next(k for k, word in enumerate(words) if word.endswith(".py"))
    path = ROOT / (words[script].replace(".", "/") + ".py" if "-m" in words else words[script])
    assert path.exists()
    if path.parent == ROOT:
        module = importlib.import_module(path.stem)
        monkeypatch.setattr(sys, "argv", words[script:])
        arguments = module.parse_arguments()
        config = getattr(arguments, "config_path", None) or "configs"
        assert (ROOT / config).exists() or "mine" in config or config.startswith("output/"), config


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_with_their_outputs(notebook):
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in outputs and outputs.count("display_data") >= 4


def recipes() -> list[str]:
    """The blocks of Python code in docs/interop.md."""
    text = (ROOT / "docs/interop.md").read_text().partition("## In Python\n")[2]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks]


def test_the_recipes_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    from_checkpoint, own_network = recipes()
    found = {}
    exec(from_checkpoint, found)
    assert found["samples"].shape == (16, 1, 32, 32) and found["samples"].std() > 0.3
    images = lambda count: torch.full((count, 1, 4, 4), 0.5)  # noqa: E731
    found = {"network": OfOneImage(0.5), "images": images, "iterations": 2}
    found["copy"] = SimpleNamespace(deepcopy=lambda _: OfOneImage(0.4))  # a student that has to learn
    exec(own_network.replace("import copy, torch", "import torch").replace("lr=1e-4", "lr=0.05"), found)
    assert (found["samples"] - 0.5).abs().max() < 0.03


class OfOneImage(torch.nn.Module):
    """The best prediction of v for data that are one constant image."""

    def __init__(self, value: float):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, z: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
        phi = angle_of(logsnr.double()).float()[:, None, None, None]
        eps = (z - phi.cos() * self.value) / phi.sin()
        return phi.cos() * eps - phi.sin() * self.value


def minimal():
    """docs/minimal.py, as a module."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("minimal")
    finally:
        sys.path.pop(0)


def test_the_losses_of_minimal_are_those_of_models():
    page, size = minimal(), 6
    teacher, student = page.Network(channels=8), page.Network(channels=8)

    def model(network: torch.nn.Module) -> diffusion.Diffusion:
        by_logsnr = lambda z, logsnr, label: network(z, angle_of(logsnr), label)  # noqa: E731
        return diffusion.Diffusion(by_logsnr, CosineSchedule(), "v")

    x, eps = torch.rand(size, 1, 28, 28) * 2 - 1, torch.randn(size, 1, 28, 28)
    label, i = torch.arange(size), torch.tensor([1, 2, 3, 4, 1, 4])
    t = torch.tensor([1.0, 0.9, 0.5, 0.1, 0.01, 0.001], dtype=torch.float64)
    expected = diffusion.training_loss(model(teacher), x, eps, t, "v_mse", label).mean()
    assert torch.isclose(page.training_loss(teacher, x, label, eps, t), expected, rtol=1e-4)
    expected = diffusion.distillation_loss(model(student), model(teacher), x, eps, i, 4, "v_mse", label).mean()
    assert torch.isclose(page.distillation_loss(student, teacher, x, label, eps, i, 4), expected, rtol=1e-4)


def test_minimal_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    minimal().main(training_steps=2, student_steps=2, size=4)
    assert (tmp_path / "output/minimal.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"student of 4 steps: loss \d", capsys.readouterr().out)
