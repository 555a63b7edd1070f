"""A mesh of devices, over which samples and, where they are many, atoms are sharded."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from bilevel.core import tree
from bilevel.scale.batches import Batches

T = TypeVar("T")

#: The axis over which samples are sharded, and the one over which rows of the variables may be, too.
DATA, ATOMS = "data", "atoms"


class DeviceMesh(eqx.Module):
    """A `jax.sharding.Mesh` with an axis `"data"` and, perhaps, an axis `"atoms"`.

    Samples are sharded over all devices. Variables are the same on each; with an axis `"atoms"`, matrices whose rows it
    divides, a dictionary and what the optimizer remembers of it, are stored in rows, gathered once a step where
    they are used. So they take their share of a device's memory, but no part of the work is done twice.
    """

    mesh: Mesh = eqx.field(static=True)

    @classmethod
    def of(cls, mesh: "Mesh | DeviceMesh | int | None") -> "DeviceMesh | None":
        """That of a mesh, or of so many devices; None is none."""
        if mesh is None or isinstance(mesh, DeviceMesh):
            return mesh
        if isinstance(mesh, Mesh) or not isinstance(mesh, int) or isinstance(mesh, bool):
            return cls(cast(Mesh, mesh))
        devices = jax.devices()
        if not 1 <= mesh <= len(devices):
            raise ValueError(f"`mesh` asks for {mesh} devices; there are {len(devices)}.")
        return cls(Mesh(np.asarray(devices[:mesh]), (DATA,)))

    def __init__(self, mesh: Mesh):
        if not isinstance(mesh, Mesh):
            raise ValueError(
                '`mesh` must be a jax.sharding.Mesh, such as jax.make_mesh((4,), ("data",)), or a number of devices, '
                f"got {mesh!r}."
            )
        if not {DATA} <= set(mesh.axis_names) <= {DATA, ATOMS}:
            raise ValueError(f'`mesh` must have the axis "data" and at most one other, "atoms", got {mesh.axis_names}.')
        # How the compiler is to treat the axes is ours to say.
        self.mesh = Mesh(mesh.devices, mesh.axis_names)

    @property
    def size(self) -> int:
        """How many devices there are."""
        return self.mesh.size

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of all axes."""
        return self.mesh.axis_names

    @property
    def everywhere(self) -> PartitionSpec:
        """The same on each device."""
        return PartitionSpec()

    @property
    def over_samples(self) -> PartitionSpec:
        """Cut along the first axis among all devices."""
        return PartitionSpec(self.axes)

    def along(self, axis: int) -> NamedSharding:
        """Cut along `axis` among all devices."""
        return self.sharding(PartitionSpec(*axis * (None,), self.axes))

    def widths(self, shape: tuple[int, ...], axis: int) -> list[tuple[int, int]]:
        """How much must be added at the end of each axis for equal parts along `axis`, in the form that `pad` takes."""
        return [(0, -length % self.size if i == axis else 0) for i, length in enumerate(shape)]

    def by_device(self, function: Callable[..., T], in_specs: Any, out_specs: Any) -> Callable[..., T]:
        """`function`, computed by each device for its parts of the arguments."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def index(self) -> Int[Array, ""]:
        """The number of the device on which this is computed, in a function that is mapped over shards."""
        return jax.lax.axis_index(self.axes)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """`spec` on these devices."""
        return NamedSharding(self.mesh, spec)

    def place(self, variables: T) -> T:
        """Variables and what belongs to them, on the devices, as they are stored."""
        return jax.tree.map(lambda x: self._put(x, self._stored(x)) if eqx.is_array(x) else x, variables)

    def keep(self, variables: T) -> T:
        """Within a program: `variables`, where `place` puts them."""
        constrain = lambda x: jax.lax.with_sharding_constraint(x, self._stored(x))
        return jax.tree.map(lambda x: constrain(x) if eqx.is_array(x) else x, variables)

    def fetch(self, variables: T) -> T:
        """What `place` had put there, whole, in this process."""
        arrays, rest = eqx.partition(variables, eqx.is_array)
        whole = jax.jit(_identity, out_shardings=self.sharding(self.everywhere))(arrays)
        return eqx.combine(jax.tree.map(lambda x: tree.restored(tree.stored(x), x), whole), rest)

    def parts(self, slots: int) -> dict[Any, slice]:
        """Which of so many slots lie on which device of this process, in their order."""
        found: Any = self.sharding(self.over_samples).addressable_devices_indices_map((slots,))
        return dict(sorted(((d, index[0]) for d, index in found.items()), key=lambda part: part[1].start or 0))

    @property
    def places(self) -> list[int]:
        """Which of the devices are of this process."""
        return [part.start or 0 for part in self.parts(self.size).values()]

    def owned(self, batches: Batches) -> list[int]:
        """The shards of batches that lie on devices of this process."""
        return batches.owned(self.size, self.places)

    def assemble(self, pieces: list[PyTree], slots: int) -> PyTree:
        """Arrays over all devices, of one piece for each of `parts`."""
        devices, sharding = self.parts(slots), self.sharding(self.over_samples)

        def of_leaves(*leaves: np.ndarray) -> Array:
            arrays = [jax.device_put(x, device) for x, device in zip(leaves, devices, strict=True)]
            return jax.make_array_from_single_device_arrays((slots, *leaves[0].shape[1:]), sharding, arrays)

        return jax.tree.map(of_leaves, *pieces)

    def _stored(self, x: Any) -> NamedSharding:
        divides = ATOMS in self.axes and x.ndim >= 2 and x.shape[0] % self.mesh.shape[ATOMS] == 0
        return self.sharding(PartitionSpec(ATOMS) if divides else self.everywhere)

    def _put(self, x: Any, sharding: NamedSharding) -> Array:
        # Every process holds the whole, and puts down its own part.
        data = tree.stored(x)
        if tree.is_key(x):
            sharding = self.sharding(self.everywhere)
        placed = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
        return tree.restored(placed, x)


def _identity(x: T) -> T:
    return x


def sum_over(axes: tuple[str, ...], values: T) -> T:
    """The sum over the devices of a mesh, in one reduction for each dtype, whatever `values` consists of."""
    leaves, structure = jax.tree.flatten(values)
    sums: list[Any] = [None] * len(leaves)
    for dtype in dict.fromkeys(x.dtype for x in leaves):
        same = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        total = jax.lax.psum(jnp.concatenate([jnp.ravel(leaves[i]) for i in same]), axes)
        parts = jnp.split(total, np.cumsum([leaves[i].size for i in same])[:-1])
        for i, part in zip(same, parts, strict=True):
            sums[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, sums)
