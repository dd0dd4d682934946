//! What weft says while it works: on standard error, so that standard output stays data.

use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Sets up logging: warnings, and for a long-running command its doings. `RUST_LOG` overrides both and `verbose`. Colour
/// only on a terminal, and not if `NO_COLOR` is set (<https://no-color.org>); no times under journald, which has its own.
pub fn start(verbose: bool, long_running: bool) {
    let level = match (verbose, long_running) {
        (true, _) => LevelFilter::DEBUG,
        (false, true) => LevelFilter::INFO,
        (false, false) => LevelFilter::WARN,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    let builder = builder.with_target(verbose);
    if long_running && std::env::var_os("JOURNAL_STREAM").is_none() {
        builder.init();
    } else {
        builder.without_time().init();
    }
}
