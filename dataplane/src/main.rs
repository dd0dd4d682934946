//! The `weftd` binary: flags, log, [`weft_dataplane::service`].

use clap::Parser;
use std::process::ExitCode;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{fmt, reload};
use weft_dataplane::config::Config;
use weft_dataplane::service;
use weft_proto::LogLevel;

fn main() -> ExitCode {
    let config = Config::parse();
    let (level, handle) = reload::Layer::new(config.log);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(level).with(lines).init();
    let mut set_log_level = move |level: LogLevel| handle.reload(filter(level)).map_err(|error| error.to_string());
    match service::run(&config, &mut set_log_level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weftd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
