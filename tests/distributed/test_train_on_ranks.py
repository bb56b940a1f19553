# SPDX-License-Identifier: Apache-2.0
"""Training by ranks that are processes over gloo: the model of one process, and checkpoints for any number of ranks."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.testing.small_trainings import STAGES
from aapt_fast.training.place import ALONE
from aapt_fast.training.run import UNWATCHED

JOB = Path(__file__).with_name("train_job.py")
PROGRAM = "import sys; from aapt_fast.distributed import launch; launch.run(int(sys.argv[1]), sys.argv[2:])"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}
ALL = 100


def run(ranks, folder, steps, *options):
    """The job in processes of its own; returns what it said."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(ranks), str(JOB), str(folder), str(steps), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def weights_in(folder, ended):
    """The weights of all stages."""
    missing = [stage for stage in STAGES if not (folder / f"{stage}.pt").exists()]
    assert not missing, ended.stderr
    return {stage: torch.load(folder / f"{stage}.pt") for stage in STAGES}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights of all stages before and after training by one process, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("aapt_fast.training.precision.fast_dtype", lambda device: torch.float32)
        trained = {name: train(folder / name, ALONE, UNWATCHED).state_dict() for name, train in STAGES.items()}
        patched.setattr("aapt_fast.training.trainer.warm_cosine", lambda step, steps: 0.0)
        patched.setattr("aapt_fast.training.adversarial.AdversarialConfig.discriminator_rate", 0.0)
        begun = {name: train(folder / "begun" / name, ALONE, UNWATCHED).state_dict() for name, train in STAGES.items()}
    return begun, trained, folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder and the weights of two ranks that train without a stop."""
    folder = tmp_path_factory.mktemp("two")
    return folder, weights_in(folder, run(2, folder, ALL))


def assert_trained_alike(weights, alone):
    """Each tensor differs from one process's by less than a thousandth of what training has changed in it."""
    begun, trained, _ = alone
    for stage, expected in trained.items():
        assert weights[stage].keys() == expected.keys()
        for name, tensor in expected.items():
            moved = (tensor - begun[stage][name]).norm()
            assert (weights[stage][name] - tensor).norm() <= 1e-3 * moved, f"{stage}: {name}"


def test_two_ranks_train_the_model_of_one_process(two, alone):
    """Five rows, of which the ranks have two and three."""
    folder, weights = two
    assert_trained_alike(weights, alone)
    for stage in STAGES:
        rows, expected = (list(csv.DictReader((each / stage / "log.csv").open())) for each in (folder, alone[2]))
        assert [row.keys() for row in rows] == [row.keys() for row in expected]
        for row, right in zip(rows, expected, strict=True):
            for name in row.keys() - {"seconds", ""}:
                assert (row[name] == right[name]) or abs(float(row[name]) / float(right[name]) - 1) < 1e-3, name


def test_ranks_that_share_tokens_and_recompute_blocks_train_it_too(tmp_path, alone):
    """Four ranks: two share the rows, and two the tokens of each row."""
    assert_trained_alike(weights_in(tmp_path, run(4, tmp_path, ALL, "context", "recompute")), alone)


def test_a_stopped_run_goes_on_with_the_same_bits_or_on_other_ranks(tmp_path, two, alone):
    stopped = tmp_path / "stopped"
    assert run(2, stopped, 3).returncode == 0
    assert [path.name for path in sorted((stopped / "adversarial").glob("checkpoint*"))] == [
        "checkpoint-3",
        "checkpoint.pt",
    ]
    again, three = (tmp_path / name for name in ("again", "three"))
    for folder in (again, three):
        shutil.copytree(stopped, folder)
    weights = weights_in(again, run(2, again, ALL))
    for stage in STAGES:
        assert all(torch.equal(weights[stage][name], tensor) for name, tensor in two[1][stage].items()), stage
    assert_trained_alike(weights_in(three, run(3, three, ALL)), alone)


def test_a_checkpoint_of_ranks_is_refused_by_one_process_and_the_other_way_round(two, alone, tmp_path):
    folder, _ = two
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of a single process, got one of ranks, started"):
        STAGES["diffusion"](folder / "diffusion", ALONE, UNWATCHED)
    shutil.copytree(alone[2], tmp_path / "alone")
    ended = run(2, tmp_path / "alone", ALL)
    assert (
        ended.returncode != 0 and "expected a checkpoint of ranks, started by torchrun or --gpus, got" in ended.stderr
    )


def test_parts_of_a_checkpoint_that_cannot_be_read_are_named(two, tmp_path):
    shutil.copytree(two[0], tmp_path / "run")
    parts = tmp_path / "run" / "codec" / "checkpoint-4"
    (parts / "__1_0.distcp").unlink()
    ended = run(2, tmp_path / "run", ALL)
    assert ended.returncode != 0
    assert f"CheckpointError: {parts}: expected a whole folder of this training" in ended.stderr


def test_the_program_of_the_guide_trains_on_two_processes(tmp_path):
    page = (Path(__file__).parents[2] / "docs/how-to/train-on-many-gpus.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    network = Generator(NANO)
    network.load_state_dict(torch.load(tmp_path / "generator.pt"))


def test_the_command_trains_on_two_ranks(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "aapt_fast", "train", "anyone", "--trial", "--gpus", "2", "--device", "cpu"]
    stages = ["--stage", "codec", "--stage", "diffusion", "--stage", "export"]
    ended = subprocess.run([*command, *stages, "--out", out], capture_output=True, text=True, env=ENVIRONMENT)
    assert ended.returncode == 0, ended.stderr
    assert (out / "mini-anyone-trial" / "model.safetensors").exists()
    assert (out / "diffusion" / "checkpoint-12" / ".metadata").exists()
    said = [line for line in ended.stderr.splitlines() if line.startswith("stage ") and "begins" in line]
    assert said == [f"stage {n} of 3: {name} begins" for n, name in enumerate(("codec", "diffusion", "export"), 1)]
