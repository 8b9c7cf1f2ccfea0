"""An `align` run on disk: prompts, checkpoints, sample sheets, curves, and the LoRA.

lora/pytorch_lora_weights.safetensors   the best by the guard; last/ has the newest
sheets/000040.png                       base, aligned, and where they differ; the same seeds
curves.png, report.html, prompts.json, config.yaml, provenance.json, events.jsonl, checkpoints/
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from vp3d.align.guard import Check
from vp3d.checks import check_same_weights
from vp3d.config.schema import AlignConfig, PriorConfig
from vp3d.diffusion.lora import save_lora
from vp3d.errors import DamagedFileError, UserError, VP3DError
from vp3d.report.pictures import labelled, resized, save_image, sheet
from vp3d.report.plots import write_plots
from vp3d.runs.events import Artifact, Stage, Step, Watch
from vp3d.runs.folder import RunFolder
from vp3d.runs.journal import Journal
from vp3d.system.console import clock
from vp3d.system.files import plain, read_json_object, write_text
from vp3d.system.memory import peak_memory
from vp3d.train import checkpoint
from vp3d.tuning.build import check_request, load_training
from vp3d.tuning.rewards import check_named
from vp3d.tuning.session import Prompts, Training
from vp3d.types import to_uint8
from vp3d.weights.locate import licence_of
from vp3d.weights.lora_files import FILE_NAME

STAGE = "align"
SHEET_PICTURES = 3  # of training prompts, and as many of prompts that only the guard sees
SHEET_TITLE = "base, aligned, where they differ; left: trained on, right: unseen"
TILE = 128  # pixels of a drawing on a sheet
CHANGE_SCALE = 4.0  # of a change of grey level, 0 to 1, on a sheet


def align(run: RunFolder, watch: Watch | None = None, reward: str = "") -> Path:
    """Train, or continue, the run of a folder.

    Args:
        run: Made by `tuning.build.start_run`.
        watch: Hears of the steps, and may stop between two.
        reward: The rewards as the caller knows them. A run with functions of the caller's own needs
            them, because the name in a folder never chooses code.

    Returns:
        The folder of the best LoRA.

    Raises:
        UserError: a reward, prompt or setting is refused, or weights changed since the run began.
    """
    watch = watch or Watch()
    with run.lock():
        journal = Journal(run, watch)
        config = run.config(journal.warn)
        check_named(config.align.reward, reward, run.path)
        check_request(config)
        check_same_weights(run, config)
        watch.on_event(Stage("load", "loading models"))
        training = load_training(config, _read_prompts(run), journal)
        _resume(training, run, journal)
        _train(training, config.prior, run, journal)
        return run.path / "lora"


def _read_prompts(run: RunFolder) -> Prompts:
    path = run.path / "prompts.json"
    found = read_json_object(path)
    lists = [found.get("training"), found.get("validation")]
    for one in lists:
        if not isinstance(one, list) or not one or not all(isinstance(p, str) for p in one):
            raise DamagedFileError(f"{path} lists no prompts: restore it, or start a new run")
    training, validation = lists
    assert training is not None and validation is not None
    return Prompts(tuple(training), tuple(validation))


def _resume(training: Training, run: RunFolder, journal: Journal) -> None:
    def damaged(path: Path, reason: str) -> None:
        journal.warn(f"{path} is damaged ({reason}): taking the one before")

    found = checkpoint.load_latest(run.checkpoints(STAGE), damaged)
    if found is not None:
        kept, default = found.meta.get("settings", {}), plain(AlignConfig())
        for key, value in _settings(training).items() if kept else ():
            if kept.get(key, default.get(key)) != value:
                raise UserError(
                    f"{run.path} was trained with another {key} until step {found.meta['step']}: "
                    "restore it in its files, or start a new run (--from continues from a LoRA)"
                )
        training.restore(found.tensors, found.meta)
        journal.note(f"continuing at step {training.step_number}")


def _train(training: Training, base: PriorConfig, run: RunFolder, journal: Journal) -> None:
    settings, watch = training.config, journal.watch
    watch.on_event(Stage(STAGE, f"aligning to {settings.reward}", settings.updates))
    stopped = "" if training.guard.checks else _check(training, run, journal)
    stopped = stopped or str(_verdict(run))
    first, device = training.step_number, training.prior.device
    while training.step_number < settings.updates and not stopped:
        if watch.stop.is_set():
            _save(training, run)
            journal.note(f"stopped at step {training.step_number}; `resume` continues the run")
            break
        try:
            seconds = _step(training, journal)
        except VP3DError as error:  # what was learned until now is not lost
            _finish(training, base, run, journal, str(error))
            raise
        if training.step_number == first + 1:
            journal.note(_forecast(seconds, settings.updates - training.step_number, device))
        if training.step_number % settings.guard_every == 0:
            stopped = _check(training, run, journal)
    else:
        if training.guard.checks[-1].step != training.step_number and not stopped:
            stopped = _check(training, run, journal)
    _finish(training, base, run, journal, stopped)


def _step(training: Training, journal: Journal) -> float:
    """One training step, logged; returns its seconds."""
    began, fitted = time.perf_counter(), training.learner.part
    report = training.step()
    seconds = time.perf_counter() - began
    if training.learner.part < fitted:
        fits = training.learner.part
        journal.warn(
            f"out of memory with K = {report.keep}: the graph of {fits} drawings at once fits, "
            f"so a step takes several turns; --k fixed:1 or align.batch={fits} needs less"
        )
    if report.skipped:
        journal.warn(f"step {training.step_number} changed nothing: {report.skipped}")
    values: dict[str, Any] = {f"reward_{k}": v for k, v in report.rewards.items()}
    values |= {"reward_total": report.total, "keep": report.keep, "norm": report.norm}
    journal.log("step", step=training.step_number, seconds=seconds, **values)
    updates = training.config.updates
    journal.watch.on_event(Step(STAGE, training.step_number, updates, values))
    return seconds


def _forecast(seconds: float, steps: int, device: torch.device) -> str:
    """What a step costs, and when the rest is done."""
    left = seconds * steps
    end = time.strftime("%H:%M", time.localtime(time.time() + left))
    memory = peak_memory(device) / 1e9
    return (
        f"a step takes {seconds:.1f} s and {memory:.1f} GB at its peak; about {clock(left)} are "
        f"left, until {end}"
    )


def _check(training: Training, run: RunFolder, journal: Journal) -> str:
    """Guard, log, checkpoint and sample sheet; returns why to stop, or ""."""
    reason = training.check()
    check = training.guard.checks[-1]
    journal.log("check", **{**vars(check), "reason": reason})
    advice = training.guard.advice()
    if advice:
        journal.warn(advice)
    if reason:
        journal.warn(reason)
    _save(training, run)
    _write_sheet(training, run.path / "sheets" / f"{check.step:06d}.png")
    return reason


def _verdict(run: RunFolder) -> str:
    """Why the guard ended this run earlier; "" if it did not."""
    checks = run.events("check")
    return str(checks[-1].get("reason", "")) if checks else ""


def _save(training: Training, run: RunFolder) -> None:
    tensors, record = training.state()
    record["settings"] = _settings(training)
    checkpoint.save(run.checkpoints(STAGE), training.step_number, tensors, record)


def _settings(training: Training) -> dict[str, Any]:
    """What a training depends on and a run may not change on its way."""
    found: dict[str, Any] = plain(training.config)
    del found["updates"], found["guard_every"]
    negative = training.learner.settings.negative
    prompts = plain(training.prompts)
    return found | {"seed": training.seed, "negative_prompt": negative, "prompts": prompts}


def _write_sheet(training: Training, path: Path) -> None:
    """Base, aligned, and where they differ (the drift map): training prompts left, unseen right."""
    with training.averaged():
        rgb = training.draw_validation()
    stride = max(1, len(rgb) // SHEET_PICTURES)
    rows = list(range(0, len(rgb), stride))[:SHEET_PICTURES]
    prompts, base, tuned = training.draw_training(SHEET_PICTURES)
    prompts += [training.drawn[row] for row in rows]
    base = torch.cat([base, training.base_rgb[rows]])
    tuned = torch.cat([tuned, rgb[rows]])
    change = CHANGE_SCALE * (tuned - base).abs().mean(1, keepdim=True)
    tiles = [
        [
            labelled(resized(to_uint8(picture[None])[0], TILE), prompt)
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
        for pictures in (base, tuned, change.clamp_max(1.0).expand_as(base))
    ]
    path.parent.mkdir(exist_ok=True)
    save_image(sheet(tiles, SHEET_TITLE), path)


def _finish(
    training: Training, base: PriorConfig, run: RunFolder, journal: Journal, stopped: str
) -> None:
    best = training.guard.best()
    notes: dict[str, Any] = {
        "base": base.path,
        "weights": run.recorded_weights(),
        "reward": training.config.reward,
        "method": training.config.method,
        "step": best.step,
        "queries": training.queries,
        "base_licence": licence_of(base.path, base.manifest),
    }
    for folder, tensors, step in (
        ("lora", training.best or training.average, best.step),
        ("last", training.average, training.step_number),
    ):
        path = run.path / folder / FILE_NAME
        path.parent.mkdir(exist_ok=True)
        save_lora(path, tensors, notes | {"step": step})
        journal.watch.on_event(Artifact(folder, path))
    write_plots(_curve_events(training, run), run.path / "curves.png")
    write_text(run.path / "report.html", _report(training, run, stopped))
    journal.note(
        f"the LoRA of step {best.step} was kept: "
        + ", ".join(f"{name} {value:.4g}" for name, value in best.rewards.items())
    )
    if best.step == 0 and training.step_number > 0 and not training.config.start:
        journal.warn(
            "no later LoRA scored higher and passed the guard, so lora/ changes nothing: last/ has "
            "the newest"
        )


def _curve_events(training: Training, run: RunFolder) -> list[dict[str, Any]]:
    """What the curves show: the steps, and what the guard found of the drawings."""
    held = f"reward_{training.guard.held_name} (held out)"
    checks = [
        {"kind": "step", "step": check.step, held: check.held}
        | {f"guard_{name}": getattr(check, name) for name in ("spread", "drift", "sharpness")}
        for check in training.guard.checks
    ]
    return [*run.events("step"), *checks]


def _report(training: Training, run: RunFolder, stopped: str) -> str:
    """The page of the run; it opens offline from its folder."""
    checks = training.guard.checks
    names = list(checks[0].rewards)
    head = [
        "step",
        *names,
        f"{training.guard.held_name} (held out)",
        "spread",
        "drift",
        "sharpness",
    ]
    rows = "".join(_row(check, names, training.guard.best()) for check in checks)
    sheets = sorted((run.path / "sheets").glob("*.png"))[-1:]
    pictures = "".join(f'<img src="sheets/{path.name}" alt="samples">' for path in sheets)
    title = escape(f"align {training.config.reward}")
    line = f"<p>{escape(stopped)}</p>" if stopped else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{title}</title><style>body{{font-family:sans-serif;margin:2em}}"
        "td,th{padding:.2em .8em;text-align:right}img{max-width:100%}.best{font-weight:bold}"
        f"</style><h1>{title}</h1>{line}<table><tr>"
        + "".join(f"<th>{escape(name)}</th>" for name in head)
        + f"</tr>{rows}</table>{pictures}<img src='curves.png' alt='curves'></html>\n"
    )


def _row(check: Check, names: Sequence[str], best: Check) -> str:
    held = "" if check.held is None else f"{check.held:.4f}"
    cells = [str(check.step), *(f"{check.rewards[name]:.4g}" for name in names), held]
    cells += [f"{value:.4g}" for value in (check.spread, check.drift, check.sharpness)]
    style = ' class="best"' if check.step == best.step else ""
    return f"<tr{style}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
