"""A synthetic table of readings that looks like a study's: layers, sigmas, labels, failures, nan and inf."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from genmeasure.correlate import correlate
from genmeasure.plots import write_plots
from genmeasure.tables import all_tables, write_tables

METHODS = ("plain", "early-stopping", "weight-decay", "distance", "label-smoothing", "mixup", "sam")
NOISES = (0.0, 0.2, 0.4, 0.6)
LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1",
          "layer3.0.conv2", "layer4.0.conv1", "layer4.0.conv2", "fc")
SIGMAS = (0.0005, 0.0008, 0.00125, 0.002, 0.0032, 0.005, 0.008, 0.0125, 0.02, 0.032, 0.05)
CLASSES = 100
BOUNDS = (("neyshabur2018", "table", "reproduction", 11.0), ("neyshabur2018", "theorem", "certificate", 14.0),
          ("li2021", "theorem", "measure", 27.0), ("li2021", "table", "reproduction", 320.0),
          ("ju2022", "", "measure", 0.6))
NASTY = 'ValueError: a <script>alert("x")</script> & 50 % of |nothing|_came'


def readings(*, methods: Sequence[str] = METHODS, noises: Sequence[float] = NOISES, seeds: Sequence[int] = (0, 1),
             failures: bool = True, seed: int = 0) -> pd.DataFrame:
    """Readings of methods x noises x seeds checkpoints, whose gap grows with distance, trace and label noise."""
    generator = np.random.default_rng(seed)
    rows: list[dict] = []
    for m, method in enumerate(methods):
        for noise in noises:
            for number in seeds:
                labels = {"method": method, "noise": noise, "seed": number}
                rows += _subject(f"{method}-{noise:g}-{number}", labels, m / max(1, len(methods) - 1), noise, generator)
    frame = pd.DataFrame(rows)
    return _with_failures(frame) if failures else frame


def one_subject() -> pd.DataFrame:
    """A single checkpoint without labels, as `audit` leaves it."""
    frame = readings(methods=["plain"], noises=[0.2], seeds=[0], failures=False)
    return frame.drop(columns=["method", "noise", "seed"]).assign(subject="subject")


def _subject(name: str, labels: dict, regularised: float, noise: float, generator: np.random.Generator) -> list[dict]:
    rows: list[dict] = []

    def add(measure: str, value: float, *, layer: str = "", sigma: float = np.nan, term: str = "", stderr: float = 0.0,
            kind: str = "measure", unit: str = "", **params: object) -> None:
        rows.append({"study": "demo", "subject": name, "measure": measure, "kind": kind, "layer": layer, "sigma": sigma,
                     "term": term, "value": value, "stderr": stderr, "n": 20, "unit": unit,
                     "params": json.dumps({"seed": 0} | params), "seconds": 1.5, "passes": 40.0, "error": "", **labels})

    push = (1.6 - regularised) * (1 + 2 * noise) * np.exp(0.08 * generator.normal())
    gap = 0.35 * push + 0.05 * generator.normal()
    loss = 0.02 + 0.3 * regularised + noise
    for term, value in {"loss-train": loss, "loss-test": loss + gap, "loss-gap": gap, "error-train": loss / 6,
                        "error-test": loss / 6 + gap / 5, "error-gap": gap / 5}.items():
        add("gap", value, term=term, stderr=0.02 if "test" in term or "gap" in term else 0.0)
    depth = np.linspace(0.4, 1.6, len(LAYERS))
    relative = 0.08 * push * depth * np.exp(0.1 * generator.normal(size=len(LAYERS)))
    for layer, value in zip(LAYERS, relative, strict=True):
        add("distance", 20 * value, layer=layer, term="frobenius")
        add("distance", value, layer=layer, term="relative")
        add("distance", 4 * value, layer=layer, term="spectral")
        add("distance", 30 * value, layer=layer, term="mars")
    add("distance", float(np.linalg.norm(20 * relative)), layer="total", term="frobenius")
    add("distance", 0.02, layer="fc.bias", term="l2")

    trace = 6000 * push * np.exp(0.15 * generator.normal())
    share = depth[::-1] / depth.sum()
    for layer, part in zip(LAYERS, share, strict=True):
        add("hessian-trace", trace * part, layer=layer, stderr=0.03 * trace * part, unit="loss/weight²")
    add("hessian-trace", trace, layer="total", stderr=0.02 * trace, unit="loss/weight²")
    add("hessian-distance", trace * 1e-4, layer="total", term="vH+v-mean", stderr=trace * 2e-6, unit="loss")
    add("hessian-distance", trace * 3e-4, layer="total", term="vH+v-max", unit="loss")
    _noise_stability(add, loss, trace, generator)

    add("margin", 2 - 3 * noise, term="quantile")
    add("norm", np.exp(20 * push), layer="total", term="product", unit="")
    add("norm", 17.0, term="constant")
    for bound, variant, kind, exponent in BOUNDS:
        log = exponent + np.log10(push) + 0.1 * generator.normal()
        total = 10.0**log if exponent < 290 else np.inf
        params = {"variant": variant} if variant else {"loss_upper": "max-sample"}
        for layer in LAYERS:
            add(bound, total / len(LAYERS), term=layer, kind=kind, **params)
        unit = "loss" if bound in ("ju2022", "li2021") else "fraction"
        add(bound, total, term="total", kind=kind, unit=unit, **params)
        add(bound, log, term="log10", kind=kind, **params)
        add(bound, float(log > 0.7), term="vacuous", kind=kind, **params)
        add(bound, float(bound == "ju2022"), term="assumes:bounded-loss", kind=kind, **params)
        add(bound, 1.0, term="assumes:no-batch-norm", kind=kind, **params)
    return rows


def _noise_stability(add: Callable[..., None], loss: float, trace: float, generator: np.random.Generator) -> None:
    plateau = np.log(CLASSES)
    shared, curvature = generator.normal(), generator.uniform(0.2, 0.6)
    valid = []
    at = {"layer": "total"}
    for sigma in SIGMAS:
        taylor = sigma**2 / 2 * trace
        reach = taylor / plateau
        stability = plateau * (1 - np.exp(-reach * (1 + 3 * curvature * reach) / (1 + reach)))
        stability *= 1 + 0.02 * shared + 0.01 * generator.normal()
        stderr = 0.02 * stability
        difference = (stability - taylor) / stability
        valid += [sigma] if abs(difference) < 0.1 else []
        for term, value in {"stability": stability, "perturbed-loss": loss + stability}.items():
            add("noise-stability", value, sigma=sigma, term=term, stderr=stderr, unit="loss", **at)
        add("hessian-approximation", taylor, sigma=sigma, term="taylor", stderr=0.02 * taylor, unit="loss", **at)
        add("hessian-approximation", 2 * taylor, sigma=sigma, term="paper", stderr=0.04 * taylor, unit="loss", **at)
        add("hessian-approximation", difference, sigma=sigma, term="relative-difference", stderr=0.03, **at)
    add("hessian-approximation", 0.21 + 0.01 * shared, term="relative-rss", stderr=0.01, **at)
    add("hessian-approximation", 1.4 + 0.1 * shared, term="relative-rss-paper", stderr=0.05, **at)
    if valid:
        add("hessian-approximation", min(valid), term="valid-from", unit="weight", **at)
        add("hessian-approximation", max(valid), term="valid-to", unit="weight", **at)


def _with_failures(frame: pd.DataFrame) -> pd.DataFrame:
    """The second subject's trace fails, the third's bound fails, the fourth's margin is nan."""
    names = frame["subject"].unique()
    gone = (frame["subject"] == names[1]) & frame["measure"].isin(["hessian-trace"])
    gone |= (frame["subject"] == names[2]) & frame["measure"].isin(["li2021"])
    failed = frame[gone].drop_duplicates(["subject", "measure", "params"])
    failed = failed.assign(layer="", term="", value=np.nan, stderr=np.nan, n=np.nan, error=NASTY)
    frame = frame.assign(value=frame["value"].mask((frame["subject"] == names[3]) & (frame["measure"] == "margin")))
    return pd.concat([frame[~gone], failed], ignore_index=True)


def write_run(folder: Path, frame: pd.DataFrame | None = None) -> Path:
    """A run folder as a study leaves it, without the report; returns the folder."""
    frame = readings() if frame is None else frame
    frame.to_csv(folder / "readings.csv", index=False, float_format="%.17g")
    correlations = None
    if len(frame["subject"].unique()) > 2:
        correlations = correlate(frame, by="noise", resamples=200)
        correlations.to_csv(folder / "correlations.csv", index=False, float_format="%.17g")
    write_tables(all_tables(frame, correlations, classes=CLASSES), folder / "tables")
    write_plots(frame, folder / "plots", classes=CLASSES)
    provenance = {"command": "genmeasure run analysis/label_noise.py", "seed": 0, "finished": None,
                  "versions": {"python": "3.11.4", "torch": "2.13.0"}, "sigmas": list(SIGMAS),
                  "requests": [{"measure": "gap"}, {"measure": "hessian-trace", "params": {"rtol": 0.02}}],
                  "subjects": {"plain-0-0": {"weights": "ab" * 32}}}
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    return folder
