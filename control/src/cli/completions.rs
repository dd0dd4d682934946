//! `weft completions`: what a shell needs to complete weft's commands.

use super::{Cli, CliError, Exit, output};
use clap::CommandFactory;
use clap_complete::Shell;

/// Print shell completions
///
/// bash: weft completions bash > /etc/bash_completion.d/weft
/// zsh:  weft completions zsh > "${fpath[1]}/_weft"
/// fish: weft completions fish > ~/.config/fish/completions/weft.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

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
