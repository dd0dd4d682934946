//! `weft completions`: what a shell needs to complete weft's commands.

use super::{Cli, CliError, Exit, output};
use clap::CommandFactory;
use clap_complete::Shell;

/// Print shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = WHERE)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

const WHERE: &str = "\
Where the script goes:
  weft completions bash > /etc/bash_completion.d/weft
  weft completions zsh > /usr/local/share/zsh/site-functions/_weft
  weft completions fish > /etc/fish/completions/weft.fish";

/// Runs the command.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weft", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("completions"), "{shell}");
        }
    }
}
