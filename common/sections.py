"""The tables of a study file: what is predicted, how sites learn, who takes part."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from common.settings import Table

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
RESERVED: Final = frozenset({"pooled", "all"})  # sites' names that stand for several of them
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=10)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Target(Table):
    """Something to predict. Centre and scale are constants of the study, never a site's own."""

    kind: Literal["regression", "binary", "categorical"] = Field(description="What is predicted.")
    unit: str = Field("", description='Unit of a regression target, such as "years".')
    transform: Literal["none", "log"] = Field(
        "none",
        description="log: learnt as a logarithm, which suits what is skewed (regression).",
    )
    centre: float = Field(0.0, description="Subtracted before training, in the unit (regression).")
    scale: Positive = Field(
        1.0,
        description="Divided by before training (regression); of a logarithm, so that 0.4 is "
        "about 40 per cent.",
    )
    loss: Literal["", "huber", "squared", "l1", "quantile"] = Field(
        "", description="Loss of this target (regression); empty: the objective's."
    )
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="quantile: which one is asked for; 0.5 is the median."
    )
    low: float = Field(-1e9, description="Values below are refused as impossible (regression).")
    high: float = Field(1e9, description="Values above are refused as impossible (regression).")
    classes: tuple[str, ...] = Field(
        (),
        description="The study's words; for binary the second is the positive class.",
        max_length=1000,
    )
    weight: Positive = Field(1.0, description="Weight of this target's loss in pretraining.")
    positive_weight: Annotated[float, Field(ge=1, le=5)] = Field(
        1.0, description="Weight of positive samples (binary), at most 5."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        listed = f"classes is [{', '.join(self.classes)}]"
        if self.kind == "regression" and self.classes:
            raise ValueError(f"{listed}; a regression target has none")
        if self.kind == "binary" and len(self.classes) != 2:
            raise ValueError(f"{listed}; a binary target needs two, the positive one last")
        if self.kind == "categorical" and len(self.classes) < 3:
            raise ValueError(f"{listed}; a categorical target needs three or more")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{listed}; classes must differ from each other")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be below")
        if self.kind != "regression" and (self.transform != "none" or self.loss):
            raise ValueError(f"kind is {self.kind}; transform and loss are of regression targets")
        if self.transform == "log" and min(self.low, self.centre) <= 0:
            raise ValueError(
                f"transform is log, low is {self.low:g} and centre is {self.centre:g}; both must "
                "be above 0"
            )
        if self.loss == "l1" and self.quantile != 0.5:
            raise ValueError(f"loss is l1 and quantile is {self.quantile:g}; use quantile")
        return self

    @property
    def outputs(self) -> int:
        """Numbers a head gives for this target: one, or one a class."""
        return len(self.classes) if self.kind == "categorical" else 1


class Steps(Table):
    """What every training is told, pretraining and fine-tuning alike."""

    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(8, description="Scans in a step.")
    optimiser: Literal["sgd", "adam", "adamw"] = Field("adamw", description="Local optimiser.")
    momentum: Share = Field(0.9, description="Momentum of sgd.")
    gradient_clip: Annotated[float, Field(ge=0)] = Field(
        5.0, description="Largest gradient norm of a step; 0 leaves gradients alone."
    )
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Learning rate from step to step; cosine falls to a twentieth."
    )
    warmup: Share = Field(
        0.0, description="Share of the whole training in which the rate rises from nothing."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Learning rate of each stage of the backbone over that of the stage behind "
        "it; 1 treats all alike.",
    )
    sampling: Annotated[
        str, StringConstraints(pattern=r"^(scans|participants|classes:[a-z0-9][a-z0-9_-]{0,62})$")
    ] = Field(
        "scans",
        description="What an epoch shows equally often: every scan once, every participant, or "
        "with classes:TARGET every class among the scans that are labelled.",
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(4, description="lora: rank of updates.")
    blocks: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="last-blocks: stages of the backbone that are trained."
    )
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0,
        description="MixUp: both parameters of the beta distribution that samples are mixed by; 0 "
        "mixes none. It couples the people of a batch, so private training refuses it.",
    )
    cutmix: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0,
        description="CutMix: likewise, for boxes of one sample put into another; with mixup too, "
        "each batch has one of them by chance.",
    )
    sharpness: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0,
        description="SAM: how far (rho) to the place of the highest loss nearby, where gradients "
        "are then taken, in twice the time; 0 takes them at the weights.",
    )
    weight_averaging: Share = Field(
        0.0,
        description="Decay from step to step of a running average of the weights, which leaves "
        "the round or is kept as the tuned model in place of the last ones, with normalisation "
        "statistics as trained; 0 takes the last.",
    )


