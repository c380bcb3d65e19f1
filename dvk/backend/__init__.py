"""Media that a store can live on: the contract, local disk, memory, fsspec, and wrappers."""
