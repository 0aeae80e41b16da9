"""Zarr stores read by date: writing, memory-mapped copies, statistics and the manifest."""

from slams.data.store.store import FieldStore, write_manifest

__all__ = ["FieldStore", "write_manifest"]
