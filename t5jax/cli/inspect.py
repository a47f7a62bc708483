"""`t5jax inspect`: describe a checkpoint."""

import dataclasses
import json
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from t5jax.pretrained import describe_checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Describe a checkpoint without loading its weights.

    Attributes:
      source: file, folder or Hugging Face Hub id, in any format that t5jax loads.
      revision: branch, tag or commit on the Hub.
      subfolder: subfolder of the model in a folder or repository.
      json: print JSON.
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    json: FlagCreatePairsOff[bool] = False


def inspect(options: Inspect) -> None:
    """Print a description of a checkpoint.

    Args:
      options: options of the command.
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
        # No separators in sizes and ids, which users copy.
        form = "," if name == "types" else ""
        return [", ".join(f"{key} {item:{form}}" for key, item in value.items())]
    return [f"{value:,}" if isinstance(value, int) else value]
