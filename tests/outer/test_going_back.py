"""A training that goes back to an earlier checkpoint."""

import jax
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.scale import CheckpointFolder
from tests.outer.examples import ridge_problem, same, split_of

pytest.importorskip("orbax.checkpoint", reason="the `scale` group is not installed")


def test_what_came_after_the_checkpoint_is_replaced(tmp_path):
    trainer = bl.Trainer(ridge_problem(np.ones(3)), optax.adam(1e-1))
    other = bl.Trainer(trainer.problem, optax.adam(1e-2))
    folder = bl.Checkpoints(tmp_path / "run", keep=5)
    data = split_of()
    straight = trainer.fit(data, 6, every=2, checkpoint=folder)
    # Of step 2 on, with another rate.
    other.fit(data, 3, every=2, checkpoint=folder, resume=2)
    found = CheckpointFolder(folder)
    assert found.steps == [2, 3]
    found.close()
    again = trainer.fit(data, 6, every=2, checkpoint=folder, resume=2)
    assert same(again.state.variables, straight.state.variables)
    assert all(np.array_equal(again.history[name], straight.history[name]) for name in straight.history)
    assert len(jax.tree.leaves(again.state.optimizer)) == len(jax.tree.leaves(straight.state.optimizer))
