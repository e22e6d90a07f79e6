"""From packed files to batches: engines, feeds, prefetching, evaluation."""
