//! What the commands about a whole tunnel share: its file or name, its place, its errors.

use super::{CliError, Exit};
use crate::causes;
use crate::config::{self, LoadError, Loaded};
use crate::state::{self, RUN_DIR, RUN_DIR_VARIABLE};
use crate::tunnel::{TunnelError, absolute};
use std::path::{Path, PathBuf};

/// Where tunnels keep their files.
#[derive(Clone, Debug, clap::Args)]
pub struct RunDirArgs {
    /// Directory of sockets, logs and states
    #[arg(long, env = RUN_DIR_VARIABLE, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
}

/// Reads and checks a tunnel file; warnings go to standard error.
pub fn load(path: &Path) -> Result<Loaded, CliError> {
    let loaded = config::load(path).map_err(load_error)?;
    if !loaded.report.problems.is_empty() {
        eprintln!("{}", loaded.report);
    }
    Ok(loaded)
}

/// A file that cannot be used: usage, nothing was touched.
pub fn load_error(error: LoadError) -> CliError {
    let (text, hint) = match &error {
        LoadError::Read { .. } => (error.to_string(), "name a readable tunnel file; examples/ has one for each use"),
        LoadError::Wrong(report) => {
            let count = report.problems.len();
            let plural = if count == 1 { "" } else { "s" };
            (format!("{}: {count} problem{plural}; nothing was touched\n{report}", report.file), "")
        }
    };
    let error = CliError { exit: Exit::Usage, error: anyhow::Error::msg(text) };
    if hint.is_empty() { error } else { error.with_hint(hint) }
}

/// A tunnel that did not do what was asked.
pub fn tunnel_error(name: &str, error: &TunnelError) -> CliError {
    let cli_error = CliError { exit: error.exit(), error: anyhow::anyhow!("{name}: {}", causes::text(error)) };
    match error.hint() {
        Some(hint) => cli_error.with_hint(hint),
        None => cli_error,
    }
}

/// The tunnel that `FILE|NAME` means: that of a state which names the file, that of the file, or the name itself. A file
/// that is gone or wrong by now still takes its tunnel down.
pub fn name_of(file_or_name: &Path, run_dir: &Path) -> Result<String, CliError> {
    let path = absolute(file_or_name);
    let states = state::all(run_dir);
    if let Some(state) = states.iter().find(|state| state.config == path) {
        return Ok(state.name.clone());
    }
    let text = file_or_name.to_string_lossy();
    let is_up = states.iter().any(|state| state.name == text);
    let is_path = text.contains('/') || text.ends_with(".toml") || file_or_name.exists();
    if is_up || !is_path {
        return Ok(text.into_owned());
    }
    match config::load(file_or_name) {
        Ok(loaded) => Ok(loaded.tunnel.name),
        Err(error) => Err(load_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Process;
    use crate::link::LinkPlan;
    use crate::state::{Paths, State};

    const FILE: &str = "name = \"office\"\naddress = \"10.99.0.1/24\"\n";

    fn record(run_dir: &Path, name: &str, config: &Path) {
        let state = State {
            name: name.into(),
            config: config.into(),
            network_namespace: 0,
            weftd: Process { pid: 0, start_ticks: 0, program: PathBuf::new() },
            arguments: Vec::new(),
            tun: None,
            plan: LinkPlan::default(),
        };
        Paths::new(run_dir, name).write_state(&state).unwrap();
    }

    #[test]
    fn a_tunnel_is_found_by_name_and_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, FILE).unwrap();
        assert_eq!(name_of(Path::new("office"), dir.path()).unwrap(), "office");
        assert_eq!(name_of(&file, dir.path()).unwrap(), "office");
    }

    #[test]
    fn a_file_that_is_wrong_by_now_still_names_its_tunnel_if_that_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, "name = ").unwrap();
        assert_eq!(name_of(&file, dir.path()).unwrap_err().exit, Exit::Usage);
        record(dir.path(), "office", &file);
        assert_eq!(name_of(&file, dir.path()).unwrap(), "office");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(name_of(&file, dir.path()).unwrap(), "office");
    }

    #[test]
    fn a_missing_file_is_no_name() {
        let dir = tempfile::tempdir().unwrap();
        for missing in ["missing.toml", "./missing", "/etc/weft/missing"] {
            assert_eq!(name_of(Path::new(missing), dir.path()).unwrap_err().exit, Exit::Usage, "{missing}");
        }
    }
}
