"""The command line: demo, audit, train, run, report, list, data."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genmeasure.errors import InputError, LostRank
from genmeasure.registry import named
from genmeasure.train_options import add_train_options

DEFAULT_SEED = 0
SMALL = "small"
"""The scale at which a study runs unless told otherwise."""
PLAN = {"nargs": "?", "const": "", "metavar": "N[xFLOPS]",
        "help": "only say what it will take: tasks, passes, memory and hours, from pilots on 64 and 256 examples here; "
        "on N processes as fast as this one or as fast as said"}
SHORT = ("subject", "loss train", "loss test", "loss gap", "error train", "error test", "trace", "distance", "ju2022")
"""Columns of the short table at the end of a command."""


def requests(wanted: Sequence[str] | None, seed: int) -> tuple:
    """The requests on the command line, by default everything; `seed` goes to every member that draws."""
    from genmeasure.study import Request, everything

    return seeded([Request(*named(text)) for text in wanted] if wanted else everything(), seed)


def seeded(chosen: Sequence, seed: int) -> tuple:
    """The requests with `seed` for every member that draws and was given none."""
    if seed == DEFAULT_SEED:
        return tuple(chosen)
    return tuple(dataclasses.replace(r, parameters={"seed": seed, **r.parameters}) if "seed" in r.member.defaults else r
                 for r in chosen)


def audit(arguments: argparse.Namespace) -> int:
    from genmeasure.engine.ranks import joined
    from genmeasure.study import run
    from genmeasure.subject import SubjectFiles

    if arguments.model is None and arguments.train is None:
        return audit_weights(arguments)
    for name in ("model", "train"):
        if getattr(arguments, name) is None:
            raise InputError(f"audit came without --{name}; give --model and --train, or neither for the distances of "
                             "the weights alone")
    files = SubjectFiles(arguments.name or Path(arguments.end).stem, arguments.model, arguments.start, arguments.end,
                         arguments.train, arguments.test, arguments.loss, arguments.device, arguments.dtype,
                         arguments.batch_size, arguments.head, rename=tuple(arguments.rename or ()),
                         head_center=arguments.head_center, seed=arguments.seed, offload=arguments.offload)
    if arguments.plan is not None:
        return planned([files], requests(arguments.measure, arguments.seed), arguments)
    with joined(arguments.device) as engine:
        readings = run([files], requests(arguments.measure, arguments.seed), arguments.out, study="audit",
                       engine=engine, provenance=command(arguments), only_applicable=not arguments.measure)
        return finish(readings, arguments.out, engine)


def audit_weights(arguments: argparse.Namespace) -> int:
    """Distances by name, read tensor by tensor."""
    from genmeasure.study import run_weights

    if arguments.test is not None or set(arguments.measure or ["distance"]) != {"distance"}:
        raise InputError("audit came without --model and --train; of the weights alone only the measure distance can "
                         "be read: give --model and --train for more")
    readings = run_weights(arguments.name or Path(arguments.end).stem, arguments.start, arguments.end, arguments.out,
                           rename=tuple(arguments.rename or ()), study="audit", provenance=command(arguments))
    return finish(readings, arguments.out)


def demo(arguments: argparse.Namespace) -> int:
    from genmeasure.demo import make_checkpoints
    from genmeasure.engine import LocalEngine
    from genmeasure.study import run

    engine = LocalEngine(arguments.workers)
    out = Path(arguments.out)
    subjects = make_checkpoints(out, seeds=arguments.checkpoint_seeds, device=arguments.device, engine=engine)
    affordable = [r for r in requests(None, arguments.seed) if not r.member.costly]
    readings = run(subjects, affordable, out, study="demo", engine=engine,
                   provenance={**command(arguments), "by": "noise", "cluster": ["method", "noise"],
                               "axes": ["method", "noise"]})
    return finish(readings, out)


def run_study(arguments: argparse.Namespace) -> int:
    from genmeasure.study import run

    module = load_study(arguments.study)
    facts = {name: getattr(module, name.upper(), None) for name in ("by", "cluster", "axes", "given")}
    wanted = requests_of(module, arguments)
    if arguments.plan is not None and hasattr(module, "CHECKPOINTS"):
        return planned_checkpoints(module.CHECKPOINTS(arguments.scale), wanted, arguments)
    subjects = subjects_of(module, arguments)
    if arguments.plan is not None:
        return planned(subjects, wanted, arguments)
    with engine_of(arguments) as engine:
        readings = run(subjects, wanted, arguments.out, study=Path(arguments.study).stem,
                       engine=engine, provenance={**command(arguments), **facts})
        return finish(readings, arguments.out, engine)


def requests_of(module: Any, arguments: argparse.Namespace) -> tuple:
    """The study's requests at the scale asked for, which must be one that it has."""
    scales = getattr(module, "SCALES", (SMALL,))
    if arguments.scale not in scales:
        raise InputError(f"--{arguments.scale} came for the study {arguments.study!r}, which has the scales "
                         f"{', '.join(scales)}; leave the option out, or name {arguments.scale!r} in its SCALES")
    found = module.REQUESTS
    return seeded(tuple(found(arguments.scale) if callable(found) else found), arguments.seed)


