"""From batches to training: the loader, its phases, the swap, agreement of ranks, state and telemetry."""
