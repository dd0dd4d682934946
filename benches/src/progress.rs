//! What is seen while a run goes on: on a terminal a bar with the time left, elsewhere a line for each part.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Tells on standard error how far a run is.
pub struct Progress {
    bar: ProgressBar,
    part: String,
    steps: u64,
    done: u64,
    started: Instant,
    in_lines: bool,
}

impl Progress {
    /// For a run of so many measurements.
    pub fn new(steps: u64) -> Progress {
        let in_lines = !io::stderr().is_terminal() || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let target = if in_lines { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let template = "{bar:20} {percent:>3} %  {eta:>4} left  {msg}";
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        bar.set_style(style.progress_chars("━╸─"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress { bar, part: String::new(), steps, done: 0, started: Instant::now(), in_lines }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Begins a part, such as a round.
    pub fn part(&mut self, name: &str) {
        self.part = name.to_owned();
        if self.in_lines {
            let left = match self.done {
                0 => String::new(),
                done => {
                    let left = self.started.elapsed().mul_f64((self.steps - done) as f64 / done as f64);
                    format!(", {} left", humantime::format_duration(Duration::from_secs(left.as_secs())))
                }
            };
            eprintln!("{name}: {} of {} measured{left}", self.done, self.steps);
        }
    }

    /// Begins a measurement.
    pub fn step(&mut self, name: &str) {
        self.bar.set_message(format!("{}: {name}", self.part));
    }

    /// The measurement that was begun waits for something.
    pub fn wait(&mut self, what: &str) {
        self.bar.set_message(format!("{}: waiting for {what}", self.part));
    }

    /// Ends a measurement.
    pub fn advance(&mut self) {
        self.done += 1;
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
