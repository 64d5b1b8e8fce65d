"""A program made ready to run: knobs and learned parameters bound, and both held against what it will run on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr, Program
from vortexlab.dsl.parameters import Parameters, check_parameters

if TYPE_CHECKING:
    from vortexlab.evaluator.config import EvaluationConfig
    from vortexlab.evaluator.geometries import Geometry


def bind(program: Program, knobs: Mapping[str, Attr] | None = None, parameters: str | Path | None = None) -> Program:
    """The program with its knobs and, where a file is given, its parameters.

    Raises `VortexError` for knobs that it does not have or that do not fit, for a file that cannot be read, and for
    parameters that no part of it reads.
    """
    bound = program.bind(knobs)
    if parameters is None:
        return bound
    if not bound.params:
        raise VortexError(f"program {program.name} has no parameters; leave out --parameters")
    return bound.bind(parameters=Parameters.open(parameters))


def check_fit(program: Program, geometry: Geometry, layers: int | None = None) -> None:
    """Raises `VortexError` when the bound program or its parameters do not fit a geometry.

    `layers` are those of the model, where they are not the geometry's own.
    """
    check_latent(program, geometry)
    static = geometry.static(layers=layers)
    program.axis_sizes(static)
    check_parameters(program, static)


def check_latent(program: Program, geometry: Geometry) -> None:
    """Raises `VortexError` when the program is one for latent keys (MLA) and the geometry has none."""
    if program.reads_latent and not geometry.latent:
        raise VortexError(
            f"program {program.name} reads ctx.latent, and {geometry.name} has no latent keys; choose a geometry of "
            "latent attention, such as glm-4.7-flash"
        )


def check_evaluation(program: Program, config: EvaluationConfig) -> None:
    """Raises `VortexError` when the bound program or its parameters do not fit what an evaluation runs on.

    Accuracy needs parameters for the model. Measured speed needs the same ones for its geometry, with the model's
    layers.
    """
    from vortexlab.evaluator.geometries import find_geometry

    if not program.params and not program.reads_latent:
        return
    model = find_geometry(config.model)
    check_fit(program, model)
    if config.speed != "measured" or not program.params:
        return
    try:
        check_fit(program, find_geometry(config.geometry), model.layers)
    except VortexError as error:
        raise VortexError(
            f"the parameters fit the model and not the geometry of the speed gate, {config.geometry}: {error}; give "
            f"--geometry {config.model}, or --speed predicted"
        ) from error