def planned_checkpoints(checkpoints: Sequence, wanted: Sequence, arguments: argparse.Namespace) -> int:
    """What it will cost to make and to audit them; nothing is made and nothing written. 1 where something is missing.
    """
    from genmeasure.fine_tuned import lacking
    from genmeasure.plan import Machine, here, to_make

    machine = Machine.parse(arguments.plan) if arguments.plan else here()
    say(to_make(checkpoints, wanted, machine, Path(arguments.out) / "readings.csv"))
    missing = lacking(checkpoints)
    say("\n".join(["missing on this machine:", *(f"  {sentence}" for sentence in missing)]) if missing else
        "nothing is missing on this machine")
    return 1 if missing else 0


def planned(subjects: Sequence, wanted: Sequence, arguments: argparse.Namespace) -> int:
    """What it will cost; nothing is written."""
    from genmeasure.plan import Machine, here, pilots, table

    machine = Machine.parse(arguments.plan) if arguments.plan else here()
    found = pilots(subjects, wanted, only_applicable=not getattr(arguments, "measure", True))
    say(table(found, machine))
    return 1 if any(p.failures for p in found) else 0


def engine_of(arguments: argparse.Namespace) -> contextlib.AbstractContextManager:
    """`local[:N]`, `ray[:ADDRESS]`, or the ranks that torchrun started."""
    from genmeasure.engine import LocalEngine
    from genmeasure.engine.ranks import asked_for, joined

    kind, _, rest = (arguments.engine or "").partition(":")
    if asked_for():
        if kind:
            raise InputError(f"--engine {arguments.engine} came under torchrun, whose ranks share every subject; leave "
                             "one of them out")
        return joined(arguments.device)
    if kind == "ray":
        from genmeasure.engine.cluster import Resources, connected

        return connected(rest or None, Resources(arguments.task_cpus, arguments.task_gpus,
                                                 round(arguments.task_memory * 2**30)))
    if kind not in ("", "local") or (rest and not rest.isdigit()) or rest == "0":
        raise InputError(f"the engine {arguments.engine!r} came; give local:N with a number of processes, ray to start "
                         "a cluster on this machine, or ray:ADDRESS")
    return contextlib.nullcontext(LocalEngine(int(rest or min(os.cpu_count() or 1, 8))))


def subjects_of(module: Any, arguments: argparse.Namespace) -> list:
    """The study's subjects at the scale asked for, those from files on the device that was asked for."""
    from genmeasure.subject import SubjectFiles

    try:
        subjects = list(module.SUBJECTS(arguments.scale) if hasattr(module, "SCALES") else module.SUBJECTS())
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"SUBJECTS() of the study {arguments.study!r} raised {type(error).__name__}: {error}; correct "
                         "the study file") from error
    if arguments.device == "auto":
        return subjects
    return [dataclasses.replace(s, device=arguments.device) if isinstance(s, SubjectFiles) else s for s in subjects]


def load_study(path: str) -> Any:
    """A study file: `SUBJECTS()` returns the subjects, `REQUESTS` holds the requests; `BY`, `CLUSTER`, `AXES` and
    `GIVEN` are optional (see `genmeasure.publish.publish`).

    A study that comes in several scales names them in `SCALES` ("quick", "small", "full"); `SUBJECTS`, and `REQUESTS`
    if it is a function, then take one. `CHECKPOINTS(scale)` gives the `FineTuned` that it would make, for `--plan`.
    """
    if not Path(path).is_file():
        raise InputError(f"the study {path!r} does not exist; give the path of a Python file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise InputError(f"the study {path!r} is no Python file; give the path of a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)  # so that a study can import its neighbours
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the study {path!r} raised {type(error).__name__}: {error}; "
                         "correct the study file") from error
    finally:
        sys.path.remove(folder)
    for name in ("SUBJECTS", "REQUESTS"):
        if not hasattr(module, name):
            raise InputError(f"the study {path!r} does not define {name}; a study defines SUBJECTS() and REQUESTS")
    return module


