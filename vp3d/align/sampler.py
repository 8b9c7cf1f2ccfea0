"""The sampler of `visual_prompt.sampler=svdd`: rewards by name, on one scale, and their value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vp3d.align.objectives import (
    LEAST_SD,
    Objective,
    PictureScore,
    combined,
    parse_rewards,
    score_all,
)
from vp3d.align.scores import WITH_GRADIENT, WITHOUT_GRADIENT
from vp3d.align.steer import Latents, PictureReward, SteeredSampler, Steering, propose_latents
from vp3d.align.svdd import svdd
from vp3d.align.value import (
    LatentValue,
    Regressor,
    Rollouts,
    fit_value,
    monte_carlo,
    roll_out,
)
from vp3d.config.schema import SvddConfig, VisualPromptConfig
from vp3d.diffusion.drawing import Drawing
from vp3d.diffusion.prior import Prior
from vp3d.errors import UserError
from vp3d.rewards.text_image import TextImage

TEXT = "text"  # the reward of the text-image judge of the run
NAMES = (TEXT, *WITHOUT_GRADIENT, *WITH_GRADIENT)
SCALE_DRAWS = 16  # plain drawings that the rewards are put on one scale by
ROLLOUTS, UPDATES = 64, 600  # plain drawings and updates of the Monte-Carlo value


def check_reward(text: str, own: Collection[str] = ()) -> list[tuple[str, float]]:
    """Names and weights of `visual_prompt.svdd.reward`.

    Args:
        text: The setting.
        own: Names of the caller's own scores.

    Raises:
        UserError: a name is unknown. A config never names code, so `module:function` is unknown
            unless the command line gave it.
    """
    try:
        found = parse_rewards(text)
    except UserError as error:
        reason = str(error).replace("--reward", "")
        raise UserError(f"config key 'visual_prompt.svdd.reward':{reason}") from error
    unknown = next((name for name, _ in found if name not in (*NAMES, *own)), None)
    if unknown is not None:
        raise UserError(
            f"config key 'visual_prompt.svdd.reward': there is no reward {unknown!r}; use "
            f"{', '.join(NAMES)}, or give a function of your own by `draw --reward`"
        )
    return found


def steered_sampler(
    prior: Prior,
    judge: TextImage,
    prompt: str,
    negative: str,
    settings: VisualPromptConfig,
    generator: torch.Generator,
    own: Mapping[str, PictureScore] | None = None,
) -> SteeredSampler:
    """The sampler of a prompt, by `settings.svdd`.

    Some plain pictures are drawn first, which put the rewards on one scale; with the Monte-Carlo
    value some more, which a network is fitted to. With one proposal nothing is drawn.

    Args:
        prior: Draws.
        judge: The text-image reward of the run, called `text`.
        prompt: The prompt that is drawn, with its view words.
        negative: The negative prompt; may be empty.
        settings: The group `visual_prompt`.
        generator: Draws the plain pictures, and the batches of the fit.
        own: The caller's own scores, by name.

    Returns:
        A sampler for this prompt, whose `sample` takes the arguments of `Prior.sample`.

    Raises:
        UserError: a reward is unknown, or not finite for all plain pictures.
    """
    plan = settings.svdd
    own = own or {}
    named = check_reward(plan.reward, own)
    steering = Steering(plan.m, plan.alpha, (plan.begin, plan.finish))
    if plan.m == 1:
        return SteeredSampler(prior, lambda prompts: _never, steering)
    objectives = [
        Objective(name, own.get(name) or _score(name, judge), weight) for name, weight in named
    ]

    def drawing(count: int) -> Drawing:
        return prior.drawing([prompt] * count, negative, settings.steps, settings.guidance_scale)

    pictures = _plain(drawing(SCALE_DRAWS), generator)
    objectives = [_on_scale(one, pictures, prompt) for one in objectives]

    def reward_of(prompts: Sequence[str]) -> PictureReward:
        def reward(rgb: Tensor, owner: Tensor) -> Tensor:
            with torch.no_grad():
                rows = [prompts[k] for k in owner.tolist()]
                return combined(objectives, score_all(objectives, rgb, rows))

        return reward

    sampler = SteeredSampler(prior, reward_of, steering)
    if plan.value == "mc":
        noise = prior.noise(ROLLOUTS, generator)
        found = roll_out(drawing(ROLLOUTS), noise, reward_of([prompt] * ROLLOUTS), generator)
        sampler.value = monte_carlo(_fitted(found, generator, plan.alpha))
    return sampler


def _fitted(found: Rollouts, generator: torch.Generator, alpha: float) -> Regressor:
    """The value by the roll-outs whose reward is a number; its weights come from the generator."""
    usable = found.reward.isfinite()
    if not bool(usable.any()):
        raise UserError(
            "the reward is not a number for any plain drawing of this prompt; see "
            "visual_prompt.svdd.reward and prior.dtype"
        )
    found = Rollouts(found.x[usable], found.step[usable], found.reward[usable])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network = LatentValue(found.x.shape[1], int(found.step.max()) + 1)
    return fit_value(found, UPDATES, generator, alpha, network=network)


def _never(rgb: Tensor, owner: Tensor) -> Tensor:
    raise ValueError("one proposal has no reward")


def _score(name: str, judge: TextImage) -> PictureScore:
    """The score of that name."""
    if name != TEXT:
        return {**WITH_GRADIENT, **WITHOUT_GRADIENT}[name]
    targets: dict[str, Tensor] = {}

    def score(rgb: Tensor, prompts: Sequence[str]) -> Tensor:
        for prompt in prompts:
            if prompt not in targets:
                targets[prompt] = judge.target([prompt])
        target = torch.cat([targets[prompt] for prompt in prompts])
        return judge.score(rgb.to(judge.device), target).to(rgb.device)

    return score


@torch.no_grad()
def _plain(drawing: Drawing, generator: torch.Generator) -> Tensor:
    """Plain pictures [B, 3, H, W] of a drawing, with noise in their steps."""
    count = len(drawing.gates)
    state = Latents(drawing, drawing.prior.noise(count, generator))
    steps = len(drawing.levels) - 1
    state = svdd(state, steps - 1, propose_latents(), lambda s, i: s.x, 1, 0.0, generator)
    return drawing.prior.decode(state.finished())


@torch.no_grad()
def _on_scale(one: Objective, rgb: Tensor, prompt: str) -> Objective:
    """The objective on the scale of plain pictures; one that is constant there has the scale 1."""
    values = score_all([one], rgb, [prompt] * len(rgb))[one.name].double()
    values = values[values.isfinite()]
    if not len(values):
        raise UserError(
            f"the reward {one.name} is not a number for any plain drawing of this prompt; see "
            "visual_prompt.svdd.reward and prior.dtype"
        )
    sd = float(values.std(unbiased=False))
    return replace(one, mean=float(values.mean()), sd=sd if sd >= LEAST_SD else 1.0)


def describe(settings: SvddConfig) -> str:
    """What a steered drawing does, in a few words."""
    return f"{settings.m} proposals a step by {settings.reward}"
