"""The command line: one line a verb, each a function of ``jobs/`` loaded when it is called.

Exit codes: 0 done; 1 the data, the weights or the machine stood in the way; 2 the command was wrong; 3 done, but some
inputs could not be read; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cyclopts import App, CycloptsError, Parameter

from offshelf.errors import OffshelfError
from offshelf.jobs.common import Common, Result


class Verb(NamedTuple):
    """Where a verb lives, the first line of its docstring (a test holds the two together), and how it is used."""

    target: str
    line: str
    examples: tuple[str, ...]


VERBS = {
    "audit": Verb(
        "offshelf.jobs.audit:audit",
        "Check a data set before anything is trained on it, and say what to mend first.",
        (
            "offshelf audit photos/",
            "offshelf audit patients.csv --group-column patient --source-column hospital",
        ),
    ),
    "fit": Verb(
        "offshelf.jobs.fit:fit",
        "Train honest classifiers on frozen features of a folder of pictures, and report on them.",
        (
            "offshelf fit photos/",
            "offshelf fit patients.csv --group-column patient --grid 2x2 --reproductive",
            "offshelf fit photos/ --backbones resnet50.a1_in1k densenet121.ra_in1k --heads svm-rbf logistic",
        ),
    ),
    "predict": Verb(
        "offshelf.jobs.predict:predict",
        "Label new pictures with a finished run.",
        (
            "offshelf predict runs/fit-photos new/ --out labels.csv",
            "offshelf predict runs/fit-photos a.jpg b.jpg --json",
        ),
    ),
    "evaluate": Verb(
        "offshelf.jobs.evaluate:evaluate",
        "Measure a finished classifier on newly labelled pictures, also where several labels are valid.",
        (
            "offshelf evaluate runs/fit-photos labelled/",
            "offshelf evaluate runs/finetune-photos ward.csv --group-column patient",
            "offshelf evaluate runs/fit-photos old.csv --multilabel valid --label-separator '|' --against new.csv",
        ),
    ),
    "explain": Verb(
        "offshelf.jobs.explain:explain",
        "Show in pictures what spoke for the answers of a finished run, and how far such maps can be trusted.",
        (
            "offshelf explain runs/finetune-photos new/",
            "offshelf explain runs/finetune-photos a.jpg b.jpg --label cat --methods grad-cam input-x-gradient",
            "offshelf explain runs/finetune-photos labelled/ --scores",
        ),
    ),
    "pretrain": Verb(
        "offshelf.jobs.pretrain:pretrain",
        "Teach a backbone from pictures without labels, and keep it as a plain timm folder.",
        (
            "offshelf pretrain photos/ --method spark --backbone resnet18.random --image-size 64 --epochs 100",
            "offshelf pretrain xrays/ mask_ratio=0.75 --method mae-thorax --backbone vit_tiny_patch16_224.random",
            "offshelf pretrain photos/ --method spark --backbone resnet50.a1_in1k --warm-head 0.1 --minutes 60",
        ),
    ),
    "finetune": Verb(
        "offshelf.jobs.finetune:finetune",
        "Train all weights of a backbone on labelled pictures.",
        (
            "offshelf finetune photos/ --backbone resnet18.a1_in1k --epochs 20 --image-size 160",
            "offshelf finetune photos/ --backbone runs/pretrain-photos --labels 1% 5% 10% 100%",
            "offshelf finetune xrays.csv --group-column patient --label-columns Edema Effusion Mass --folds 5",
            "offshelf finetune xrays.csv --label-column findings --label-separator '|' --early-stopping 5",
        ),
    ),
    "screen": Verb(
        "offshelf.jobs.screen:screen",
        "Fine-tune networks over five folds, with and without augmentation, and show where they look.",
        (
            "offshelf screen xrays/ --backbones resnet18.a1_in1k densenet121.ra_in1k",
            "offshelf screen patients.csv --group-column patient --only normal covid19 --epochs 8",
        ),
    ),
    "battle": Verb(
        "offshelf.jobs.battle:battle",
        "Hold backbones against each other over many data sets and tasks, with ranks that have intervals.",
        (
            "offshelf battle photos/ --backbones resnet18.a1_in1k resnet18.random convnext_tiny.in12k_ft_in1k",
            "offshelf battle photos/ xrays/ --backbones resnet50.a1_in1k runs/pretrain-photos --labels 10% 100%",
            "offshelf battle photos/ --backbones resnet18.a1_in1k vit_tiny_patch16_224.augreg_in21k --engine ray",
        ),
    ),
    "inspect": Verb(
        "offshelf.jobs.inspect:inspect",
        "Look into networks without a picture: degenerate layers, drawings of filters, how far networks are apart.",
        (
            "offshelf inspect",
            "offshelf inspect runs/pretrain-photos resnet18.a1_in1k",
            "offshelf inspect networks.csv --group medical=runs/a,runs/b natural=runs/c",
        ),
    ),
    "race": Verb(
        "offshelf.jobs.race:race",
        "Train networks side by side on the same batches, and say which learns sooner.",
        (
            "offshelf race photos/ --backbones inception_mini.random inception_resnet_mini.random --image-size 32",
            "offshelf race photos/ --backbones resnet18.random --residual-scales 1 0.3 0.1 --thresholds 1.4 1.2",
            "offshelf race photos/ --backbones resnet18.random resnet18.a1_in1k --epochs 10 --seeds 5",
        ),
    ),
    "design": Verb(
        "offshelf.jobs.design:design",
        "Measure how to begin, size, shape and count convolution filters for your pictures, at equal cost.",
        (
            "offshelf design photos/ --study initialisation",
            "offshelf design photos/ --study initialisation --rules he pca k-means dct --freeze --labels 200",
            "offshelf design photos/ --study initialisation --backbone resnet18.random --layers conv1 --image-size 64",
            "offshelf design photos/ --study size --sizes 3 5 7 --match multiply-adds",
        ),
    ),
    "methods": Verb(
        "offshelf.jobs.methods:methods",
        "Show the methods in this library, one of them in full, or those nearest to some words.",
        ("offshelf methods", "offshelf methods off-the-shelf", "offshelf methods --search few labels"),
    ),
    "demo": Verb(
        "offshelf.jobs.demo:demo",
        "Run the main job end to end on built-in data, offline, in about two minutes.",
        ("offshelf demo",),
    ),
}

INTERRUPTED = 130
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some inputs could not be read, 130 stopped."


def build() -> App:
    """The application with every verb; imports none of them."""
    from importlib.metadata import version

    app = App(
        name="offshelf",
        help="Take a pre-trained backbone off the shelf, make it yours, and know that it works.",
        version=lambda: version("offshelf"),
        default_parameter=Parameter(consume_multiple=True, negative=()),
        help_epilogue=EXIT_CODES,
        error_formatter=lambda error: f"offshelf: {error}",
        result_action="return_value",
    )
    for name, verb in VERBS.items():
        examples = "\n\n".join(verb.examples)  # blank lines, or the help runs them together
        epilogue = f"Examples:\n\n{examples}\n\n{EXIT_CODES}"
        app.command(verb.target, name=name, help=verb.line, help_epilogue=epilogue)
    return app


app = build()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: parse, run, show, and leave with a meaningful exit code."""
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    if code == INTERRUPTED:  # end now: at its usual end Python would wait for threads that may never come back
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; never a traceback for what a user can mend."""
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False)
        result = command(*bound.args, **bound.kwargs)
    except CycloptsError:
        return 2  # the parser has printed what was wrong
    except OffshelfError as error:
        print(f"offshelf: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("offshelf: stopped; what was finished is kept, give the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    if result is None or not hasattr(result, "summary"):
        return 0
    return _present(result, bound.arguments.get("common"))


def _present(result: Result, common: Common | None) -> int:
    from offshelf.engine.console import Console

    if common is not None and common.json:
        json.dump(result.summary(), sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        result.show(Console(quiet=bool(common and common.quiet)))
    return int(result.exit_code)


if __name__ == "__main__":
    main()
