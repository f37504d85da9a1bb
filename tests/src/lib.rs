//! End-to-end tests live in `tests/`: real applications call each other through sidecars that pilot configured.
