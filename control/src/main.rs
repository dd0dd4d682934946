//! The `weft` binary: see [`weft_control::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_control::cli::main()
}
