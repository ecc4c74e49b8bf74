"""Labels under policy `ee`: a row leaves at the first exit that is sure of its label."""

from __future__ import annotations

import torch

from helios_batch.engine.branches import BranchAttention
from helios_batch.engine.kv_cache import KVCache
from helios_batch.engine.labeling import Labeler
from helios_batch.engine.ladder import Climb, Ladder, Rung
from helios_batch.engine.memory import StepShape
from helios_batch.engine.scoring import step_tokens, target_scores
from helios_batch.engine.tape import StepTargets, Tape, TapeStep
from helios_batch.engine.verdict import Verdict
from helios_batch.models.folder import ModelFolder
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.spec import Confidence


class EarlyLabeler(Labeler):
    """Scores all of a row's choices at the first exit, and leaves if the label is sure enough.

    A step goes as deep as its slowest row. Nothing of a tape is kept after its last chunk, so no
    state is copied; the chunks before it run through all layers and exits, as its tokens look back
    on them at any depth, and are scored at each exit, as any may turn out to be the row's.

    Args:
        model: the model's folder.
        tokenizer: the same model's tokenizer.
        ladder: its layers and exits.
        threshold: how sure an exit must be of a label.
        cache: scratch for the steps of one call; what it holds is lost.
        shape: limits of one step.
        confidence: how a row's confidence is measured.
    """

    def __init__(
        self,
        model: ModelFolder,
        tokenizer: Tokenizer,
        ladder: Ladder,
        threshold: float,
        cache: KVCache,
        shape: StepShape,
        confidence: Confidence,
    ) -> None:
        super().__init__(model, tokenizer, ladder.top, cache, shape, confidence)
        self._ladder, self._threshold = ladder, threshold
        # by the index of the tape, and by the depth of the exit
        self._scores: dict[tuple[int, int], list[float]] = {}
        self._verdicts: dict[int, Verdict] = {}

    @torch.inference_mode()
    def _score(self, step: TapeStep) -> None:
        """Run a step's chunks up to the exit at which the last of their tapes leaves."""
        config, device = self._ladder.top.config, self._ladder.top.weights.embedding.device
        attention = BranchAttention(config, self._ladder.kinds, self._cache, step, device)
        climb = Climb(self._ladder, *step_tokens(step, device), attention)
        for rung in self._ladder.rungs:
            hidden = climb.reach(rung)
            targets = StepTargets.of(step, without=self._verdicts)
            for tape, choice, value in target_scores(rung.decoder, hidden, targets):
                self._scores_of(tape, rung.depth)[choice] += value
            # a chunk that does not end its tape runs alone
            for chunk in step.chunks:
                if chunk.ends_tape and chunk.tape.index not in self._verdicts:
                    self._judge(chunk.tape, rung)
            if all(chunk.tape.index in self._verdicts for chunk in step.chunks):
                return

    def _judge(self, tape: Tape, rung: Rung) -> None:
        """Let a tape leave at a rung if that is sure of the label, or is the last."""
        temperature = rung.decoder.exit.choice_temperature
        scores = self._scores_of(tape, rung.depth)
        verdict = Verdict.of(scores, temperature, rung.depth, self._confidence)
        if rung is self._ladder.rungs[-1] or verdict.confidence >= self._threshold:
            self._verdicts[tape.index] = verdict

    def _scores_of(self, tape: Tape, depth: int) -> list[float]:
        return self._scores.setdefault((tape.index, depth), [0.0] * len(tape.encoded.choices))

    def _verdict(self, tape: Tape) -> Verdict:
        return self._verdicts[tape.index]
