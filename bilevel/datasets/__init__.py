"""Real data that ship with packages."""

from bilevel.datasets.digits import Digits as Digits, load_digits as load_digits
