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
    start_with(filter, verbose, long_running);
}

/// The same for flanneld, which has levels of its own. They count for weft alone: what the HTTP client says at the lower ones
/// has passwords in it.
pub fn start_at(level: LevelFilter) {
    let directives = ["weft", "weft_control", "weft_client", "weft_netlink"].map(|of| format!("{of}={level}"));
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(_) => EnvFilter::from_default_env(),
        Err(_) => EnvFilter::new(format!("warn,{}", directives.join(","))),
    };
    start_with(filter, level > LevelFilter::INFO, true);
}

/// What flanneld's `-v` means: 0 says what happens, up to 5 more of it, above that everything.
pub fn level_of(verbosity: i64) -> LevelFilter {
    match verbosity {
        ..=0 => LevelFilter::INFO,
        1..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn start_with(filter: EnvFilter, verbose: bool, long_running: bool) {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    let builder = builder.with_target(verbose);
    if long_running && std::env::var_os("JOURNAL_STREAM").is_none() {
        builder.init();
    } else {
        builder.without_time().init();
    }
}
