"""An exported file into a place where nothing is yet: the whole of it, or nothing.

This module knows nothing about the file's format (:mod:`gritkit.rag.archive`) or about using what was imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from gritkit.errors import StoreError
from gritkit.files import staged_folder
from gritkit.kv.blocks import BlockStore
from gritkit.rag.archive import Archive
from gritkit.rag.manifest import Manifest
from gritkit.rag.place import FolderPlace, Place
from gritkit.rag.sealed import SealedStore

_WAIT_S = 30.0


def import_archive(path: Path, place: Place) -> None:
    """Raises StoreError for a file that is no export or a damaged one, and a place that is not empty."""
    with Archive(path) as found:
        if isinstance(place, FolderPlace):
            _into_folder(found, place)
        else:
            _into_tables(found, place)


def _into_folder(found: Archive, place: FolderPlace) -> None:
    """Fill a folder beside the new one and rename it, so that it is whole or not there."""
    place.check_empty()
    try:
        with staged_folder(place.folder) as stage:
            beside = FolderPlace(stage)
            beside.create(found.manifest)
            _fill(found, beside, found.manifest)
            place.check_empty()  # whoever came meanwhile stays
    except OSError as error:
        raise StoreError(f"cannot write to {place.name}: {error.strerror or error}") from error


def _into_tables(found: Archive, place: Place) -> None:
    """Fill tables that nothing refers to yet, and write the manifest last."""
    with place.writing(alone=True, wait_s=_WAIT_S):  # another import would choose the same generation
        manifest = dataclasses.replace(found.manifest, generation=max(place.generations(), default=-1) + 1)
        try:
            _fill(found, place, manifest)
            if place.create(manifest) != manifest:
                raise StoreError(f"{place.name} became a knowledge base meanwhile: import into a new place")
        except BaseException:
            place.drop_generation(manifest.generation)
            raise


def _fill(found: Archive, place: Place, manifest: Manifest) -> None:
    """The rows and blocks of an archive into an empty store."""
    blocks = BlockStore(place.blocks)
    named: set[str] = set()
    with contextlib.closing(SealedStore(place.store(manifest))) as store:
        for rows in found.documents():
            store.replace(rows)
            named |= {row.block_key for row in rows}
        store.optimize()
    for block in found.blocks():
        if block.key not in named:
            raise StoreError(f"the archive holds a block that no document names ({block.key[:12]}): export again")
        blocks.put(block)
