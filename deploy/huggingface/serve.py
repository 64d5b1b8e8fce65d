"""``transformers serve`` with a pattern: ``python -m vortexlab.deploy.huggingface.serve PACKAGE [MODEL] [OPTIONS]``.

PACKAGE is an exported folder or the name of an installed package; everything after it goes to ``transformers serve``.
That command takes the names of its own attention functions only and has no hook for others, so in this process its
model manager is replaced by one that attaches the pattern to every model that it loads.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vortexlab.deploy import package
from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl.errors import VortexError

#: Options of the command that would leave the pattern out.
_REFUSED = {
    "--attn-implementation": "the attention is the pattern's",
    "--continuous-batching": "continuous batching runs attention functions and a cache of its own",
    "--compile": "a pattern's steps are not compileable",
}


def find(name: str) -> Pattern:
    """The pattern of an exported folder or of an installed package. Raises `VortexError` where there is none."""
    folder = Path(name)
    if folder.is_dir():
        found = package.read(folder)
        if found.manifest["engine"] != "transformers":
            raise VortexError(f"the package in {folder} is for {found.manifest['engine']}; export it --to transformers")
        sys.path.insert(0, str(found.root))
        name = found.module
    try:
        pattern = getattr(importlib.import_module(name), "PATTERN", None)
    except ImportError as error:
        raise VortexError(f"there is no folder and no module {name!r} ({error}); name an exported package") from None
    if not isinstance(pattern, Pattern):
        raise VortexError(f"{name} is no package for transformers; export one with `vortex export --to transformers`")
    return pattern


def manager(base: Any, pattern: Pattern) -> Any:
    """A model manager whose models run the pattern; an architecture that cannot is refused before weights are read."""

    class Manager(base):
        def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
            from transformers import AutoConfig

            if model_id_and_revision not in self.loaded_models:
                name, _, revision = model_id_and_revision.partition("@")
                trusted = {"trust_remote_code": self.trust_remote_code}
                pattern.check(AutoConfig.from_pretrained(name, revision=revision or "main", **trusted))
            model, processor = super().load_model_and_processor(model_id_and_revision, *args, **kwargs)
            return pattern.attach(model), processor

    return Manager


def serve(arguments: Sequence[str]) -> None:
    """Runs the command until it is interrupted. Raises `VortexError` where package and options do not go together."""
    if not arguments or arguments[0].startswith("-"):
        raise VortexError("say which: python -m vortexlab.deploy.huggingface.serve PACKAGE [MODEL] [OPTIONS]")
    for argument in arguments[1:]:
        if (why := _REFUSED.get(argument.split("=")[0])) is not None:
            raise VortexError(f"leave {argument} out: {why}")
    pattern = find(arguments[0])
    try:
        from transformers.cli import serve as command
        from transformers.cli.serving import model_manager

        module: Any = model_manager
        module.ModelManager = manager(module.ModelManager, pattern)
        app = command.typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name="serve")(command.Serve)
        app(list(arguments[1:]), prog_name=f"serve {arguments[0]}")
    except ImportError as error:
        raise VortexError(f"transformers serve cannot start: {error}") from None


def main() -> None:
    try:
        serve(sys.argv[1:])
    except VortexError as error:
        print(f"vortex: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
