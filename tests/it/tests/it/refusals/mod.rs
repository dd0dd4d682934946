//! What weftd refuses, and how it says so; what it survives.
//!
//! - `start`: it cannot have what it wants. Exit 1 with who has it or what is missing, exit 2 about flags.
//! - `trouble`: what it had goes away under it, and comes back.
//! - `control`: hostile clients of the control socket, while packets flow.

mod control;
mod start;
mod trouble;
