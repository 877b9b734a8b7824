"""`pocketfit.explain`: where static int8 loses accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketfit.analysis.quantization import explain as analysis
from pocketfit.analysis.quantization.explain import Ask, Explanation
from pocketfit.api.inputs import Data, Network, as_dataset, as_model, named, split_for
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed

TRAINING_LOOKED_AT = 256  # samples, to see whether those for calibration are like them


def explain(
    model: Network,
    samples: Data,
    *,
    runtime: str = "litert",
    weight_bits: int = 8,
    keep_float: Sequence[str] = (),
    limit: int = 500,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    threads: int = 1,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> Explanation:
    """Which layers cost a plain static int8 file its accuracy, why, and which remedies are worth a try.

    model, samples, preprocess, labels, allow_code  as for `fit`; files are judged on `limit` samples of the validation
                 split ("search")
    runtime      whose files are looked at
    weight_bits  8 or 4, of most layers
    keep_float   dotted names of layers that stay in float from the start
    threads      of the runtime
    Raises UserError for input that does not fit together.
    """
    ask = Ask(runtime, weight_bits, tuple(keep_float), threads=threads)
    watch = watch or Silent()
    data = as_dataset(samples, watch)
    network = named(as_model(model, preprocess, labels, allow_code), data, watch)
    with temporary_folder() as work:
        cache = Path(work)
        return analysis.explain(
            network,
            split_for(network, data, "calibration", ask.calibration, watch, cache),
            split_for(network, data, "search", limit, watch, cache),
            ask,
            out=cache,
            training=split_for(network, data, "train", TRAINING_LOOKED_AT, watch, cache),
            watch=watch,
        )
