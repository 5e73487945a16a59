"""The command `pivots inspect`: looks into the finished folders of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from launch.config import parse_config
from mining.common.errors import SettingsError

USAGE = """\
usage: pivots inspect ITEM [--config FILE] [--out FOLDER] [--contexts N] [--json]
       pivots inspect WORD WORD ...
       pivots inspect DOCUMENT-ID ...

What a finished run says of an item (its counts, neighbours and contexts, and why it is a pivot or
not), of a pair of words (counts, NPMI, pivots with their lifts), or of a document (its pivots, in
the text too, and why it scores as it does). A name that is both an item and an id means the item.

  --config FILE   the run's settings, such as OUT/config.yaml
  --out FOLDER    the run's folder; --inputs names stages that lie elsewhere
  --contexts N    documents to quote for each language (default: 2)
  --json          everything, as JSON
"""


def inspect(arguments: Sequence[str]) -> int:
    """Run `pivots inspect` on its command line; returns the exit code."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0 if arguments else 2
    n_names = next((k for k, a in enumerate(arguments) if a.startswith("--")), len(arguments))
    names, options = list(arguments[:n_names]), list(arguments[n_names:])
    if len(names) not in (1, 2):
        raise SettingsError(
            f"inspect: found {len(names)} names before the options, expected an item, a document's "
            "id, or two words (in quotes where they hold spaces)"
        )
    as_json = "--json" in options
    contexts, options = _take_contexts([option for option in options if option != "--json"])
    config = parse_config(options, "inspect")

    from launch.pipeline import Plan
    from mining.inspect import Folders, inspect_one, inspect_pair
    from mining.inspect_text import make_console, show

    plan = Plan(config)
    stages = ("tokenizer", "tokenize", "count", "pivots", "words", "score")
    folders = Folders(**{stage: plan.folder(stage) for stage in stages})
    if len(names) == 2:
        facts = inspect_pair(folders, *names)
    else:
        facts = inspect_one(folders, names[0], contexts)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        show(facts, make_console())
    return 0


def _take_contexts(options: list[str]) -> tuple[int, list[str]]:
    """The value of --contexts, and the options without it."""
    joined = [part for option in options for part in (
        option.split("=", 1) if option.startswith("--contexts=") else [option]
    )]  # fmt: skip
    if "--contexts" not in joined:
        return 2, options
    place = joined.index("--contexts")
    value = "".join(joined[place + 1 : place + 2])
    if not value.isdigit():
        raise SettingsError(f"inspect: --contexts: found '{value}', expected a number")
    return int(value), joined[:place] + joined[place + 2 :]
