"""The `[privacy]` table of a study: how much of any one person may show in what rounds learn."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.settings import Table

AtLeastNothing = Annotated[float, Field(ge=0, le=1e6)]


class Privacy(Table):
    """Differential privacy of training: of each person with all of her scans, or of each site."""

    unit: Literal["none", "participant", "site"] = Field(
        "none",
        description="Whose part is hidden: nobody's; each participant's, by clipped and noised "
        "gradients (DP-SGD); or each whole site's, by an update that is cut down and noised, in "
        "secure sums.",
    )
    noise: AtLeastNothing = Field(
        1.0, description="Standard deviation of the noise, in clips; 0 protects nobody."
    )
    clip: Annotated[float, Field(gt=0, le=1e6)] = Field(
        1.0, description="Largest norm of one person's gradient, or of a site's whole update."
    )
    clipping: Literal["flat", "layers", "automatic"] = Field(
        "flat",
        description="flat: the whole gradient down to clip; layers: each layer's down to its "
        "share; automatic: each person's gradient divided by its norm, so that all weigh alike.",
    )
    people_per_step: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        32,
        description="People in a step, on average: each is drawn by chance of her own, so that "
        "steps differ in size. It takes the place of pretraining.batch_size.",
    )
    scans_per_person: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        8, description="Most scans of one person in a step, drawn anew each time; 0: all."
    )
    epsilon: AtLeastNothing = Field(
        8.0,
        description="Most that this study may cost any participant; a site whose next round would "
        "cost more declines. 0: no cap of the study's.",
    )
    delta: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Chance that the bound does not hold, at a site never more than one over its "
        "training participants; 0: a tenth of that.",
    )

    @model_validator(mode="after")
    def _protects_somebody(self) -> Self:
        if self.has_cost and self.epsilon and not self.noise:
            raise ValueError(
                f"epsilon is {self.epsilon:g} and noise is 0, which no epsilon bounds; set noise, "
                "or epsilon = 0 to try clipping without protection"
            )
        return self

    @property
    def is_private(self) -> bool:
        """Whether rounds are trained by clipped and noised gradients."""
        return self.unit == "participant"

    @property
    def hides_sites(self) -> bool:
        """Whether whole updates are cut down and noised."""
        return self.unit == "site"

    @property
    def has_cost(self) -> bool:
        """Whether a round costs epsilon."""
        return self.unit != "none"

    def rate(self, people: int) -> float:
        """The chance of each of a site's `people` to be in a step.

        >>> Privacy(people_per_step=32).rate(128), Privacy(people_per_step=32).rate(20)
        (0.25, 1.0)
        """
        return self.expected(people) / max(1, people)

    def expected(self, people: int) -> int:
        """People in a step, on average: what their sum is divided by, whoever was drawn."""
        return min(self.people_per_step, max(1, people))

    def steps(self, people: int) -> int:
        """Steps of one pass over a site's `people`.

        >>> Privacy(people_per_step=32).steps(100)
        4
        """
        return -(-max(1, people) // self.expected(people))
