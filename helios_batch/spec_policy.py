"""The policy of a job: who decides at which depth, and on which model, its tokens leave."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from helios_batch.spec_section import Real, Section

PolicyName = Literal["vanilla", "ee", "helios-single", "helios"]
Objective = Literal["throughput", "latency", "memory", "quality"]


class PolicySpec(Section):
    """A policy of HELIOS's paper (arXiv 2504.10724), or one that it is compared with.

    `vanilla`: all layers for each token. `ee`: all layers are loaded, and a token leaves at the
    first exit that is at least `threshold` sure (EE-LLM, arXiv 2312.04916). `helios-single` loads
    only the layers up to one exit, where all tokens leave, and deepens when too many are unsure;
    `helios` may switch to another of the job's models instead.

    A token under `threshold` is a breach: more than `limit` of them in a window of `window` tokens
    make the policy react. Tokens are counted across the batch, and a window ends with the step that
    fills it: of more rows at once than that, each step is a window, whose limit is the same share
    of its tokens. `requests` rows of the job are run on each of at most `shortlist` candidates
    before the first of them is chosen, and again every `reprofile` rows.
    """

    type: PolicyName
    threshold: Real = Field(default=0.8, ge=0.0, le=1.0)
    window: int = Field(default=100, ge=1)
    limit: int = Field(default=50, ge=0)
    requests: int = Field(default=5, ge=1)
    reprofile: int = Field(default=150, ge=1)
    shortlist: int = Field(default=3, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _limit_is_within_the_window(self) -> Self:
        if self.limit >= self.window:
            raise ValueError(
                f"a window of {self.window} tokens never has more than {self.limit} breaches: "
                "write a limit under the window"
            )
        return self

    @property
    def chooses(self) -> bool:
        """Whether it chooses a depth, from what it has seen of the job's own rows."""
        return self.type in ("helios-single", "helios")

    @property
    def tolerated(self) -> float:
        """The share of breaches up to which nothing happens."""
        return self.limit / self.window
