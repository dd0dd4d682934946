//! Lab tests live in `tests/`.