class Pretraining(Steps):
    """How each site trains in each round."""

    rounds: Annotated[int, Field(ge=0, le=10_000)] = Field(
        10, description="Federated rounds; 0 where all is settled by sums (ridge)."
    )
    local_epochs: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Passes over a site's training scans in one round."
    )
    learning_rate: Rate = Field(1e-3, description="Highest local learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-3, description="Weight decay.")
    proximal_mu: Annotated[float, Field(ge=0)] = Field(
        0.0, description="FedProx: pull towards the round's global weights; 0 is FedAvg."
    )
    trains: Literal["full", "last-blocks", "lora"] = Field(
        "full",
        description="What of the backbone the rounds train: all, its last stages, or low-rank "
        "additions to it. What is frozen travels to a site once.",
    )
    optimiser_state: Literal["fresh", "kept"] = Field(
        "fresh",
        description="Moments of the local optimiser: anew in each round, or kept at the site from "
        "round to round.",
    )


class Aggregation(Table):
    """How reports become the next global arrays."""

    server_optimiser: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = Field(
        "fedavg", description="What is done with the averaged update."
    )
    learning_rate: Rate = Field(1.0, description="Server learning rate; 1 with fedavg.")
    momentum: Share = Field(0.9, description="fedavgm: momentum.")
    beta_1: Share = Field(0.9, description="fedadam, fedyogi: first moment.")
    beta_2: Share = Field(0.99, description="fedadam, fedyogi: second moment.")
    tau: Positive = Field(1e-3, description="fedadam, fedyogi, fedadagrad: adaptivity.")
    weight: Literal["scans", "participants"] = Field(
        "scans",
        description="What a site's update weighs: the scans that entered a loss, or the people "
        "they are of; for a head, those with its label. By default what the data kind says: bold "
        "counts participants.",
    )
    normalisation: Literal["average", "silobn", "fedbn", "groupnorm"] = Field(
        "average", description="What happens to normalisation layers; see server/README.md."
    )

    @model_validator(mode="after")
    def _plain_average(self) -> Self:
        if self.server_optimiser == "fedavg" and self.learning_rate != 1.0:
            raise ValueError(
                f"learning_rate is {self.learning_rate:g}; fedavg takes 1, use fedavgm for another"
            )
        return self


class Sites(Table):
    """Who takes part, by name and role."""

    train: tuple[Name, ...] = Field(description="Sites that contribute to the weights.")
    heldout: tuple[Name, ...] = Field(
        (), description="Sites that judge the result and never contribute."
    )
    chosen_on: tuple[Name, ...] = Field(
        (),
        description="Sites whose figures chose something of this study: rounds, a checkpoint, "
        "settings. None of them may judge it, nor what begins from it.",
    )
    quorum: Annotated[int, Field(ge=0)] = Field(
        0, description="Fewest training sites for a round to count; 0 asks for all."
    )
    time_limit_s: Positive = Field(
        3600.0, description="Longest wait without any answer arriving; then the quorum decides."
    )
    most_scans: Annotated[int, Field(ge=1, le=2**40)] = Field(
        1_000_000, description="Most scans that one site may say it holds; more is not believed."
    )

    @model_validator(mode="after")
    def _roles_are_apart(self) -> Self:
        if not self.train:
            raise ValueError("train is []; at least one site must train")
        everyone = [*self.train, *self.heldout]
        twice = sorted(site for site, times in Counter(everyone).items() if times > 1)
        taken = sorted(RESERVED & set(everyone))
        if taken:
            raise ValueError(f'no site may be called "{taken[0]}"; results use that name')
        if twice:
            raise ValueError(
                f"{', '.join(twice)} is listed twice; a site has one name and one role"
            )
        if self.quorum > len(self.train):
            raise ValueError(f"quorum is {self.quorum} but only {len(self.train)} sites train")
        return self


class Splits(Table):
    """Which participants train, choose and test. Decided by a hash of salt and participant."""

    salt: str = Field("callosum", description="Studies with one salt split a site alike.")
    validation: Share = Field(0.15, description="Share of participants that choose settings.")
    test: Share = Field(0.2, description="Share of participants kept for fine-tuning's test.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Share of a site's other participants that is trained on; those of a smaller "
        "share are among those of a larger one. Who is spared is in no split.",
    )

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        if self.validation + self.test >= 0.95:
            raise ValueError(
                f"validation is {self.validation:g} and test is {self.test:g}; "
                "they leave fewer than 5 % of participants to train"
            )
        return self


class Start(Table):
    """An earlier checkpoint that the run begins from; `callosum study start` writes this table."""

    study: Name = Field(description="Name of the study that the checkpoint came of.")
    file: str = Field(
        "",
        exclude=True,
        description="The checkpoint, relative to the study file; the coordinator's alone, and no "
        "part of the digest.",
    )
    take: Literal["backbone", "all"] = Field(
        "backbone", description="Which of its arrays are taken: the backbone's, or all."
    )
    leave: tuple[str, ...] = Field(
        (),
        description="Beginnings of names of arrays that are drawn anew all the same, such as "
        "those that depend on a volume's size.",
    )
    arrays: Digest = Field(description="SHA-256 of the arrays that are taken.")
    contributors: tuple[Name, ...] = Field(
        description="Every site that contributed to them; none of them may judge this study."
    )
    cohorts: tuple[Digest, ...] = Field(
        (), description="Fingerprints of those sites' scans, whatever the sites are called."
    )
    salt: Digest | Literal[""] = Field(
        "", description="What tokens of scans are made with, along all studies of one chain."
    )
    lineage: Digest | Literal[""] = Field(
        "", description="SHA-256 of the checkpoint's lineage, which the run takes from the file."
    )
    seen: Digest | Literal[""] = Field(
        "",
        description="SHA-256 of the tokens of scans that lie beside the checkpoint; empty: none "
        "do, and judges are compared by name and as whole cohorts alone.",
    )


_WAY: Final = re.compile(r"linear|[a-z0-9][a-z0-9_-]{0,30}/[a-z][a-z0-9-]{0,30}")


def _check_way(text: str) -> str:
    if _WAY.fullmatch(text) is None:
        raise ValueError("linear, or START/METHOD is needed, such as pretrained/full")
    return text


# how a network starts and what of it is then trained; a linear model of regional measures has no
# start. Networks may offer methods of their own (`common.network.tuning`)
Method = Annotated[str, AfterValidator(_check_way)]


class FineTuning(Steps):
    """A task that each site learns for itself, from the shared backbone and from its rivals."""

    name: Name = Field(description="Name of the task.")
    target: str = Field(description="The target that is learnt.")
    methods: tuple[Method, ...] = Field(
        ("pretrained/full", "pretrained/frozen", "scratch/full", "linear"),
        description="What is compared: pretrained/, scratch/, pooled/, single-site/ or a model of "
        "comparisons.targets, with full, frozen, last-blocks, lora, adapters, prompts, tokens or "
        "another that the network offers; and linear.",
        min_length=1,
        max_length=20,
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(8, description="Most passes.")
    patience: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Stop when the validation loss has not fallen for so many passes, and go "
        "back to the best; 0 trains to the end.",
    )
    learning_rates: tuple[Rate, ...] = Field(
        (3e-4, 1e-3),
        description="Grid of learning rates; validation chooses.",
        min_length=1,
        max_length=100,
    )
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1e-3,),
        description="Grid of weight decays; validation chooses.",
        min_length=1,
        max_length=100,
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="Learning rate from step to step; cosine falls to a twentieth."
    )
    width: Annotated[int, Field(ge=1, le=65536)] = Field(
        16, description="adapters: width of their narrow layer."
    )
    prompts: Annotated[int, Field(ge=1, le=10_000)] = Field(
        8, description="prompts: how many are learnt, where the network takes them."
    )
    participants: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (),
        description="Learn from so many training participants only; several are compared.",
        max_length=100,
    )
    draws: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="How often those participants are drawn."
    )
    repeats: Annotated[int, Field(ge=0, le=1000)] = Field(
        1,
        description="How often each training is repeated with other random numbers; 0 leaves the "
        "task to the study's protocols.",
    )
    then: tuple[Literal["judge", "explain", "send", "cross"], ...] = Field(
        (),
        description="What is asked of the tuned models that sites keep: judge on test "
        "participants anew, explain by a mean map, send the trained arrays; cross has heads that "
        "were sent, linear or on a frozen backbone, judged at the other sites.",
    )
    maps: Literal["gradients", "relevance"] = Field(
        "gradients",
        description="explain: integrated gradients, of any network, over all test participants; "
        "or layer-wise relevance propagation, of convolutions, dense layers and LSTMs, with a map "
        "for each class of several.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, values in (("methods", self.methods), ("participants", self.participants)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key} lists something twice")
        alike = Counter(way.replace("/", "-") for way in self.methods)  # as results call a rival
        if twice := [name for name, times in alike.items() if times > 1]:
            raise ValueError(f"methods has two ways that results would call {twice[0]}")
        if self.then and not self.repeats:
            raise ValueError(
                f"then is [{', '.join(self.then)}] and repeats is 0; no tuned model would be kept"
            )
        if "cross" in self.then and "send" not in self.then:
            raise ValueError(
                "then has cross, and not send; only what sites send is judged elsewhere"
            )
        if self.draws > 1 and not self.participants:
            raise ValueError(f"draws is {self.draws}; participants must say how many are drawn")
        grid = len(self.learning_rates) * len(self.weight_decays)
        if (trainings := grid * self.repeats * self.draws) > MOST_TRAININGS:
            raise ValueError(
                f"repeats is {self.repeats}, with draws and the grid that makes {trainings:,} "
                f"trainings in one order; at most {MOST_TRAININGS:,} are asked for"
            )
        return self


