"""The list of optimizers. Documentation, benchmarks and tests read it; nothing else lists them."""

from collections.abc import Callable
from dataclasses import dataclass

from ._core._value import GradientTransformation
from .optimizers._adafactor import adafactor, scale_by_factored_rms
from .optimizers._adagrad import adagrad, scale_by_rss
from .optimizers._adam import adam, adamw, nadam, nadamw, scale_by_adam
from .optimizers._adamax import adamax, adamaxw, scale_by_adamax
from .optimizers._amsgrad import amsgrad, scale_by_amsgrad
from .optimizers._lamb import lamb
from .optimizers._lion import lion, scale_by_lion
from .optimizers._muon import muon, scale_by_muon
from .optimizers._prodigy import prodigy
from .optimizers._rms import rmsprop, scale_by_rms
from .optimizers._sgd import sgd


@dataclass(frozen=True)
class Entry:
    """What is known about an optimizer beside its code.

    Attributes:
        factory: The function that makes it.
        paper: Authors, year and where to find it.
        bytes_per_parameter: State of a large float32 matrix with default arguments.
        transform: The transformation that gives its direction, if it is one of its own.
        needs: What `update` needs beside the gradients: "params".
        tags: "elementwise" (each entry by itself), "layerwise" (norms of leaves), "factored",
            "matrix", "global" (numbers from the whole tree); "decay" (weight decay), "sign"
            (the size of gradients does not matter), "tuning-free".
    """

    factory: Callable[..., GradientTransformation]
    paper: str
    bytes_per_parameter: float | int
    transform: Callable[..., GradientTransformation] | None = None
    needs: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset({"elementwise"})

    @property
    def name(self) -> str:
        """The factory's name."""
        return self.factory.__name__


_PARAMS = frozenset({"params"})
_ADAM = "Kingma & Ba, 2015, arXiv:1412.6980"
_ADAMW = "Loshchilov & Hutter, 2019, arXiv:1711.05101"
_DOZAT = "Dozat, 2016, openreview:OM0jvwB8jIp57ZJjtNEZ"
_DECAYING = frozenset({"elementwise", "decay"})

CATALOG = (
    Entry(sgd, "Robbins & Monro, 1951", 0),
    Entry(rmsprop, "Tieleman & Hinton, 2012, lecture 6.5", 4, scale_by_rms),
    Entry(adam, _ADAM, 8, scale_by_adam),
    Entry(adamw, _ADAMW, 8, scale_by_adam, _PARAMS, _DECAYING),
    Entry(nadam, _DOZAT, 8, scale_by_adam),
    Entry(nadamw, _DOZAT, 8, scale_by_adam, _PARAMS, _DECAYING),
    Entry(amsgrad, "Reddi et al., 2018, arXiv:1904.09237", 12, scale_by_amsgrad),
    Entry(adamax, _ADAM, 8, scale_by_adamax),
    Entry(adamaxw, _ADAM, 8, scale_by_adamax, _PARAMS, _DECAYING),
    Entry(adagrad, "Duchi et al., 2011", 4, scale_by_rss),
    Entry(
        lion,
        "Chen et al., 2023, arXiv:2302.06675",
        4,
        scale_by_lion,
        _PARAMS,
        frozenset({"elementwise", "decay", "sign"}),
    ),
    Entry(
        lamb,
        "You et al., 2020, arXiv:1904.00962",
        8,
        None,
        _PARAMS,
        frozenset({"layerwise", "decay"}),
    ),
    Entry(
        adafactor,
        "Shazeer & Stern, 2018, arXiv:1804.04235",
        0.01,
        scale_by_factored_rms,
        _PARAMS,
        frozenset({"factored", "layerwise", "decay"}),
    ),
    Entry(
        prodigy,
        "Mishchenko & Defazio, 2023, arXiv:2306.06101",
        16,
        None,
        _PARAMS,
        frozenset({"global", "decay", "tuning-free"}),
    ),
    Entry(muon, "Jordan et al., 2024", 4, scale_by_muon, _PARAMS, frozenset({"matrix", "decay"})),
)
