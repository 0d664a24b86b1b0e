"""`LearnedConfig`: how rounding is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detent._validation import Options

__all__ = ["LearnedConfig"]

Rate = Annotated[float, Field(ge=0, le=1)]


class LearnedConfig(Options):
    """Options of learned rounding; keyword only, immutable.

    Attributes:
        samples: calibration samples; the last eighth of them judges.
        start: rounding in closed form comes first (`"gptq"`), or rounding is learned from the plan as it is
            (`"nearest"`).
        granularity: what is learned together: `"blocks"` of the network, single `"layers"`, or all the `"network"`,
            which is then held to the float one where blocks end.
        method: `"straight_through"` rounds weights that move freely; `"soft"` moves each weight between two
            neighbouring codes, its own and the one on its other side, and takes thousands of steps to get there.
        steps: for each block; more are slower and better. 0 leaves the blocks as they are.
        batch: samples in a step, no more than there are to learn on.
        rate: learning rate of the rounding: of straight-through weights in steps of their grid, falling to a twentieth;
            of soft ones as for AdaRound. None takes 0.005 and 0.05.
        bias_rate: of biases, relative to the magnitude of their layers' outputs; 0 leaves them.
        step_rate: of activations' steps, relative; power-of-two steps stay. 0 leaves them.
        kernel_step_rate: of kernels' steps, in the same way.
        activations: what a block learns with: the rounding of half of the activations' entries dropped at random
            (`"drop"`), all of them rounded by a share that grows to the whole (`"gradual"`), or all `"rounded"`.
        regularization: how strongly soft weights are drawn to codes, against a loss that begins at 1.
        warm_up: part of the steps before they are.
        attention: weight samples by what their errors mean at the outputs (`"samples"`), or all alike (`"none"`).
        network_steps: for all the network at once behind the blocks, held to the float one at its outputs; kernels
            straight through, activations rounded. 0 leaves it out.
        network_rate: learning rate of the rounding there.
        loss: what counts at the outputs: their squared change (`"outputs"`), or the divergence of a classifier's
            prediction (`"fisher"`: outputs are logits along their last axis).
        patience: judgements without gain after which a block is finished; there are ten in a block.
        memory_mb: for values kept between blocks; beyond, they go to files.
        seed: of the order of samples and of what is dropped.

    Raises:
        ConfigError: an unknown key (with a suggestion) or a value out of range.
    """

    samples: Annotated[int, Field(ge=8)] = 1024
    start: Literal["gptq", "nearest"] = "gptq"
    granularity: Literal["blocks", "layers", "network"] = "blocks"
    method: Literal["straight_through", "soft"] = "straight_through"
    steps: Annotated[int, Field(ge=0)] = 150
    batch: Annotated[int, Field(ge=1)] = 32
    rate: Annotated[float, Field(gt=0, le=1)] | None = None
    bias_rate: Rate = 0.001
    step_rate: Rate = 0.005
    kernel_step_rate: Rate = 0.0
    activations: Literal["drop", "gradual", "rounded"] = "drop"
    regularization: Annotated[float, Field(ge=0)] = 100.0
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.2
    attention: Literal["none", "samples"] = "none"
    network_steps: Annotated[int, Field(ge=0)] = 0
    network_rate: Annotated[float, Field(gt=0, le=1)] = 0.001
    loss: Literal["outputs", "fisher"] = "outputs"
    patience: Annotated[int, Field(ge=1)] = 4
    memory_mb: Annotated[int, Field(ge=0)] = 2048
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def rounding_rate(self) -> float:
        """`rate`, or what stands for None."""
        return self.rate or (0.05 if self.method == "soft" else 0.005)

    def for_network(self) -> LearnedConfig:
        """The same for all the network at once behind the blocks."""
        return self.model_copy(
            update={
                "steps": self.network_steps,
                "method": "straight_through",
                "rate": self.network_rate,
                "activations": "rounded",
            }
        )
