"""One file per claim: each prints median of five, spread, and the ratio to its peer, measured in the same run."""
