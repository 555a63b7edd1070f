"""Floor 1: meshes of devices, batches, data that are not in memory, checkpoints."""

from bilevel.scale.batches import Batches as Batches
from bilevel.scale.checkpoints import (
    CheckpointError as CheckpointError,
    CheckpointFolder as CheckpointFolder,
    Checkpoints as Checkpoints,
    Saved as Saved,
)
from bilevel.scale.mesh import DeviceMesh as DeviceMesh, sum_over as sum_over
from bilevel.scale.processes import gathered as gathered
from bilevel.scale.rows import Rows as Rows
from bilevel.scale.shared import Shared as Shared
from bilevel.scale.sources import (
    NpyShards as NpyShards,
    is_loader as is_loader,
    is_on_disk as is_on_disk,
    num_samples as num_samples,
    prefetched as prefetched,
    shapes_of as shapes_of,
    take as take,
    whole as whole,
)
