# SPDX-License-Identifier: Apache-2.0
"""Search for models that can be made faster, by the names of their classes, in an object that holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from torch import nn

from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import is_swapped
from aapt_fast.models.files.recognise import recognise

PACKAGE = __package__.partition(".")[0]

# Class, by its name or its module and name -> (module, function) of this room. Modules are imported when such an object
# is found, so that the others do not need diffusers.
KNOWN = {
    "AutoencoderKLWan": ("diffusers", "vae_sites"),
    "WanTransformer3DModel": ("diffusers_attention", "transformer_sites"),
    "WanVAE_": ("vae_layers", "layer_sites"),
    "comfy.ldm.wan.vae.WanVAE": ("vae_layers", "layer_sites"),  # the name alone is also that of a class of ours
    "comfy.ldm.wan.vae2_2.WanVAE": ("vae_layers", "layer_sites"),
    "VAEDecoderWrapper": ("vae_layers", "layer_sites"),  # of Self-Forcing's demo: its caller keeps the cache
    "CausalWanModel": ("wan", "causal_model_sites"),
    "CausalInferencePipeline": ("wan", "pipeline_sites"),
}


def find_sites(obj: Any) -> list[Site]:
    """All places in `obj` where a method can be replaced.

    Raises TypeError if it holds no object of a known class, as a list and models of this package do not.
    """
    models = list(_known_models(obj, ""))
    require_known(obj, bool(models))
    return [site for where, model, sites_of in models for site in sites_of(model, where)]


def require_known(obj: Any, known: bool) -> None:
    """Raise TypeError, saying what `obj` is, unless it is `known` to hold something that can be patched."""
    if not known:
        got = type(obj).__name__
        if isinstance(obj, str | os.PathLike):
            raise TypeError(
                f"obj: expected a model in memory, got the path {obj}: {recognise(obj)}; load it, then patch"
            )
        if isinstance(obj, list | tuple | set | dict):
            raise TypeError(f"obj: expected one object, got a {got}: give what is in it one by one")
        if type(obj).__module__.startswith(f"{PACKAGE}."):
            got += f", which is {PACKAGE}'s own and fast already: there is nothing to replace"
        raise TypeError(f"obj: expected an object that is or holds one of {', '.join(KNOWN)}, got {got}")


def holds_known(obj: Any) -> bool:
    """True if `obj` is or holds an object of a known class, patched or not."""
    return next(_known_models(obj, ""), None) is not None


def swapped_in(obj: Any) -> list[Any]:
    """Objects in `obj` that are patched now."""
    return [module for _, model in _modules_in(obj, "") for module in model.modules() if is_swapped(module)]


def _known_models(obj: Any, where: str) -> Iterator[tuple[str, nn.Module, Callable[[Any, str], Iterator[Site]]]]:
    for place, root in _modules_in(obj, where):
        for place_in, module in root.named_modules(prefix=place):
            known = next((name for name in _names(type(module)) if name in KNOWN), None)
            if known is not None:
                file, function = KNOWN[known]
                yield place_in, module, getattr(import_module(f"{__package__}.{file}"), function)


def _names(kind: type) -> Iterator[str]:
    """Names of a class and its bases, each alone and with its module."""
    for base in kind.__mro__:
        yield from (base.__name__, f"{base.__module__}.{base.__qualname__}")


def _modules_in(obj: Any, where: str) -> Iterator[tuple[str, nn.Module]]:
    """`obj` itself if it is a module, else its components (of a pipeline) or attributes, or their `model`."""
    if isinstance(obj, nn.Module):
        yield where, obj
        return
    components = getattr(obj, "components", None)
    held = components if isinstance(components, dict) else getattr(obj, "__dict__", {})
    seen: set[int] = set()
    for name, value in held.items():
        model = value if isinstance(value, nn.Module) else getattr(value, "model", None)
        if isinstance(model, nn.Module) and id(model) not in seen:
            seen.add(id(model))
            yield (name if model is value else f"{name}.model"), model
