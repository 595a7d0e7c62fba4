"""Where training runs: each executor gives the same results, by its own means."""