def train(arguments: argparse.Namespace) -> int:
    from genmeasure.train_command import train

    say(train(arguments))
    return 0


def report(arguments: argparse.Namespace) -> int:
    from genmeasure.publish import publish
    say(f"report: {publish(Path(arguments.folder))}")
    return 0


def list_members(arguments: argparse.Namespace) -> int:
    import genmeasure
    catalogue = genmeasure.list()
    if arguments.family:
        catalogue = catalogue[catalogue["family"] == arguments.family]
    for row in catalogue.itertuples():
        say(f"{row.family:10} {row.name:22} {row.summary}")
        if arguments.verbose:
            say(f"{'':33} kind {row.kind}; index {row.index_columns or '-'}; source {row.source}")
            say(f"{'':33} parameters {row.parameters or '-'}")
    return 0


def data(arguments: argparse.Namespace) -> int:
    from genmeasure.data import manifest

    if arguments.action == "list":
        for row in manifest.entries().itertuples():
            say(f"{row.name:28} {row.kind:12} {row.rows!s:>8} {row.bytes!s:>10}  {row.licence}")
        return 0
    if not arguments.entry:
        raise InputError(f"`genmeasure data {arguments.action}` came without a name; name an entry, as listed by "
                         "`genmeasure data list`")
    action = {"path": manifest.path, "verify": manifest.verify, "fetch": manifest.fetch}[arguments.action]
    outcome = action(arguments.entry)
    say(str(outcome) if outcome is not None else f"{arguments.entry}: as the manifest says")
    return 0


def whole(text: str) -> int:
    """A whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} came; give a whole number that is not negative")
    return number


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, for provenance.json."""
    asked = {k: v for k, v in vars(arguments).items() if k not in ("function", "command") and v is not None}
    return {"command": arguments.command, "arguments": asked}


def finish(readings: Any, out: str | Path, engine: Any = None) -> int:
    """Publish a run folder and say what came out: 1 if some readings failed, which are listed, else 0.

    engine: of several processes, one of which publishes.
    """
    if engine is not None:
        return engine.once(lambda: finish(readings, out))
    import pandas as pd

    from genmeasure.publish import publish
    from genmeasure.report import summary

    out = Path(out)
    path = publish(out)
    table = out / "tables" / "checkpoints.csv"
    if table.is_file():
        shown = pd.read_csv(table)
        shown = shown[[c for c in SHORT if c in shown]]
        say(shown.to_string(index=False, max_rows=12, float_format=lambda x: f"{x:.4g}"))
    for sentence in summary(out):
        say(f"- {sentence}")
    bad = readings[readings["error"].astype(str) != ""]
    for row in bad.itertuples():
        say(f"failed: {row.subject}: {row.measure}: {row.error}", sys.stderr)
    say(f"{len(readings) - len(bad)} readings of {readings['subject'].nunique()} checkpoints, {len(bad)} failed")
    say(f"report: {path}")
    return 1 if len(bad) else 0


