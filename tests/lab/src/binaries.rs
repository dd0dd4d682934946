//! Where the programs under test are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The `weftd` to test: `$WEFTD_BIN`, or the one built in the same target directory as this test.
///
/// # Errors
/// If it is not built; the error says how to.
pub fn weftd_binary() -> Result<PathBuf> {
    find("WEFTD_BIN", "weftd", "weft-dataplane")
}

/// The `weft` to test: `$WEFT_BIN`, or the one built in the same target directory as this test.
///
/// # Errors
/// If it is not built; the error says how to.
pub fn weft_binary() -> Result<PathBuf> {
    find("WEFT_BIN", "weft", "weft-control")
}

/// The `weft-bench` to test: `$WEFT_BENCH_BIN`, or the one built in the same target directory as this test.
///
/// # Errors
/// If it is not built; the error says how to.
pub fn weft_bench_binary() -> Result<PathBuf> {
    find("WEFT_BENCH_BIN", "weft-bench", "weft-bench")
}

fn find(variable: &str, name: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable).map(PathBuf::from) {
        if !path.is_file() {
            bail!("{variable} names {}, which is not a file", path.display());
        }
        return Ok(path);
    }
    // Tests are in target/PROFILE/deps, benches and programs in target/PROFILE.
    let this = env::current_exe().context("finding the path of this program")?;
    let found = this.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        let release = if this.components().any(|part| part.as_os_str() == "release") { " --release" } else { "" };
        format!("{name} is not built next to this test; run `cargo build -p {package} --bin {name}{release}` or set {variable}")
    })
}
