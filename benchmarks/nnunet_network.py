"""nnU-Net's own trainer and network, without its loader and files; run in an environment with nnunetv2.

python nnunet_network.py model DEVICE                       save the untrained network as a finished training
python nnunet_network.py step DEVICE BATCH SIDE STEPS       seconds of each training step on one batch in memory
python nnunet_network.py predict DEVICE FOLDER [--disable_tta]      seconds of the network alone for a folder's images

All need a planned dataset 1; `predict` needs `model`. Prints JSON.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from torch.utils.flop_counter import FlopCounterMode


def save_model(device: torch.device) -> None:
    """What nnUNetv2_train leaves after a training, of which prediction reads three files."""
    trainer = get_trainer_from_args("1", "2d", 0, device=device)
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # decides the flips of prediction
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.initialize()
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    save_json(trainer.plans_manager.plans, str(folder.parent / "plans.json"), sort_keys=False)
    save_json(trainer.dataset_json, str(folder.parent / "dataset.json"), sort_keys=False)


def time_steps(device: torch.device, batch: int, side: int, steps: int) -> dict[str, object]:
    """Seconds of steps of its trainer on a random batch, and the multiply-adds of a forward pass of one image."""
    trainer = get_trainer_from_args("1", "2d", 0, device=device)
    trainer.configuration_manager.configuration.update(patch_size=[side, side], batch_size=batch)
    trainer.initialize()
    images = torch.randn(batch, 3, side, side)
    scales = trainer._get_deep_supervision_scales()
    targets = [torch.randint(0, 2, (batch, 1, *(round(side * part) for part in scale))).float() for scale in scales]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        getattr(trainer.network, "_orig_mod", trainer.network)(images[:1].to(device))
    seconds = []
    for _ in range(steps + 1):  # the first warms up
        start = time.perf_counter()
        trainer.train_step({"data": images, "target": targets})
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "multiply_adds": counter.get_total_flops() // 2}


def time_prediction(device: torch.device, folder: Path, mirroring: bool) -> dict[str, object]:
    """Seconds of the network alone for the tiles and flips of the images, which are prepared before."""
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=device)
    results = os.environ["nnUNet_results"]  # noqa: SIM112
    model = next(Path(results).glob("*/*__2d"))
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    tiles = []
    for image in sorted(folder.glob("*_0000.png")):
        pixels = preprocessor.run_case([str(image)], None, plans, configuration, predictor.dataset_json)[0]
        padded = pad_nd_image(torch.from_numpy(pixels), configuration.patch_size, "constant", {"value": 0}, False)
        slicers = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
        tiles += [padded[place][None].float() for place in slicers]
    network = predictor.network.to(device).eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    precision = torch.autocast("cuda") if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode(), precision:
        predictor._internal_maybe_mirror_and_predict(tiles[0].to(device))
        _wait(device)
        start = time.perf_counter()
        for tile in tiles:
            predictor._internal_maybe_mirror_and_predict(tile.to(device)).cpu()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "tiles": len(tiles), "patch": list(configuration.patch_size)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Do what the first argument says; what nnU-Net prints goes to the standard error."""
    task, device = sys.argv[1], torch.device(sys.argv[2])
    with contextlib.redirect_stdout(sys.stderr):
        if task == "model":
            save_model(device)
            facts: dict[str, object] = {}
        elif task == "step":
            facts = time_steps(device, *map(int, sys.argv[3:6]))
        else:
            facts = time_prediction(device, Path(sys.argv[3]), "--disable_tta" not in sys.argv)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