def say(text: str, stream: Any = None) -> None:
    """One of several processes speaks."""
    from genmeasure.engine.ranks import leads

    if leads():
        (stream or sys.stdout).write(text + "\n")


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser("genmeasure", description=(
        "Why, and how well, does this fine-tuned checkpoint generalize? Measures distances, curvature and noise "
        "stability per layer, evaluates generalization bounds, and writes tables, plots and a report."))
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function: Any, text: str, *, seed: bool = True, out: str | None = None,
            workers: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text,
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(function=function)
        if seed:
            sub.add_argument("--seed", type=whole, default=DEFAULT_SEED, help="seed of everything that is drawn")
            sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
        if out is not None:
            sub.add_argument("--out", required=not out, default=out or None, help="folder for the results" + (
                "; or a file that ends in .safetensors, for the weights alone" if name == "train" else ""))
        if workers:
            sub.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
        return sub

    sub = add("demo", demo, "Fine-tune and audit small networks on handwritten digits; needs nothing but this package.",
              out="out/demo", workers=True)
    sub.add_argument("--checkpoint-seeds", type=int, default=2, help="pretrained starts, each fine-tuned in every way")

    sub = add("audit", audit, "Measure one fine-tuned checkpoint against its start.", out="")
    sub.add_argument("--start", required=True, help="pretrained start: a checkpoint file or folder, a manifest name, "
                     "hub:OWNER/NAME, or torchvision:NAME or timm:NAME with weights on disk")
    sub.add_argument("--end", required=True, help="fine-tuned model, likewise; or the folder of an adapter")
    sub.add_argument("--model", help="torchvision:NAME, timm:NAME, hf:FOLDER, pkg.module:function or FILE.py:function, "
                     "with ?key=value for its arguments; without it and --train, distances of the weights alone")
    sub.add_argument("--train", help="training data: a manifest name, FILE.npz#train, a .tsv, .csv or .parquet of "
                     "texts and labels, an image folder, or pkg.module:function")
    sub.add_argument("--test", help="test data, likewise; the gap needs them")
    sub.add_argument("--measure", action="append", metavar="NAME[:key=value,...]",
                     help="a measure or bound with parameters; repeat for more; everything that applies if left out")
    sub.add_argument("--plan", **PLAN)
    sub.add_argument("--name", help="name of the subject; the end's file name if left out")
    sub.add_argument("--loss", default="cross-entropy", help="loss per example: cross-entropy, token-cross-entropy, "
                     "next-token-cross-entropy, binary-cross-entropy, squared, clamped-cross-entropy")
    sub.add_argument("--dtype", default="float32", help="float32, float64, tf32 (products of 10 bits, on CUDA) or "
                     "bfloat16 (passes through the model; for measures of forward passes alone)")
    sub.add_argument("--offload", action="store_true", help="keep activations of Hessian products in the host's memory")
    sub.add_argument("--batch-size", type=int, default=64, help="examples per batch; fresh noise for every batch")
    sub.add_argument("--head", help="module path of the head; the layer that runs last if left out")
    sub.add_argument("--head-center", default="zero", help="where a head that the start lacks is measured from: zero, "
                     "or init, which the model draws with --seed")
    sub.add_argument("--rename", action="append", metavar="PATTERN=REPLACEMENT", help="regular expression from the "
                     "checkpoints' names to the model's, or a .csv file of such pairs; repeat for more")

    sub = add("train", train, "Fine-tune a model from a start with one of the registered algorithms. The same command "
              "goes on where it was broken off.", out="")
    add_train_options(sub)

    sub = add("run", run_study, "Carry out a study file: SUBJECTS() and REQUESTS.", out="")
    sub.add_argument("study", help="path of the study's Python file")
    sub.add_argument("--plan", **PLAN)
    scale = sub.add_mutually_exclusive_group()
    for name, text in (("quick", "a small part of the study, in minutes"), ("full", "at the published scale")):
        scale.add_argument(f"--{name}", action="store_const", const=name, dest="scale", default=SMALL, help=text)
    sub.add_argument("--engine", help="local:N for N processes of this machine (its cores, 8 at the most, if left "
                     "out), ray for a cluster started on this machine, ray:ADDRESS for one that runs")
    sub.add_argument("--task-cpus", type=float, default=1, help="cores of a task on a Ray cluster")
    sub.add_argument("--task-gpus", type=float, default=0, help="GPUs of a task on a Ray cluster; may be a fraction")
    sub.add_argument("--task-memory", type=float, default=0, help="GiB of memory of a task on a Ray cluster")
    sub = add("report", report, "Write tables, plots and report of a run folder again.", seed=False)
    sub.add_argument("folder", help="a run folder that holds readings.csv")
    sub = add("list", list_members, "List measures, bounds, algorithms, model families and label noise.", seed=False)
    sub.add_argument("family", nargs="?", choices=["measure", "bound", "algorithm", "model", "noise"],
                     help="only these")
    sub.add_argument("--verbose", action="store_true", help="with kinds, sources and parameters")
    sub = add("data", data, "List, find, check or fetch what data_manifest.csv names.", seed=False)
    sub.add_argument("action", choices=["list", "path", "verify", "fetch"])
    sub.add_argument("entry", nargs="?", help="name of the entry")
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 when every reading succeeded, 1 when some failed, 2 for wrong usage or bad input."""
    parsed = parser().parse_args(arguments)
    try:
        return parsed.function(parsed)
    except LostRank as error:
        sys.stderr.write(f"genmeasure: {' '.join(str(error).split())}\n")  # whichever rank is left
        return 1
    except InputError as error:
        say(f"genmeasure: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except OSError as error:
        say(f"genmeasure: {error.strerror or error}: {error.filename!r}; give a path that can be read or written",
            sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted; what is complete is kept, and the same command goes on from there", sys.stderr)
        return 130


def entry() -> None:
    logging.basicConfig(format="genmeasure: %(message)s")  # warnings of the package go to standard error
    sys.exit(main())