MOST_TRAININGS: Final = 10_000  # of one fine-tuning order; a grid of 6 a hundred times is 600


CALIBRATED: Final = "+unlabelled-"  # in the name of a model that saw people of the judging site


def calibrated(model: str, people: int) -> str:
    """A model's name after calibration on so many people without a label.

    >>> calibrated("federated", 20)
    'federated+unlabelled-20'
    """
    return f"{model}{CALIBRATED}{people}"


class Evaluation(Table):
    """How held-out sites judge."""

    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = Field(
        1000,
        description="Resamplings of participants for the interval of a mean over people, of how "
        "faithful maps are; metrics have intervals in closed form.",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="Coverage of intervals."
    )
    statistics: Literal["shared", "reestimated"] = Field(
        "shared",
        description="Normalisation statistics at an unseen site: the average of the training "
        "sites', or its own from unlabelled scans (always so under silobn).",
    )
    calibration: tuple[Annotated[int, Field(ge=3, le=1_000_000)], ...] = Field(
        (),
        description="Also judge the federated model where the site takes its own location and "
        "scale off its columns (combat), else the mean off its scores of targets with two classes, "
        "as so many of its people without a label tell them; on the others. Several numbers are "
        "compared.",
        max_length=10,
    )
    shortcuts: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="Also tell how well features give away the site that a person is of, before "
        "and after training, from sums of so many numbers a person (8, say); 0: not asked.",
    )
    head: bool = Field(True, description="Also fit a head on the frozen backbone at the site.")
    baselines: bool = Field(
        True,
        description="Also judge what needs no network: the study's constant, the site's own mean "
        "and a linear model of its own. They are the same whatever network stands beside them.",
    )
