"""What the table says of a candidate before anything was observed: sizes, by the memory planner."""

from __future__ import annotations

from helios_batch.engine.contender import Contender
from helios_batch.engine.device import Resources
from helios_batch.engine.memory import layer_bytes
from helios_batch.errors import ResourceError
from helios_batch.helios.history import Depth, ModelHistory
from helios_batch.models.exits.file import exit_shape


def sizes(contender: Contender, resources: Resources) -> ModelHistory:
    """Return a candidate's entry of the table."""
    depths = [_depth(contender, layers, resources) for layers in contender.depths]
    return ModelHistory(contender.tokenizer.digest, depths)


def _depth(contender: Contender, layers: int, resources: Resources) -> Depth:
    states = len(contender.depths) > 1
    roomy = contender.plan(layers, resources, 1 << 62, states)
    try:
        batch = contender.plan(layers, resources, resources.memory, states).batch_size
    except ResourceError:
        batch = 0
    config, extra = contender.model.config, exit_shape(contender.exits.get(layers))
    # of a token: two operations for each weight that it meets
    head = config.vocab_size * config.hidden_size
    work = 2 * ((layers + extra.layers) * layer_bytes(config, 1) + head)
    return Depth(layers, float(work), roomy.weights, roomy.kv_per_token, batch)
