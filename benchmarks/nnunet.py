"""nnU-Net v2 in an environment of its own: a raw dataset of the same images, and its commands."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import Measured, run_measured
from PIL import Image

DATASET = "Dataset001_Bench"


class NnUNet:
    """Its commands, run in folders of their own.

    Args:
        environment: The virtual environment that nnunetv2 is installed in.
        work: Gets its raw, preprocessed and results folders.
    """

    def __init__(self, environment: Path, work: Path) -> None:
        self.programs = environment / "bin"
        self.work = work
        folders = ("raw", "preprocessed", "results")
        self.variables = {f"nnUNet_{name}": str(work / name) for name in folders}
        for name in folders:
            (work / name).mkdir(parents=True)

    def write_raw(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Write images and masks as its raw dataset: PNG, read by its NaturalImage2DIO; masks are cut at 127."""
        raw = self.work / "raw" / DATASET
        (raw / "imagesTr").mkdir(parents=True)
        (raw / "labelsTr").mkdir()
        for image, mask in pairs:
            write_channels(image, raw / "imagesTr")
            labels = np.asarray(Image.open(mask).convert("L")) > 127
            Image.fromarray(labels.astype(np.uint8)).save(raw / "labelsTr" / f"{image.stem}.png")
        facts = {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": {"background": 0, "foreground": 1},
            "numTraining": len(pairs),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
        }
        (raw / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")

    def plan_and_preprocess(self, workers: int) -> Measured:
        """Fingerprint, plan and arrays of the 2D configuration, in as many processes as given."""
        processes = ["-np", str(workers), "-npfp", str(workers)]
        return self.run("nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d", "--clean", "--no_pbar", *processes)

    def save_model(self, device: str) -> None:
        """Save its trainer's network for fold 0 as it is before the first step, as if training had ended."""
        self.run_script("model", device)

    def run_script(self, *options: str | Path) -> Measured:
        """Run `nnunet_network.py` in its environment."""
        return self.run("python", Path(__file__).with_name("nnunet_network.py"), *options)

    def run(self, program: str, *options: str | Path) -> Measured:
        """Run one of its commands, or ``python``, as a benchmark runs ours."""
        return run_measured([self.programs / program, *options], self.variables)


def write_channels(image: Path, folder: Path) -> None:
    """Write an image as nnU-Net names its inputs."""
    Image.open(image).convert("RGB").save(folder / f"{image.stem}_0000.png")
