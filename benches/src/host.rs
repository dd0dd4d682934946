//! The machine: facts for the report, and whether others use it just now.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use weft_lab::measure::CpuTime;

use crate::proc;
use crate::result::HostFacts;

/// How long to look for what others do.
const LOOK: Duration = Duration::from_millis(500);

/// The part of the machine's CPU time that is in use just now, 0 to 1. Takes half a second.
///
/// # Errors
/// If the kernel does not show its clock.
pub fn load() -> Result<f64> {
    let (started, cpu) = (Instant::now(), CpuTime::now()?);
    thread::sleep(LOOK);
    let used = CpuTime::now()?.since(cpu).as_secs_f64();
    Ok((used / started.elapsed().as_secs_f64() / cores() as f64).min(1.0))
}

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What there is to know; `load` is that of [`load`], `congestion_control` what TCP uses in this run.
pub fn facts(load: f64, debug_build: bool, congestion_control: Option<String>) -> HostFacts {
    let uname = rustix::system::uname();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let dmi = |name: &str| {
        let text = fs::read_to_string(format!("/sys/class/dmi/id/{name}")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let machine: Vec<String> = ["sys_vendor", "product_name"].into_iter().filter_map(dmi).collect();
    HostFacts {
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        cpu: value("model name"),
        cores: cores(),
        memory: proc::memory().unwrap_or(0),
        virtualized: value("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        machine: (!machine.is_empty()).then(|| machine.join(" ")),
        congestion_control,
        load,
        debug_build,
    }
}

/// The commit of the repository that this program lies in, `-dirty` behind it if files were changed; `None` without a
/// repository or git.
pub fn commit() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let mut git = Command::new("git");
    git.arg("-C").arg(program.parent()?).args(["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|commit| !commit.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_machine_are_found() {
        let facts = facts(0.25, true, None);
        assert!(facts.cores > 0 && facts.memory > 0 && !facts.kernel.is_empty(), "{facts:?}");
    }

    #[test]
    fn the_load_is_a_part_of_the_machine() {
        assert!((0.0..=1.0).contains(&load().unwrap()));
    }
}
