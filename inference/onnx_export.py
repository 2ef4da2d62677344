"""A model as a folder that runs without torch: ONNX, its settings, a small program, and a Dockerfile for it."""

import contextlib
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.ensemble import Ensemble, mean_probabilities, temper
from iaunet.inference.model_file import Model
from iaunet.inference.postprocessing import NO_CLEANING, Postprocessing, describe_postprocessing
from iaunet.inference.predictor import Predictor
from iaunet.inference.runtime.iaunet_runtime import open_session
from iaunet.inference.tuning import NetworkName
from iaunet.planners.plan import Plan, content_digest
from iaunet.records import to_json
from iaunet.storage import (
    TEMPORARY_SUFFIX,
    digest,
    file_digest,
    naming_disk_faults,
    sync_folder,
    write_bytes,
    write_json,
    write_text,
)
from iaunet.workspace import locked_output

ONNX, SETTINGS, PROGRAM, CARD = "model.onnx", "runtime.json", "iaunet_runtime.py", "MODEL_CARD.md"
COPIED = (PROGRAM, "requirements.txt", "Dockerfile")
"""The files of `iaunet.inference.runtime` that go along as they are."""

SETTINGS_VERSION = 1
LARGEST_DIFFERENCE = 1e-4
MOST_BYTES = 2**31 - 2**24
"""Of weights: an ONNX file ends at 2 GiB."""

EXTREME = 4.0
"""Normalised intensity of the brightest and darkest images that are tried: few pixels of real ones go further."""

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """What there is to know of an exported model.

    ``plan_digest`` names what the plan decides, ``model_digest`` is that of predictions.json, ``members`` are the
    networks by run, fold and hash. Probabilities of onnxruntime and torch differed by ``max_difference`` at most on
    ``n_checked`` inputs.
    """

    dataset: str
    plan_digest: str
    model_digest: str
    members: tuple[NetworkName, ...]
    mirroring: bool
    temperatures: tuple[float, ...]
    max_difference: float
    n_checked: int
    versions: dict[str, str]


class _Graph(nn.Module):
    """An `Ensemble` whose flips go through each network as one batch: every network is in the graph once.

    Four times each they would be as fast, but onnxruntime prepares the weights anew for every time.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.networks, self.flips, self.temperatures = ensemble.networks, ensemble.flips, ensemble.temperatures

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, h, w] to probabilities [B, L, h, w]."""
        inputs = torch.cat([images.flip(axes) if axes else images for axes in self.flips])
        members = []
        for network, temperature in zip(self.networks, self.temperatures, strict=True):
            passes = network(inputs).sigmoid().unflatten(0, (len(self.flips), -1)).unbind(0)
            turned = [maps.flip(axes) if axes else maps for maps, axes in zip(passes, self.flips, strict=True)]
            members.append(temper(mean_probabilities(turned), temperature))
        return mean_probabilities(members)


def export_model_as_onnx(model: Model, output: Path) -> OnnxFacts:
    """Write a model that was read from its file, see `export_onnx`."""
    predictor = Predictor(model.plan, model.networks, torch.device("cpu"), tuning=model.tuning, members=model.members)
    return export_onnx(predictor, model.card, output)


