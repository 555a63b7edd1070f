"""An array with an entry for each sample, of whatever number, shared out among the devices of a mesh."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel.scale.mesh import DeviceMesh


# Arguments and results of a program are cut into equal parts only. Within one, the compiler takes parts of any length:
# it fills them up by itself, and leaves what it filled in out of every sum and maximum.
class Shared(eqx.Module):
    """An array that is cut along `axis` among all devices of a mesh, in its order; without a mesh, one like any other.

    To and from programs it is filled up with zeros to equal parts; within, `array` has the entries that there are.
    """

    filled: Array
    size: int = eqx.field(static=True)
    axis: int = eqx.field(static=True)
    mesh: DeviceMesh | None

    @classmethod
    def out(cls, array: np.ndarray, mesh: DeviceMesh | None, axis: int = 0) -> "Shared":
        """Share out what every process has whole."""
        size = array.shape[axis]
        if mesh is None:
            return cls(jnp.asarray(array), size, axis, None)
        widths = mesh.widths(array.shape, axis)
        filled = np.pad(array, widths) if np.any(widths) else array
        sharding = mesh.along(axis)
        return cls(jax.make_array_from_callback(filled.shape, sharding, lambda part: filled[part]), size, axis, mesh)

    @property
    def array(self) -> Array:
        """Within a program: its entries, where they are."""
        if self.mesh is None:
            return self.filled
        entries = jax.lax.slice_in_dim(self.filled, 0, self.size, axis=self.axis)
        return jax.lax.with_sharding_constraint(entries, self.mesh.along(self.axis))

    def like(self, array: Array, axis: int | None = None) -> "Shared":
        """Within a program: another array with an entry for each sample, along the same axis or another."""
        axis = self.axis if axis is None else axis
        if self.mesh is None:
            return Shared(array, self.size, axis, None)
        filled = jnp.pad(array, self.mesh.widths(array.shape, axis))
        filled = jax.lax.with_sharding_constraint(filled, self.mesh.along(axis))
        return Shared(filled, self.size, axis, self.mesh)

    def whole(self) -> np.ndarray:
        """All of its entries, in every process."""
        far = self.mesh is not None and not self.filled.is_fully_addressable
        filled = self.mesh.fetch(self.filled) if self.mesh is not None and far else self.filled
        return np.array(np.moveaxis(np.moveaxis(np.asarray(filled), self.axis, 0)[: self.size], 0, self.axis))
