"""One stage, one file: what it reads, writes, drops, its knobs, one pure method."""
