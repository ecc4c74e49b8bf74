"""An engine that goes where the controller says: other depths, and other models."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from helios_batch.adaptive.profile import Generate, Label, Task, profile
from helios_batch.engine.engine import Engine
from helios_batch.engine.running import Running
from helios_batch.engine.sequence import Sequence as RunningSequence
from helios_batch.engine.sequence import Written
from helios_batch.engine.sole import SoleEngine
from helios_batch.errors import ModelError, ResourceError
from helios_batch.helios.agreement import row_confidence
from helios_batch.helios.controller import Controller
from helios_batch.helios.select import Ahead, Place
from helios_batch.records import EngineFacts, EngineStats, Generation, Progress, Prompt
from helios_batch.spec import SamplingSpec
from helios_batch.spec_policy import PolicySpec

Watch = Callable[[Progress], None] | None
_BATCHES = 4


@dataclass
class _Call:
    """One call of the engine: its rows, by their places, each of `most` tokens at the most."""

    prompts: Sequence[Prompt]
    on_step: Watch
    most: int
    results: dict[int, Generation] = field(default_factory=dict)
    outputs: int = 0

    def waiting(self) -> list[int]:
        """Return the places of rows without a result."""
        return [place for place in range(len(self.prompts)) if place not in self.results]

    def step(self, done: int, new: int, batch: int) -> None:
        if self.on_step is not None:
            self.on_step(Progress(len(self.results) + done, new, batch))


class AdaptiveEngine:
    """Runs rows where a controller says, and tells it what their tokens were like.

    Before the first rows and whenever a profile is due, some random rows run on each candidate;
    what the chosen one has said of them is kept. A profile is taken between rows: every
    `policy.reprofile` of them, or every four batches where these are more.

    Args:
        sole: the engine.
        controller: whose table has an entry for each of the engine's contenders.
        policy: of the job.
        rows: of the job, for what is still to come.
        save: called when the table has changed.
    """

    def __init__(
        self,
        sole: SoleEngine,
        controller: Controller,
        policy: PolicySpec,
        rows: int,
        save: Callable[[], None],
    ) -> None:
        self._sole, self.controller, self._policy = sole, controller, policy
        self._contenders, self._rows, self._save = sole.contenders, rows, save
        self._served, self._outputs, self._moves = 0, 0, 0
        self.stats = EngineStats()
        if not controller.profile_due:
            self._go_to(controller.choose(Ahead(rows)))

    @property
    def facts(self) -> EngineFacts:
        """What the engine is now; before anything has run, the first candidate at its deepest."""
        if not self._sole.is_loaded:
            self._go_to(self.controller.now or self._deepest(next(iter(self._contenders))))
        return self._sole.current.facts

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSpec, on_step: Watch = None
    ) -> list[Generation]:
        """Return a generation for each prompt; see `Engine.generate`."""
        call = _Call(prompts, on_step, sampling.max_tokens)
        task = Generate(sampling)
        return self._run(call, task, lambda places: self._generate(call, places, sampling))

    def label(
        self, prompts: Sequence[Prompt], choices: Sequence[str], on_step: Watch = None
    ) -> list[Generation]:
        """Return a labelled generation for each prompt; see `Engine.label`."""
        call = _Call(prompts, on_step, 1)
        return self._run(call, Label(tuple(choices)), lambda p: self._label(call, p, choices))

    def _run(self, call: _Call, task: Task, run: Callable[[list[int]], None]) -> list[Generation]:
        self.stats = EngineStats()
        self._moves = len(self.controller.moves)
        if self._sole.is_loaded:
            self._sole.current.stats = EngineStats()  # a call that was broken off left its own
        try:
            self._run_all(call, task, run)
        except ModelError:
            self._sole.drop()
            raise
        self._served += len(call.prompts)
        self._outputs += call.outputs
        made = self.controller.moves[self._moves :]
        self.stats.moves.update(move.kind for move in made)
        self.stats.expected_stall = max([0.0, *(move.seconds for move in made)])
        self._save()
        return [call.results[place] for place in range(len(call.prompts))]

    def _run_all(self, call: _Call, task: Task, run: Callable[[list[int]], None]) -> None:
        while waiting := call.waiting():
            if self.controller.profile_due:
                self._profile(call, waiting, task)
                continue
            self._catch_up()
            limit = self.facts.batch_limit
            run(waiting[: max(self._policy.reprofile, _BATCHES * limit)])

    def _catch_up(self) -> None:
        """Go where the controller says, if a call was broken off or rows under way kept it."""
        place, sole = self.controller.now, self._sole
        assert place is not None, "rows run after a choice"
        layers = self._contenders[place.model].depths[place.depth]
        if not sole.is_loaded or (sole.model, sole.current.depth) != (place.model, layers):
            self._switch(place)

    def _profile(self, call: _Call, waiting: list[int], task: Task) -> None:
        """Run some random rows on all candidates, choose, and keep what the chosen one said."""
        started = time.perf_counter()
        draw = random.Random(f"profile/{call.prompts[waiting[0]].row}")
        places = sorted(draw.sample(waiting, min(self._policy.requests, len(waiting))))
        prompts = [call.prompts[place] for place in places]
        answers = {name: self._try(name, prompts, task) for name in self._contenders}
        chosen = self.controller.choose(self._ahead(call))
        for place, answer in zip(places, answers[chosen.model], strict=True):
            self._keep(call, place, answer)
        self._go_to(chosen)
        self._save()
        self.stats.profile_seconds += time.perf_counter() - started
        call.step(0, 0, len(prompts))

    def _try(self, name: str, prompts: Sequence[Prompt], task: Task) -> list[Generation]:
        """Profile a candidate; return what it said."""
        contender, history = self._contenders[name], self.controller.history.models[name]
        self._go_to(self._deepest(name))
        self._remember()
        engine = self._sole.current
        answers = profile(engine, contender, history, prompts, task, self._policy.threshold)
        self.stats.largest_batch = max(self.stats.largest_batch, engine.stats.largest_batch)
        engine.stats = EngineStats()
        return answers

    def _generate(self, call: _Call, places: list[int], sampling: SamplingSpec) -> None:
        """Run rows to their ends, on as many models as it takes."""
        before: dict[int, Written] = {}
        while places:
            # nothing here holds the engine while another takes its place
            after, before = self._generate_here(call, places, sampling, before)
            places = [place for place in places if place in before]
            if after is not None:
                self._switch(after)

    def _generate_here(
        self,
        call: _Call,
        places: list[int],
        sampling: SamplingSpec,
        before: Mapping[int, Written],
    ) -> tuple[Place | None, dict[int, Written]]:
        """Run rows on one model; return where others go on, and what these have come to."""
        engine = self._sole.current
        prompts = [call.prompts[place] for place in places]
        written = {i: before[place] for i, place in enumerate(places) if place in before}
        decided, running = engine.start(prompts, sampling, written)
        for index, generation in decided.items():
            self._keep(call, places[index], generation)
        if running is None:
            return None, {}
        try:
            after = self._watch(call, running)
        finally:
            running.close()
        self._took(engine)
        for sequence in running.finished:
            self._keep(call, places[sequence.index], engine.generation(sequence))
        return after, {places[s.index]: self._leave(engine, s, after) for s in running.unfinished}

    def _watch(self, call: _Call, running: Running) -> Place | None:
        """Step until all is done, or another model is to go on; then return its place."""
        engine, controller, told, is_kept = self._sole.current, self.controller, 0, False
        history = controller.history.models[self._sole.model]
        layers = self._contenders[self._sole.model].depths
        exits = self._contenders[self._sole.model].exits

        def ahead() -> Ahead:
            return self._ahead(call, running.stored)

        while True:
            spent = _spent(engine.stats)
            new = running.step()
            if new is None:
                return None
            depth = layers.index(engine.depth)
            history.depths[depth].served.add(_spent(engine.stats) - spent, len(new))
            for sequence in running.finished[told:]:
                controller.finished(_mean(sequence.confidences))
            told = len(running.finished)
            call.outputs += len(new)
            call.step(told, len(new), max(len(new), running.batch))
            if running.is_moving or is_kept:
                continue
            after = controller.saw((token.confidence for token in new), ahead)
            if after is None:
                continue
            if after.model != self._sole.model:
                return after
            self._remember()
            depth_after = layers[after.depth]
            try:
                running.move_to(depth_after, exits.get(depth_after))
            except ResourceError:  # a long row needs the room: the next rows run there
                is_kept = True

    def _label(self, call: _Call, places: list[int], choices: Sequence[str]) -> None:
        """Label rows, a window of them at a time: so often the controller can react."""
        window = self._policy.window
        for begin in range(0, len(places), window):
            found = self._label_here(call, places[begin : begin + window], choices)
            sure = [row_confidence(row) for row in found if row.error is None]
            after = self.controller.saw(sure, lambda: self._ahead(call))
            if after is not None:
                self._switch(after)

    def _label_here(
        self, call: _Call, places: list[int], choices: Sequence[str]
    ) -> list[Generation]:
        """Label rows where the engine is."""
        engine = self._sole.current
        prompts = [call.prompts[place] for place in places]
        depth = self._contenders[self._sole.model].depths.index(engine.depth)
        done = len(call.results)

        def watch(progress: Progress) -> None:
            if call.on_step is not None:
                call.on_step(replace(progress, rows_done=done + progress.rows_done))

        found = engine.label(prompts, choices, watch)
        depths = self.controller.history.models[self._sole.model].depths
        depths[depth].served.add(_spent(engine.stats), len(found))
        self._took(engine)
        for place, generation in zip(places, found, strict=True):
            self._keep(call, place, generation)
            self.controller.finished(row_confidence(generation))
        call.outputs += len(found)
        return found

    def _keep(self, call: _Call, place: int, generation: Generation) -> None:
        """Take a row's result, with how many of its tokens were not sure."""
        if generation.exit is not None:
            threshold = self._policy.threshold
            breaches = sum(c < threshold for c in generation.exit.token_confidences)
            generation = replace(generation, exit=replace(generation.exit, breaches=breaches))
        call.results[place] = generation

    def _leave(self, engine: Engine, sequence: RunningSequence, after: Place | None) -> Written:
        """Return what a row has come to that another model goes on with."""
        assert after is not None, "only a switch leaves rows unfinished"
        written = engine.written(sequence)
        if not sequence.tokens:
            return written
        layers = self._contenders[after.model].depths[after.depth]
        told = f"{engine.model.name} at {engine.depth} to {after.model} at {layers} layers after "
        note = f"{told}{len(written.tokens)} tokens"
        return replace(written, reactions=(*written.reactions, note))

    def _ahead(self, call: _Call, stored: int = 0) -> Ahead:
        """Estimate what is to come of the job: by the rows that are done, or one output a row."""
        done = self._served + len(call.results)
        rows = max(len(call.prompts) - len(call.results), self._rows - done)
        outputs = self._outputs + call.outputs
        return Ahead(int(rows * min(max(1.0, outputs / max(1, done)), call.most)), stored)

    def _switch(self, place: Place) -> None:
        """Go to another place between two runs, on the clock."""
        started = time.perf_counter()
        self._go_to(place)
        seconds = time.perf_counter() - started
        self.stats.load_seconds += seconds
        self.stats.longest_stall = max(self.stats.longest_stall, seconds)

    def _deepest(self, name: str) -> Place:
        depths = self.controller.history.models[name].depths
        return Place(name, max(place for place, depth in enumerate(depths) if depth.batch))

    def _go_to(self, place: Place) -> None:
        """Load a place; the table learns how fast weights are read."""
        is_other = not self._sole.is_loaded or self._sole.model != place.model
        started = time.perf_counter()
        self._sole.at(place.model, self._contenders[place.model].depths[place.depth])
        if is_other:
            history = self.controller.history.models[place.model]
            history.read_seconds += time.perf_counter() - started
            history.bytes_read += history.depths[place.depth].weights

    def _remember(self) -> None:
        """Note what takes part."""
        facts = self._sole.current.facts
        if facts not in self.stats.engines:
            self.stats.engines.append(facts)

    def _took(self, engine: Engine) -> None:
        self.stats += engine.stats
        engine.stats = EngineStats()
        self._remember()


def _spent(stats: EngineStats) -> float:
    return stats.prefill_seconds + stats.decode_seconds


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
