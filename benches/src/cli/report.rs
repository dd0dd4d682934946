//! `weft-bench report` and `weft-bench compare`: what is made of the JSON of runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use weft_bench::result::Report;
use weft_bench::{compare, report, targets};

/// Exit code for files that are no reports.
const NO_REPORT: u8 = 2;

/// What to draw.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// What `weft-bench run --json FILE` wrote
    #[arg(value_name = "FILE.json")]
    report: PathBuf,
    /// Write the report as one HTML file that needs nothing beside itself
    #[arg(short = 'o', long = "html", value_name = "FILE.html", required_unless_present = "svg")]
    html: Option<PathBuf>,
    /// Write the chief picture, weft beside kernel VXLAN, as one SVG file
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// What to compare.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// What `weft-bench run --json FILE` wrote first
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// What it wrote later
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Draws.
pub fn report(args: &ReportArgs) -> ExitCode {
    with_reports(&[&args.report], |reports| {
        if let Some(path) = &args.html {
            write_html(&reports[0], path)?;
        }
        if let Some(path) = &args.svg {
            let Some(picture) = report::chief(&reports[0], targets::SUBJECT) else {
                bail!("{}: it has no ratios of {} to draw", args.report.display(), targets::SUBJECT);
            };
            write(path, &picture)?;
        }
        Ok(())
    })
}

/// Writes the HTML file of a report.
///
/// # Errors
/// If it cannot be written.
pub fn write_html(of: &Report, path: &Path) -> Result<()> {
    write(path, &report::html(of))
}

/// Compares.
pub fn compare(args: &CompareArgs) -> ExitCode {
    with_reports(&[&args.a, &args.b], |reports| {
        let comparison = compare::compare(&reports[0], &reports[1]);
        if args.json {
            println!("{}", serde_json::to_string_pretty(&comparison)?);
        } else {
            print!("{}", compare::table(&comparison));
        }
        Ok(())
    })
}

fn with_reports(paths: &[&Path], act: impl FnOnce(&[Report]) -> Result<()>) -> ExitCode {
    let reports = paths.iter().map(|path| compare::read(path)).collect::<Result<Vec<Report>>>();
    let (result, code) = match reports {
        Ok(reports) => (act(&reports), ExitCode::FAILURE),
        Err(error) => (Err(error), ExitCode::from(NO_REPORT)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            code
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    ensure!(!path.is_dir(), "{} is a directory; expected the name of a file", path.display());
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
