"""Functions of whole trees: arithmetic, reductions, averages, random trees, and state by name.

Names, arguments and meaning are those of `optax.tree`; `adaptax.tree_utils` has the same functions
under the older names `tree_add`, `tree_norm`, ... For all of them a tree is any pytree of arrays or
numbers, and

- None is a leaf that is not there: where the first tree has None, so has the result;
- jax's float0, the gradient of an integer, stays as it is and counts for nothing in a sum;
- trees that don't fit together are a `TreeMismatchError` that lists the paths;
- sums, norms and averages are computed in float32 or wider.
"""

from ._arithmetic import add as add
from ._arithmetic import add_scale as add_scale
from ._arithmetic import batch_shape as batch_shape
from ._arithmetic import clip as clip
from ._arithmetic import conj as conj
from ._arithmetic import div as div
from ._arithmetic import mul as mul
from ._arithmetic import real as real
from ._arithmetic import scale as scale
from ._arithmetic import sub as sub
from ._arithmetic import where as where
from ._making import cast as cast
from ._making import cast_like as cast_like
from ._making import dtype as dtype
from ._making import full_like as full_like
from ._making import ones_like as ones_like
from ._making import random_like as random_like
from ._making import split_key_like as split_key_like
from ._making import unwrap_random_key_data as unwrap_random_key_data
from ._making import zeros_like as zeros_like
from ._moments import bias_correction as bias_correction
from ._moments import update_infinity_moment as update_infinity_moment
from ._moments import update_moment as update_moment
from ._moments import update_moment_per_elem_norm as update_moment_per_elem_norm
from ._params import map_params as map_params
from ._reductions import allclose as allclose
from ._reductions import max as max
from ._reductions import min as min
from ._reductions import norm as norm
from ._reductions import size as size
from ._reductions import sum as sum
from ._reductions import vdot as vdot
from ._search import NamedTupleKey as NamedTupleKey
from ._search import get as get
from ._search import get_all_with_path as get_all_with_path
from ._search import set as set
