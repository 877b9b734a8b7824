"""pocketfit makes a trained neural network fit a device, and proves that it fits."""

__version__ = "0.1.0"

_LAZY = {
    "fit": "pocketfit.api.fit",
    "apply": "pocketfit.api.apply",
    "measure": "pocketfit.api.measure",
    "compare": "pocketfit.api.compare",
    "inspect": "pocketfit.api.inspect",
    "explain": "pocketfit.api.explain",
    "sensitivity": "pocketfit.api.sensitivity",
    "costs": "pocketfit.api.costs",
    "export": "pocketfit.api.export",
    "Budget": "pocketfit.core.budget",
    "Plan": "pocketfit.core.plan.plan",
    "ExportSettings": "pocketfit.core.plan.export",
    "Prune": "pocketfit.core.plan.prune",
    "Sparsify": "pocketfit.core.plan.prune",
    "Train": "pocketfit.core.plan.train",
    "Recalibrate": "pocketfit.core.plan.train",
    "Resolution": "pocketfit.core.plan.rewrite",
    "Fold": "pocketfit.core.plan.rewrite",
    "Piecewise": "pocketfit.core.plan.rewrite",
    "Equalize": "pocketfit.core.plan.quantize",
    "CorrectBias": "pocketfit.core.plan.quantize",
    "Round": "pocketfit.core.plan.quantize",
    "QuantTrain": "pocketfit.core.plan.quantize",
    "Preprocess": "pocketfit.core.preprocess",
    "Result": "pocketfit.search.decide.result",
    "from_arrays": "pocketfit.sources.data.dataset",
    "open_data": "pocketfit.sources.data.dataset",
    "open_model": "pocketfit.sources.models.open_model",
    "model_from_module": "pocketfit.sources.models.open_model",
    "save_model": "pocketfit.sources.models.model_folder",
    "load_model": "pocketfit.sources.models.model_folder",
    "PocketfitError": "pocketfit.core.errors",
    "UserError": "pocketfit.core.errors",
}
__all__ = ["__version__", *_LAZY]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> object:
    """The public names load on first use, so that `import pocketfit` stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module 'pocketfit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
