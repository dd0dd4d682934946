//! The command line.

mod report;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_bench::{spec, workload};

/// weft beside kernel VXLAN and others, measured alternately on one machine.
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure subjects side by side (root)
    Run(Box<run::RunArgs>),
    /// Draw the JSON of a run: HTML, and the chief picture as SVG
    Report(report::ReportArgs),
    /// Tell what changed between two runs, and whether it is more than noise
    Compare(report::CompareArgs),
    /// List the subjects and workloads that `run` understands
    List,
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run(args) => run::run(&args),
            Command::Report(args) => report::report(&args),
            Command::Compare(args) => report::compare(&args),
            Command::List => {
                list();
                ExitCode::SUCCESS
            }
        }
    }
}

fn list() {
    for (title, forms) in [("Subjects", &spec::FORMS[..]), ("Workloads", &workload::FORMS[..])] {
        println!("{title}:");
        for (form, help) in forms {
            println!("  {form:<22}  {help}");
        }
    }
}
