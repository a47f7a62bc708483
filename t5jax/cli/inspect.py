"""`t5jax inspect`: a description of a checkpoint."""

import dataclasses
import json
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from t5jax.pretrained import describe_checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a checkpoint is, without reading its weights.

    Attributes:
      source: Folder, file or hub id, which is downloaded, of any format that t5jax loads.
      revision: Branch, tag or commit on the hub.
      subfolder: Folder of the model in a folder or repository of several.
      json: Print JSON instead of aligned lines.
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    json: FlagCreatePairsOff[bool] = False


def inspect(options: Inspect) -> None:
    """Print a description of a checkpoint.

    Raises:
      ValueError: the checkpoint cannot be read.
    """
    facts = describe_checkpoint(
        options.source, revision=options.revision, subfolder=options.subfolder
    )
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        for i, line in enumerate(_lines(name, value)):
            print(f"{name if i == 0 else '':12}  {line}")


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        # Counts are read, sizes and ids are copied.
        form = "," if name == "types" else ""
        return [", ".join(f"{key} {item:{form}}" for key, item in value.items())]
    return [f"{value:,}" if isinstance(value, int) else value]
