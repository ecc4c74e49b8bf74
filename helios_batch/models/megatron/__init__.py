"""Checkpoints of EE-LLM and EE-Tuning (arXiv 2312.04916, 2402.00518), in Megatron-LM's layout.

One pickled file for each tensor rank and pipeline stage. Layers are numbered from 0 within a
stage, early-exit layers from 1 over all stages. What stands at an exit, in this order: an MLP that
takes the place of the layer's own (`mlp.branch`; the layer's own is then `mlp.trunk`), a decoder
layer (`exit_block`), a norm (`exit_norm`), a head (`exit_output_layer`, counted within the stage).
Each may be missing; without a norm, the head takes the hidden states as they are, and without a
head it is the embedding. With `pre_exit` all this follows the layer before.
"""
