"""The command ``iaunet``: lists the commands, or runs one (``python -m iaunet train ...``)."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "plan_and_preprocess": ("iaunet.preprocessing.command", "read, check, plan and preprocess a data set"),
    "train": ("iaunet.trainers.command", "train one fold, or all of them"),
    "find_best": ("iaunet.inference.find_best_command", "choose the best runs and postprocessing of a data set"),
    "predict": ("iaunet.inference.predict_command", "make masks for new images"),
    "evaluate": ("iaunet.inference.evaluate_command", "score a folder of masks against another"),
    "compare": ("iaunet.inference.compare_command", "the paper's tables and figures from the runs of a data set"),
    "report": ("iaunet.inference.report.command", "one page that shows how good the model is and where it fails"),
    "export_model": ("iaunet.inference.export_command", "write a trained model into one file"),
    "import_model": ("iaunet.inference.import_command", "make a data set of a model's file, to predict with it"),
    "demo": ("iaunet.trainers.demo_command", "the whole way on a small generated data set"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """List the commands or run the one that is named first; return its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    name = name.replace("-", "_").removeprefix("iaunet_")
    if name in COMMANDS:
        module, _ = COMMANDS[name]
        code: int = import_module(module).main(rest)
        return code
    is_wish_for_help = name in ("__help", "_h", "help")
    if not is_wish_for_help:
        print(f"error: there is no command {name!r}", file=sys.stderr)
    print("iaunet: cross-validated segmentation of 2D medical images. The commands:")
    for command, (_, does) in COMMANDS.items():
        print(f"  iaunet_{command:22} {does}")
    print("Each tells more with --help.")
    return 0 if is_wish_for_help else 2


if __name__ == "__main__":
    sys.exit(main())