def export_onnx(predictor: Predictor, card: str, output: Path) -> OnnxFacts:
    """Write a model as a folder that runs without torch and iaunet, see `iaunet.inference.runtime`.

    Args:
        predictor: The model, on the CPU.
        card: The text of the model card.
        output: The folder, which must not exist; written whole or not at all.

    Returns:
        The facts, which the folder's runtime.json holds as well.

    Raises:
        PredictionError: Packages are missing, the weights do not fit one ONNX file, a network cannot be exported, or
            what it gives in onnxruntime differs from torch by more than `LARGEST_DIFFERENCE`.
        WorkspaceError: The folder exists, cannot be written, or another process is writing it.
    """
    _require_packages()
    _require_new(output)
    if output.suffix.lower() == ".zip":
        raise PredictionError(f"{output} cannot be a folder of files: give a name without .zip")
    n_bytes = sum(each.nbytes for each in predictor.ensemble.state_dict().values())
    if n_bytes > MOST_BYTES:
        raise PredictionError(
            f"{len(predictor.ensemble.networks)} networks have {n_bytes / 2**30:.1f} GiB of weights, an ONNX file "
            "holds less than 2: choose fewer with --folds or --run"
        )
    staging = output.with_name(f".{output.name}{TEMPORARY_SUFFIX}")
    with locked_output(output), naming_disk_faults(output):
        _require_new(output)
        shutil.rmtree(staging, ignore_errors=True)  # what a killed export left
        staging.mkdir()
        try:
            facts = _write(predictor, card, staging)
            staging.rename(output)
            sync_folder(output.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return facts


def _require_new(output: Path) -> None:
    if output.exists():
        raise WorkspaceError(f"{output} is there already: give another folder, or remove it")


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PredictionError(
            f"exporting to ONNX needs {', '.join(missing)}, which is not installed: pip install 'iaunet[onnx]'"
        )


def _write(predictor: Predictor, card: str, folder: Path) -> OnnxFacts:
    """Write all files of an exported model."""
    plan = predictor.plan
    write_bytes(folder / ONNX, _as_onnx(predictor))
    inputs = check_inputs(plan)
    facts = OnnxFacts(
        dataset=plan.dataset,
        plan_digest=content_digest(plan),
        model_digest=digest(predictor.describe()),
        members=predictor.members,
        mirroring=len(predictor.flips) > 1,
        temperatures=tuple(predictor.ensemble.temperatures),
        max_difference=largest_difference(predictor, folder / ONNX, inputs),
        n_checked=sum(map(len, inputs)),
        versions={name: version(name) for name in ("iaunet", "torch", *PACKAGES)},
    )
    if not facts.max_difference <= LARGEST_DIFFERENCE:  # nor nan
        raise PredictionError(
            f"probabilities of onnxruntime differ from those of torch by {facts.max_difference:.1e}, more than "
            f"{LARGEST_DIFFERENCE:.0e}: export with the versions in constraints.txt, or predict with iaunet_predict"
        )
    settings = runtime_settings(predictor, file_digest(folder / ONNX))
    write_json(folder / SETTINGS, {"version": SETTINGS_VERSION, "settings": settings, "facts": to_json(facts)})
    for name in COPIED:
        write_bytes(folder / name, (files("iaunet.inference.runtime") / name).read_bytes())
    write_text(folder / CARD, card)
    write_text(folder / "README.md", _readme(predictor, settings, facts))
    return facts


def runtime_settings(predictor: Predictor, onnx_sha256: str) -> dict[str, Any]:
    """How images become inputs and probabilities masks, as the program reads it from runtime.json."""
    plan = predictor.plan
    numbers = plan.normalisation
    return {
        "onnx_sha256": onnx_sha256,
        "channels": plan.channels,
        "depth": plan.depth,
        "size": list(plan.input_size),
        "mode": plan.input_mode,
        "tile_scale": plan.tile_scale,
        "channel_files": plan.channel_files,
        "reads_tiff": plan.slicing.axes is None and not plan.equal_spacing,
        "mean": list(numbers.mean),
        "sd": list(numbers.sd),
        "windows": to_json(numbers.windows),
        "percentiles": list(numbers.percentiles or ()),
        "thresholds": list(plan.inference.thresholds),
        "painted": list(plan.coding.painted),
        "cleaning": to_json(predictor.cleaning),
        "names": list(plan.labels),
        "outputs": to_json(plan.coding.outputs),
        "written": list(plan.coding.written),
    }


def _as_onnx(predictor: Predictor) -> bytes:
    """The bytes of an ONNX model: images [batch, C, h, w] to probabilities [batch, L, h, w], float32."""
    plan = predictor.plan
    example = torch.zeros(2, plan.channels, *plan.input_size)
    any_batch = {"images": {0: torch.export.Dim.DYNAMIC}}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    graph = _Graph(predictor.ensemble).eval()
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                graph, (example,), dynamo=True, dynamic_shapes=any_batch, verbose=False, **names
            )
    except torch.onnx.OnnxExporterError as fault:
        reason = next((line for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        name = plan.network.name
        raise PredictionError(
            f"{name} cannot be exported to ONNX ({reason}): predict with iaunet_predict, or rewrite the network"
        ) from fault
    assert program is not None  # no file was named
    data: bytes = program.model_proto.SerializeToString()
    return data


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's remarks on its own code and on packages that are not needed."""
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(level)


def check_inputs(plan: Plan) -> list[NDArray[np.float32]]:
    """Inputs [B, C, h, w] to compare networks on: noise, smooth ones like pictures, and the darkest and brightest."""
    rng = np.random.default_rng(0)
    shape = (plan.channels, *plan.input_size)
    noise = rng.normal(size=(2, *shape))
    coarse = rng.normal(size=(2, plan.channels, -(-shape[1] // 16), -(-shape[2] // 16)))
    smooth = np.kron(coarse, np.ones((16, 16)))[..., : shape[1], : shape[2]] + 0.1 * noise
    plain = np.stack([np.full(shape, sd) for sd in (-EXTREME, 0.0, EXTREME)])
    return [each.astype(np.float32) for each in (noise, smooth, plain, plain[:1])]


def largest_difference(predictor: Predictor, model: Path, inputs: list[NDArray[np.float32]]) -> float:
    """How far the probabilities of an ONNX file are from those of a predictor at most; nan if one is nan."""
    session = open_session(model)
    pairs = ((session.run(None, {"images": each})[0], predictor.predict_inputs(each)) for each in inputs)
    return float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))


def _readme(predictor: Predictor, settings: Mapping[str, Any], facts: OnnxFacts) -> str:
    import jinja2

    plan = predictor.plan
    cleaning = predictor.cleaning or (NO_CLEANING,) * len(plan.coding.written)
    masks = Postprocessing(thresholds=plan.inference.thresholds, cleaning=tuple(cleaning))
    template = (files("iaunet.inference.runtime") / "README.md.j2").read_text(encoding="utf-8")
    text = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(template)
    return (
        text.render(
            labels=", ".join(plan.labels),
            values=dict(zip(plan.value_names, plan.coding.written, strict=True)),
            masks=describe_postprocessing(masks, plan),
            settings=settings,
            facts=facts,
        )
        + "\n"
    )
