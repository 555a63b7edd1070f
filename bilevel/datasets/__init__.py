"""Real data that ship with packages, images as patches, and synthetic data whose truth is known."""

from bilevel.datasets.digits import Digits as Digits, load_digits as load_digits, load_mnist as load_mnist
from bilevel.datasets.gene_expression import (
    GeneExpression as GeneExpression,
    load_gene_expression as load_gene_expression,
)
from bilevel.datasets.images import (
    load_photograph as load_photograph,
    read_image as read_image,
    to_gray as to_gray,
)
from bilevel.datasets.patches import Patches as Patches, extract_patches as extract_patches
from bilevel.datasets.synthetic import (
    CorruptedLabels as CorruptedLabels,
    SimplexData as SimplexData,
    SparseCodingData as SparseCodingData,
    SparseRegression as SparseRegression,
    corrupt_labels as corrupt_labels,
    make_simplex as make_simplex,
    make_sparse_coding as make_sparse_coding,
    make_sparse_regression as make_sparse_regression,
)
from bilevel.datasets.tables import (
    Part as Part,
    Table as Table,
    load_breast_cancer as load_breast_cancer,
    load_diabetes as load_diabetes,
)
