//! What is seen while the demo runs: lines that stay, and on a terminal a bar that does not.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where the lines go, and whether they may be coloured.
#[derive(Debug)]
pub struct Progress {
    to_stderr: bool,
    /// Escape sequences for colour are understood and wanted.
    colour: bool,
    bar: ProgressBar,
    part: String,
    /// There is no terminal for a bar: parts are told in lines.
    in_lines: bool,
}

/// How a piece of a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A heading.
    Bold,
    /// What a person may skip.
    Dim,
    /// Success.
    Green,
    /// Failure.
    Red,
    /// What this project did.
    Cyan,
}

impl Progress {
    /// Lines go to standard output, or to standard error if that is for the result. Colour is for terminals, and not for
    /// people who set `NO_COLOR` (<https://no-color.org>).
    pub fn new(to_stderr: bool) -> Progress {
        let is_terminal = if to_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let in_lines = !io::stderr().is_terminal() || dumb;
        Progress {
            to_stderr,
            colour: is_terminal && wanted && !dumb,
            bar: ProgressBar::hidden(),
            part: String::new(),
            in_lines,
        }
    }

    /// A line that stays. Nobody left to read it is no failure: the demo has to clean up all the same.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| {
            let _ = if self.to_stderr { writeln!(io::stderr(), "{line}") } else { writeln!(io::stdout(), "{line}") };
        });
    }

    /// Text in a style, if there is colour.
    pub fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            _ if !self.colour => return text.to_owned(),
            Style::Bold => 1,
            Style::Dim => 2,
            Style::Green => 32,
            Style::Red => 31,
            Style::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Begins a stretch of `steps` steps.
    pub fn start(&mut self, steps: u64) {
        if self.in_lines {
            return;
        }
        self.bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        let template = "  {bar:16} {percent:>3} %  {eta:>3}  {msg}";
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        self.bar.set_style(style.progress_chars("━╸─"));
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Begins a part, such as a round.
    pub fn part(&mut self, name: &str) {
        self.part = name.to_owned();
        if self.in_lines {
            self.say(&format!("  {name} ..."));
        }
    }

    /// Begins a step of the part.
    pub fn step(&mut self, name: &str) {
        self.bar.set_message(format!("{}: {name}", self.part));
        self.bar.inc(1);
    }

    /// Ends the stretch.
    pub fn finish(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }
}
