"""What runs on GPUs, on one without memory (`fake_cuda.cpp`): no mixed devices and types, and no copies that wait."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from iaunet.networks import NETWORKS

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fake GPU is loaded with LD_PRELOAD, as Linux does"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the fake GPU"),
    pytest.mark.skipif(
        torch.version.cuda is not None or torch.version.hip is not None, reason="this torch is built for real GPUs"
    ),
]

OPTIONS = [
    ("iaunet", {"spatial_attention": "scaled", "sigmoid_scale": "count"}),
    ("iaunet", {"spatial_attention": "literal"}),
    ("iaunet", {"spatial_attention": "channel"}),
    ("iaunet", {"spatial_attention": "softmax"}),
    ("iaunet", {"spatial_attention": "none", "variant": "paper5"}),
    ("iaunet", {"scale_attention": "every", "separate_mlps": True, "attention_order": "channel_first"}),
    ("attention_unet", {"biases": True}),
    ("swin_unet", {"drop_path": 0.2}),
    ("unext", {"doubling": True}),
]
"""Networks with other options than their defaults."""

EVERY_CHANGE = {
    f"{name}_probability": 1.0
    for name in ("brightness", "rotation", "scaling", "elastic", "contrast", "gamma", "noise", "blur")
}

REFUSED = {
    "mixed devices": "found at least two devices, cuda:0 and cpu",
    "a product of two types": "mm of several types: torch.bfloat16, torch.float32",
    "a layer of two types": "addmm of several types: torch.bfloat16, torch.float32",
    "a convolution of two types": "convolution of several types: torch.float16, torch.float32",
    "rows of another type": "index_put_ of several types: torch.float16, torch.float32",
    "random numbers of the CPU": "a generator on cpu for numbers on cuda:0",
    "a result on the GPU as an array": "no array of a tensor of torch.float32 on cuda:0",
    "bfloat16 as an array": "no array of a tensor of torch.bfloat16 on cpu",
    "pinned on the GPU": "cannot pin a tensor on cuda:0",
    "as many as there are": "DynamicOutputShapeException: aten.nonzero.default",
}

COUNTED = {
    "a list of indices": {"waiting": 1, "made_on_cpu": 1, "launches": 1},
    "a new tensor": {"waiting": 1, "made_on_cpu": 1},
    "a number made on the CPU": {"waiting": 1},
    "memory that is not pinned": {"waiting": 1, "made_on_cpu": 1},
    "pinned memory": {"beside": 1, "made_on_cpu": 1},
    "pinned memory that is waited for": {"waiting": 1, "made_on_cpu": 1},
    "a copy in the backward pass": {"waiting": 1, "made_on_cpu": 1, "launches": 4},
    "a number read": {"reads": 1, "launches": 1},
    "a question": {"reads": 1, "launches": 2},
    "a result brought back": {"fetched": 1},
    "a result of inference brought back": {"fetched": 1},
    "a view": {},
    "a number added": {"launches": 1},
    "made on the CPU": {"made_on_cpu": 2},
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of the whole session: processes that test side by side take turns and find what others have made."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "fake GPU"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def fake_gpu(shared):
    """The library that gives a process a fake GPU."""
    library, installed = shared / "libfake_cuda.so", Path(torch.__file__).parent
    with FileLock(shared / "library.lock"):
        if not library.exists():
            subprocess.run(
                [
                    *("g++", "-std=c++20", "-shared", "-fPIC", str(HERE / "fake_cuda.cpp"), "-o", str(library)),
                    *(
                        f"-I{installed / 'include'}",
                        f"-I{installed / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
                    ),
                    *(f"-L{installed / 'lib'}", f"-Wl,-rpath,{installed / 'lib'}", "-lc10", "-ltorch_cpu"),
                ],
                check=True,
            )
    return library


@pytest.fixture(scope="session")
def work_on(fake_gpu, shared):
    """Have work done by `device_program.py` once: by name and argument; the results are in the order of the work."""

    def work_on(folder_name, *work):
        folder = shared / folder_name
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "results.json").exists():
                (folder / "work.json").write_text(json.dumps(work))
                run_program(fake_gpu, folder)
        return json.loads((folder / "results.json").read_text())

    return work_on


def run_program(library, folder):
    """Run `device_program.py` with the fake GPU of a library."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(HERE / "device_program.py"), str(folder)],
        cwd=library.parent,
        env={**os.environ, "LD_PRELOAD": f"./{library.name}"},  # a list of paths that blanks part
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def networks(work_on):
    """What each of `NETWORKS` does."""
    return dict(zip(NETWORKS, work_on("networks", ("networks", [(name, {}) for name in NETWORKS]))[0], strict=True))


