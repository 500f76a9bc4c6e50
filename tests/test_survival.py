"""Hostile files: what is made by hand to do harm, and a few hundred mutations (tests/stress has ten thousand)."""

import io
import multiprocessing
import pickle
import struct
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from survival import CHECKPOINT, judge, make_lesson, survive

from utils.config.reading import load_config
from utils.config.schema import Config


def test_mutated_files_are_refused_in_one_line(tmp_path):
    # In a process of its own, since other tests may have had more memory than is allowed here.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        verdicts = pool.submit(survive, tmp_path, 240, seed=1).result()
    for kind in ("checkpoint", "state", "config"):
        assert verdicts[kind, "refused"] > 30, verdicts
        assert verdicts[kind, "accepted"] < 40, verdicts


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("lesson")
        patch.chdir(folder)
        whole = make_lesson(folder)
    return folder, whole


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_pickle(whole: bytes, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive of a checkpoint with something else pickled in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else old.read(entry))
    return buffer.getvalue()


class WritesAFile:
    def __reduce__(self):
        return open, ("executed", "w")


def laughs(levels: int) -> object:
    """2^levels values in the memory of a few."""
    value = {"a": 1}
    for _ in range(levels):
        value = {"a": value, "b": value}
    return value


def nested(levels: int) -> object:
    value = []
    for _ in range(levels):
        value = [value]
    return value


def hostile_checkpoints(whole: bytes) -> dict[str, bytes]:
    content = torch.load(io.BytesIO(whole), weights_only=True)
    config, weights = content["config"], content["weights"]
    first = next(iter(weights))

    def with_network(**changes):
        return saved(content | {"config": config | {"network": config["network"] | changes}})

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**20))
        archive.writestr("x/data/0", bytes(2**28))
    legacy = io.BytesIO()
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    claims = pickle.dumps(content | {"weights": {}}, protocol=2)
    return {
        "a pickle that would write a file": with_pickle(whole, pickle.dumps(WritesAFile(), protocol=2)),
        "a pickle, bare": pickle.dumps(WritesAFile()),
        "a pickle among the values": saved(content | {"step": WritesAFile()}),
        "a bomb": bomb.getvalue(),
        "a compressed archive": with_pickle(whole, claims, zipfile.ZIP_DEFLATED),
        "an older format": legacy.getvalue(),
        "a billion laughs": saved(content | {"config": laughs(40)}),
        "a deep well": saved(content | {"config": nested(90)}),
        "far too much pickled": with_pickle(whole, b"\x80\x02" + b"]" * 2**22 + b"."),
        "a bytearray of a terabyte": with_pickle(
            whole, b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + struct.pack("<q", 2**40)[:6] + b"\x85R."
        ),
        "a tensor larger than the file": saved(
            content | {"weights": weights | {first: torch.zeros(1).expand(10**6, 10**6)}}
        ),
        "a network of petabytes": with_network(features=8192, multipliers=[64, 64]),
        "a network of too many layers": with_network(num_residual_blocks=10**9),
        "a network of layers that are not there": with_network(num_residual_blocks=64),
        "a million levels": with_network(multipliers=[1] * 10**6),
        "a number of ten thousand digits": saved(content | {"step": 10**10_000}),
        "the version is no number": saved(content | {"format_version": "\x1b[31m" * 100}),
        "a subclass of a tensor": saved(content | {"weights": weights | {first: torch.nn.Parameter(weights[first])}}),
        "a sparse tensor": saved(content | {"weights": weights | {first: weights[first].to_sparse()}}),
        "a damaged weight": whole.replace(weights[first].numpy().tobytes()[:16], bytes(16), 1),
    }


HOSTILE_CONFIGS = {
    "a billion laughs": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "a snake that eats itself": "data: &a {b: *a}",
    "a list that holds itself": "data: &a [*a]",
    "a deep well": "data: " + "[" * 10_000,
    "too long": "# " + "x" * 70_000,
    "python": "data: !!python/object/apply:os.system ['touch executed']",
    "a tag of another kind": "data: !!int",
    "a number of ten thousand digits": "data: {name: MNIST, image_size: 0x" + "f" * 10_000 + ", num_channels: 1}",
    "a file name with a NUL": 'data: {name: folder, root: "a\\0b", image_size: 16, num_channels: 1}',
    "letters that turn the terminal red": 'data: {"\\e[31m": 1}',
    "another encoding": "data: {name: M\xc3".encode("latin-1"),
}


def two_steps() -> Config:
    return load_config("tiny.yaml", {"training.num_training_steps": 2})


@pytest.mark.parametrize("name", HOSTILE_CONFIGS)
def test_hostile_configurations(lesson, monkeypatch, name):
    monkeypatch.chdir(lesson[0])
    content = HOSTILE_CONFIGS[name]
    verdict = judge("config", content if isinstance(content, bytes) else content.encode(), load_config("tiny.yaml"))
    assert verdict == "refused" and not Path("executed").exists()


def test_hostile_checkpoints(lesson, monkeypatch):
    monkeypatch.chdir(lesson[0])
    config = load_config("tiny.yaml")
    assert judge("checkpoint", lesson[1]["checkpoint"], config) == "accepted"
    for name, content in hostile_checkpoints(lesson[1]["checkpoint"]).items():
        assert judge("checkpoint", content, config) == "refused", name
        assert not Path("executed").exists(), name
    assert Path(CHECKPOINT).read_bytes() == lesson[1]["checkpoint"]


def test_hostile_states(lesson, monkeypatch):
    """What the fused optimizer would read without looking."""
    monkeypatch.chdir(lesson[0])
    config, state = two_steps(), torch.load(io.BytesIO(lesson[1]["state"]), weights_only=True)
    assert judge("state", lesson[1]["state"], config) == "accepted"
    model = state["trainers"]["model"]
    moments = model["optimizer"]

    def with_model(**changes: object) -> dict:
        return {"trainers": {"model": model | changes}}

    for changes in (
        with_model(optimizer=moments | {0: moments[0] | {"exp_avg": torch.zeros(1)}}),
        with_model(optimizer=moments | {0: {"step": moments[0]["step"]}}),
        with_model(optimizer={}),
        {"step": -1},
        {"step": 3},
        {"num_training_steps": 2**62},
        {"identity": laughs(40)},
        {"compute": {"precision": "fp32", "compile": "yes"}},
        with_model(network=model["network"] | {"extra": torch.zeros(1)}),
        with_model(ema=moments),
        {"trainers": {"model": model["network"]}},
        {"trainers": {}},
    ):
        assert judge("state", saved(state | changes), config) == "refused", changes.keys()
