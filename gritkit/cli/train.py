"""``gritkit train``: run a recipe by name or path with ``k=v`` options.

This module knows nothing about training; the recipe and the library do.
"""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from gritkit.cli import options
from gritkit.cli.loading import quiet_libraries
from gritkit.cli.output import table, write
from gritkit.cli.recipes import describe_options, find_recipe, list_recipes, load_main, read_options, recipe_folder


def train(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe's name, or a .py file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="The recipe's options; 'help' lists them.")
    ] = None,
    show_options: Annotated[bool, typer.Option("--options", help="List the recipe's options and defaults.")] = False,
) -> None:
    """Run a training recipe; without one, list those there are."""
    folder = recipe_folder()
    if recipe is None:
        write(table(("recipe", "what it does"), list_recipes(folder).items()))
        return
    path = find_recipe(recipe, folder)
    quiet_libraries()
    main = load_main(path)
    if show_options or settings == ["help"]:
        write(describe_options(main, "\n") + "\n")
        return
    logging.getLogger("gritkit").setLevel(logging.INFO)  # where stderr is no terminal, progress is log lines
    main(**read_options(main, settings or []))


app = options.app_of(train)