@pytest.fixture(scope="session")
def networks_with_options(work_on):
    """What each of `OPTIONS` does."""
    return work_on("networks with options", ("networks", OPTIONS))[0]


@pytest.fixture(scope="session")
def results(work_on):
    """All other results by the name of the work."""
    work = {
        "best": ("augmentation", {}),
        "every change": ("augmentation", EVERY_CHANGE),
        "training": ("training", None),
        "prediction": ("prediction", None),
        "faults": ("faults", None),
    }
    return dict(zip(work, work_on("all else", *work.values()), strict=True))


def by_module(lines):
    """Counts by line, ``module:number``, as counts by module."""
    counts = Counter()
    for line, count in lines.items():
        counts[line.partition(":")[0]] += count
    return counts


# What the project does ----------------------------------------------------------------------------------------------


def assert_it_runs_on_a_gpu(done):
    """Of a network: in bfloat16, forward and backward, with losses and gradients in float32 and no copies."""
    assert "fault" not in done, done["fault"]
    for mode in ("train", "eval", "inference"):
        assert done["modes"][mode]["logits"] == ["cuda:0", "bfloat16", [2, 2, 75, 101]]
    for mode in ("train", "eval"):
        step = done["modes"][mode]
        assert step["losses"] == [["cuda:0", "float32", []]] * 3
        assert step["gradients"] == {name: ["cuda:0", "float32", shape] for name, shape in step["shapes"].items()}
        assert step["shapes"]
    assert done["waiting"] == done["beside"] == done["fetched"] == done["reads"] == done["made_on_cpu"] == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_on_a_gpu_forward_and_backward_without_copies(networks, name):
    assert_it_runs_on_a_gpu(networks[name])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=lambda number: " ".join(map(str, OPTIONS[number])))
def test_so_it_does_with_other_options(networks_with_options, number):
    assert_it_runs_on_a_gpu(networks_with_options[number])


@pytest.mark.parametrize("name", ["best", "every change"])
def test_batches_are_augmented_on_a_gpu_without_copies_that_wait(results, name):
    batch = results[name]

    assert batch["images"] == ["cuda:0", "float32", [16, 3, 64, 64]]
    assert batch["targets"] == ["cuda:0", "float32", [16, 2, 64, 64]]
    assert batch["valid"] == ["cuda:0", "float32", [16, 1, 64, 64]]
    assert batch["waiting"] == batch["fetched"] == batch["reads"] == {}
    assert by_module(batch["beside"])["iaunet.trainers.loader"] == 2  # images and masks
    assert batch["launches"] > 16


def test_a_step_of_training_copies_nothing_and_reads_once(results):
    step = results["training"]

    assert step["losses"].keys() == {"loss", "bce", "dice_loss"}
    assert {*map(tuple, step["moments"])} == {("cuda:0", "float32")}
    assert step["waiting"] == step["beside"] == step["fetched"] == step["made_on_cpu"] == {}
    assert by_module(step["reads"]).keys() == {"iaunet.trainers.trainer"}
    assert len(step["reads"]) == 1  # the losses and the norm of the gradient


def test_what_a_step_does_besides_takes_few_launches_whatever_the_network(results):
    launches = results["training"]["launches"]

    assert 1 <= launches["remember_state"] <= 2
    assert 1 <= launches["average"] <= 3


def test_predictions_are_float32_on_the_cpu_and_each_map_is_brought_there_once(results):
    said = results["prediction"]

    assert said["passes"] == 4
    assert (
        said["rows"]
        == [
            {
                "probabilities": [None, "float32", [2, 64, 64]],
                "uncertainty": [None, "float32", [64, 64]],
                "statistics": [None, "float64", [2, 2, 6]],
            }
        ]
        * 16
    )
    assert by_module(said["fetched"]) == {"iaunet.inference.predictor": 3}
    assert said["reads"] == {}
    assert by_module(said["waiting"]) == {"iaunet.inference.predictor": 1}  # the images


# What the fake GPU finds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", REFUSED)
def test_the_fake_gpu_refuses(results, fault):
    assert REFUSED[fault] in results["faults"][fault]["fault"]


@pytest.mark.parametrize("action", COUNTED)
def test_the_fake_gpu_counts(results, action):
    counts = results["faults"][action]

    assert {name: count for name, count in counts.items() if count} == COUNTED[action]


def test_every_fault_is_looked_at(results):
    assert results["faults"].keys() == REFUSED.keys() | COUNTED.keys()
