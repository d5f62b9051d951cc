"""The catalogue's part that the repository service owns: tables, and the only code that reads or writes them."""

from sendense_repository.store.catalogue import Catalogue
from sendense_repository.store.tables import metadata

__all__ = ["Catalogue", "metadata"]
