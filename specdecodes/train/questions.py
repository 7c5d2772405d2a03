"""The prompts that a training held out, as a question file: what to measure its models on."""

from __future__ import annotations

from pathlib import Path

from specdecodes.benchmark.journal import replace, to_line
from specdecodes.train.data import load_documents, read_source
from specdecodes.train.recipe import Recipe


def write_questions(recipe: Recipe, output: Path, data: Path | None, source: str | None, count: int | None) -> int:
    """Write the held-out chats' first messages as ``{question_id, category, turns}``, one a line.

    Args:
        recipe: whose seeded split counts. output: the file, for ``run_mtbench --questions``.
        data: folder with the recipe's files; None: their public ids.
        source: only the prompts of this data source. count: the first so many (None: all).

    Returns:
        The number of questions written.

    Raises:
        ValueError, FileNotFoundError: as :func:`specdecodes.train.data.load_documents`; a source that the recipe does
            not name; a recipe that holds no prompt out.
    """
    names = [each.name for each in recipe.data]
    if source is not None and source not in names:
        raise ValueError(f"--source: expected a data source of {recipe.path} ({', '.join(names)}), got {source!r}")
    _, held_out = load_documents(recipe, data)
    categories: dict[str, str] = {}
    for each in recipe.data:
        if source in (None, each.name):
            for document in read_source(each, data):
                categories.setdefault(document[0]["content"], each.name)
    prompts = [document[0]["content"] for document in held_out if document[0]["role"] == "user"]
    chosen = [prompt for prompt in prompts if prompt in categories][:count]
    if not chosen:
        raise ValueError(
            f"--recipe: expected held-out chats{f' of {source}' if source else ''}, got none from {recipe.path}; "
            "set training.held_out, or name another --source"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"question_id": i, "category": categories[p], "turns": [p]} for i, p in enumerate(chosen))
    replace(output, map(to_line, rows))
    return len(chosen)
