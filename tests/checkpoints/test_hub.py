"""The Hugging Face hub, played by a server on this machine."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT, call
from huggingface_hub import ModelCard
from pipelines import save_pipeline

COMMIT = "0123456789" * 4
NAME = "some-lab/some-model"

# Runs in each process that the tests start: a connection to anything but this machine leaves a trace.
GUARD = """
import os, socket
connect = socket.socket.connect
def guarded(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
        open(os.environ["TRACE"], "a").write(f"connection to {address}")
        raise OSError("leaves the machine")
    return connect(self, address)
socket.socket.connect = guarded
"""


class Trap:
    """What leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.system, ("echo unpickled >> $TRACE",)


class Hub:
    """The server: models with the same files, and one trouble each, which their name tells."""

    def __init__(self, folder: Path):
        self.folder, self.requests = folder, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.requests.append(f"{self.command} {self.path}")
                path = self.path.partition("?")[0]
                lab, model = path.removeprefix("/api/models").split("/")[1:3]
                if lab != "some-lab" or "/revision/nowhere" in path:
                    code = "RepoNotFound" if lab != "some-lab" else "RevisionNotFound"
                    return self.answer(404, b"", **{"X-Error-Code": code})
                if model == "gated":
                    return self.answer(401, b"", **{"X-Error-Code": "GatedRepo"})
                if path.startswith("/api"):
                    names = [name for name in hub.files() if model != "pickled" or not name.endswith(".safetensors")]
                    return self.answer(200, json.dumps(hub.tree(names) if "/tree/" in path else hub.info()).encode())
                content = (hub.folder / path.partition(f"{COMMIT}/")[2]).read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                cut = model == "cut" and path.endswith(".safetensors")
                return self.answer(200, content, cut, **{"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

            do_GET = do_HEAD

            def answer(self, status: int, content: bytes, cut: bool = False, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[: len(content) // 2] if cut else content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def files(self) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def info(self) -> dict:
        return {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files()]}

    def tree(self, names: list[str]) -> list[dict]:
        sizes = {name: (self.folder / name).stat().st_size for name in names}
        return [{"type": "file", "path": name, "size": size, "oid": "1" * 40} for name, size in sizes.items()]


@pytest.fixture
def hub(tmp_path):
    save_pipeline(tmp_path / "model", num_train_timesteps=16, beta_end=0.2)
    weights = tmp_path / "model/unet/diffusion_pytorch_model"
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "model/unet/huge.safetensors").write_bytes(b"not asked for")
    hub = Hub(tmp_path / "model")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    assert not (tmp_path / "trace").exists(), (tmp_path / "trace").read_text()
    assert not [request for request in hub.requests if ".bin" in request or "huge" in request]


def run(hub: Hub, folder: Path, *command: object) -> subprocess.CompletedProcess:
    (folder / "guard").mkdir(exist_ok=True)
    (folder / "guard/sitecustomize.py").write_text(GUARD)
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
    environment |= {"PYTHONPATH": str(folder / "guard"), "TRACE": str(folder / "trace"), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run([sys.executable, *map(str, command)], **options)


def test_from_a_name_on_the_hub_to_a_distilled_student(tmp_path, hub):
    flags = ["--output", "teacher/diffusion-0.pt", "--revision", "main"]
    done = run(hub, tmp_path, ROOT / "convert.py", "--from_diffusers", NAME, *flags)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "teacher/teacher.yaml"
    text = config.read_text()
    assert f"Converted from {NAME}, commit {COMMIT}" in text
    text = text.replace("name: folder", "name: MNIST").replace("data/pictures", str(ROOT / "data"))
    config.write_text(
        text.replace("num_conversion_steps: 1200", "num_conversion_steps: 2").replace(
            "sampling: {", "sampling: {num_samples: 4, "
        )
    )
    steps = ["--initial_sampling_steps", 4, "--distillation_iterations", 1, "--num_training_steps_per_iteration", 2]
    teacher = ["--config_path", config, "--teacher_model_checkpoint", "teacher/diffusion-0.pt"]
    done = run(hub, tmp_path, ROOT / "distill.py", *teacher, *steps, "--batch_size", 4, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    student, folder = "output/distilled/teacher/1_4/diffusion-2.pt", "my-student"
    done = run(hub, tmp_path, ROOT / "convert.py", "--checkpoint", student, "--to_diffusers", folder)
    assert done.returncode == 0 and "hf upload my-student my-student" in done.stdout
    card = ModelCard.load(tmp_path / folder / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.tags == ["progressive-distillation", "few-step"]


# Several conversions in one process, which saves the seconds that importing PyTorch takes.
CONVERSIONS = """
import sys
sys.path[:0] = sys.argv[1:3]
from conftest import call
for name in sys.argv[3:]:
    name, _, revision = name.partition("@")
    flags = ["--revision", revision] if revision else []
    code = call("convert.py", "--from_diffusers", name, "--output", f"out/{name}/diffusion-0.pt", *flags)
    print(f"exit code {code}", file=sys.stderr)
"""


def convert(hub: Hub, folder: Path, *names: str) -> list[str]:
    done = run(hub, folder, "-c", CONVERSIONS, ROOT, ROOT / "tests", *names)
    return [line for line in done.stderr.splitlines() if line.startswith(("convert.py: ", "exit code", "Traceback"))]


def test_what_is_wrong_on_the_hub_is_one_line(tmp_path, hub):
    wrong = {
        "nowhere/model": "nowhere/model: no such folder, nor a public model on the hub",
        f"{NAME}@nowhere": f"--revision nowhere: {NAME} has no such branch, tag or commit",
        "some-lab/gated": "some-lab/gated: gated: accept its conditions on its page, then: hf auth login",
        "some-lab/pickled": "some-lab/pickled: has no .safetensors; pickles (.bin, .ckpt) are neither fetched nor read",
        "some-lab/cut": "some-lab/cut: cannot be fetched from the hub: ",
    }
    lines = convert(hub, tmp_path, *wrong)
    assert lines[1::2] == ["exit code 2"] * len(wrong) and not list(tmp_path.rglob("diffusion-0.pt"))
    for line, message in zip(lines[::2], wrong.values(), strict=True):
        assert line.startswith(f"convert.py: error: {message}")


def test_only_names_of_the_hub_take_a_revision(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "some/model")
    arguments = ["--from_diffusers", "some/model", "--output", "t/diffusion-0.pt"]
    assert call("convert.py", *arguments, "--revision", "main") == 2
    assert "--revision: some/model is not the name of a model on the hub" in capsys.readouterr().err
    assert call("convert.py", *arguments) == 0
