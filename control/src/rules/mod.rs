//! Traffic rules of a flannel node: masquerading for what leaves the overlay, and leave to be forwarded.
//!
//! ```text
//! Wanted (data) -> plan: one dump, compared -> nothing to do
//!                                           -> one transaction, then looked at again
//! ```
//!
//! flannel adds what is missing; here a chain is *made equal* to what it should be, so rules of a former network, strangers
//! within our chains, doubled and reordered rules go too, and one node can have one overlay with rules. Nobody else's chain
//! is touched but for the jumps into ours. The programs act on the network namespace of the calling thread.

mod bridge;
mod differ;
mod iptables;
mod nft;
mod program;
mod wanted;

pub use bridge::bridge_filter_warnings;
pub use program::{ProgramError, Programs};
pub use wanted::{Family, Overlay, Rule, Side, Verdict, Wanted};

use crate::causes;
use iptables::{Flavour, Iptables};
use nft::Nft;

/// What becomes of the traffic where the programs are missing.
const WITHOUT: &str = "Without it pods reach each other, but addresses outside the overlay answer to pod addresses that they \
                       cannot reach, and a node that forwards by permission only forwards nothing for its pods";
/// Attempts at one repair: somebody else may change the rules between the dump and the transaction.
const ATTEMPTS_MAX: u32 = 3;

/// By what the node's rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// iptables, in the flavour that the node calls so.
    Iptables,
    /// nftables (`EnableNFTables`).
    Nftables,
}

impl Mode {
    /// Both, for loops.
    pub const BOTH: [Mode; 2] = [Mode::Iptables, Mode::Nftables];

    /// What it is called in files and messages.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Iptables => "iptables",
            Mode::Nftables => "nftables",
        }
    }
}

/// Why rules could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// nft prints something else than nft does.
    #[error("the answer of `nft -j list table` cannot be read: {0}")]
    Listing(serde_json::Error),
    /// The rules do not stay, or read otherwise than written.
    #[error("after {ATTEMPTS_MAX} repairs the rules are still not as they should be; does somebody else keep changing them? {}", .0.join("; "))]
    NotKept(Vec<String>),
}

/// What is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Repair {
    /// For `iptables-restore` or `nft -f`.
    script: String,
    /// The same for people, a phrase for each change.
    phrases: Vec<String>,
}

/// The node's rules, in the hands of one process.
#[derive(Debug)]
pub struct Rules {
    programs: Programs,
    backend: Backend,
    /// What was made true last. A family that is not wanted is looked at when this changes, and not again.
    settled: Option<Wanted>,
}

#[derive(Debug)]
enum Backend {
    /// IPv6 is missing where its programs are.
    Iptables {
        v4: Iptables,
        v6: Option<Iptables>,
    },
    Nft(Nft),
}

impl Rules {
    /// Finds the programs of `mode` and what they can do, and cleans up what another mode has left: rules of nftables under
    /// iptables, rules of iptables under nftables, and those of the other flavour of iptables under either. Also gives what
    /// was removed and what could not be, a sentence each. Rules of `mode` itself stay as they are until [`Rules::apply`].
    ///
    /// # Errors
    /// A program is missing, or can do nothing here.
    pub fn start(mode: Mode, programs: Programs) -> Result<(Rules, Vec<String>), RulesError> {
        let backend = match mode {
            Mode::Iptables => {
                let found = Family::BOTH.map(|family| Iptables::find(&programs, family));
                let [Some(mut v4), mut v6] = found else { return Err(Iptables::missing(Family::V4).into()) };
                v4.probe(&programs)?;
                // A kernel without IPv6 matters to none but those who want it, and then says so.
                let _ = v6.as_mut().map(|v6| v6.probe(&programs));
                Backend::Iptables { v4, v6 }
            }
            Mode::Nftables => {
                let mut nft = Nft::find(&programs).ok_or_else(Nft::missing)?;
                nft.probe(&programs)?;
                Backend::Nft(nft)
            }
        };
        let notes = clean_others(&backend, &programs)?;
        Ok((Rules { programs, backend, settled: None }, notes))
    }

    /// Makes the node's rules as `wanted` says, in one transaction per table of iptables or family of nftables, and gives
    /// what was changed, a phrase each. Nothing is written where all is well.
    ///
    /// # Errors
    /// A program refuses, or the rules do not stay. What was not written is as it was.
    pub fn apply(&mut self, wanted: &Wanted) -> Result<Vec<String>, RulesError> {
        let is_settled = self.settled.take().as_ref() == Some(wanted);
        let mut changes = Vec::new();
        for family in Family::BOTH {
            if wanted.overlay(family).is_some() || !is_settled {
                changes.extend(self.settle(family, wanted)?);
            }
        }
        self.settled = Some(*wanted);
        Ok(changes)
    }

    /// Removes every rule of ours; gives what was removed, a phrase each.
    ///
    /// # Errors
    /// As [`Rules::apply`].
    pub fn remove(&mut self) -> Result<Vec<String>, RulesError> {
        self.apply(&Wanted::default())
    }

    fn settle(&self, family: Family, wanted: &Wanted) -> Result<Vec<String>, RulesError> {
        let programs = &self.programs;
        match &self.backend {
            Backend::Iptables { v4, v6 } => {
                let tool = if family == Family::V4 { Some(v4) } else { v6.as_ref() };
                let Some(tool) = tool else {
                    let is_wanted = wanted.overlay(family).is_some() && (wanted.masquerade || wanted.forward);
                    return if is_wanted { Err(Iptables::missing(family).into()) } else { Ok(Vec::new()) };
                };
                settle(|| Ok(tool.plan(programs, wanted)?), |script| tool.write(programs, script))
            }
            Backend::Nft(nft) => settle(|| nft.plan(programs, family, wanted), |script| nft.write(programs, script)),
        }
    }
}

/// Plans, writes, and plans again until there is nothing left to do. What a write said matters only if it was the last.
fn settle(
    plan: impl Fn() -> Result<Option<Repair>, RulesError>,
    write: impl Fn(&str) -> Result<(), ProgramError>,
) -> Result<Vec<String>, RulesError> {
    let Some(mut repair) = plan()? else { return Ok(Vec::new()) };
    let first = repair.phrases.clone();
    for _ in 0..ATTEMPTS_MAX {
        let written = write(&repair.script);
        match (plan()?, written) {
            (None, _) => return Ok(first),
            (Some(next), Ok(())) => repair = next,
            // Exactly the same is to be done: then it was not the others, and it will fail again.
            (Some(next), Err(error)) if next == repair => return Err(error.into()),
            (Some(next), Err(_)) => repair = next,
        }
    }
    Err(RulesError::NotKept(repair.phrases))
}

/// Removes our rules wherever `backend` does not keep them.
fn clean_others(backend: &Backend, programs: &Programs) -> Result<Vec<String>, RulesError> {
    let mut notes = Vec::new();
    let mut told = |what: &str, outcome: Result<Vec<String>, RulesError>| match outcome {
        Ok(phrases) => notes.extend(phrases.iter().map(|phrase| format!("removed from {what}: {phrase}"))),
        Err(error) => notes.push(format!("rules in {what} could not be looked after: {}", causes::text(&error))),
    };
    let own_flavour = match backend {
        Backend::Iptables { v4, .. } => Some(v4.flavour(programs)?),
        Backend::Nft(_) => None,
    };
    let nothing = Wanted::default();
    for family in Family::BOTH {
        let mut others: Vec<(&str, Option<Iptables>)> =
            [("iptables-nft", Flavour::Nft), ("iptables-legacy", Flavour::Legacy)]
                .into_iter()
                .filter(|(_, flavour)| Some(*flavour) != own_flavour)
                .map(|(what, flavour)| (what, Iptables::of_flavour(programs, family, flavour)))
                .collect();
        if own_flavour.is_none() && others.iter().all(|(_, tool)| tool.is_none()) {
            // A system with one flavour may have it under the plain name only.
            others.push(("iptables", Iptables::find(programs, family)));
        }
        for (what, tool) in others.iter().filter_map(|(what, tool)| Some((what, tool.as_ref()?))) {
            told(what, settle(|| Ok(tool.plan(programs, &nothing)?), |script| tool.write(programs, script)));
        }
        if let Some(nft) = Nft::find(programs).filter(|_| own_flavour.is_some()) {
            told("nftables", settle(|| nft.plan(programs, family, &nothing), |script| nft.write(programs, script)));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn repair(text: &str) -> Repair {
        Repair { script: text.into(), phrases: vec![text.into()] }
    }

    fn failure() -> ProgramError {
        ProgramError::Stuck { command: "nft".into() }
    }

    #[test]
    fn where_all_is_well_nothing_is_written() {
        assert!(settle(|| Ok(None), |_| panic!("written")).unwrap().is_empty());
    }

    #[test]
    fn a_write_that_others_came_in_the_way_of_is_tried_again() {
        let step = Cell::new(0);
        let plan = || Ok([Some(repair("a")), Some(repair("b")), None][step.get()].clone());
        let write = |_: &str| {
            step.set(step.get() + 1);
            if step.get() == 1 { Err(failure()) } else { Ok(()) }
        };
        assert_eq!(settle(plan, write).unwrap(), ["a"]);
    }

    #[test]
    fn a_write_that_cannot_succeed_is_an_error_at_once() {
        let writes = Cell::new(0);
        let write = |_: &str| {
            writes.set(writes.get() + 1);
            Err(failure())
        };
        assert!(matches!(settle(|| Ok(Some(repair("a"))), write), Err(RulesError::Program(_))));
        assert_eq!(writes.get(), 1);
    }

    #[test]
    fn rules_that_do_not_stay_are_an_error_that_names_them() {
        let error = settle(|| Ok(Some(repair("a"))), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("somebody else") && error.ends_with("a"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package_and_what_it_is_for() {
        let empty = tempfile::tempdir().unwrap();
        for (mode, package) in [(Mode::Iptables, "`iptables`"), (Mode::Nftables, "`nftables`")] {
            let programs = Programs::within([empty.path().to_path_buf()]);
            let error = Rules::start(mode, programs).unwrap_err().to_string();
            assert!(error.contains(package) && error.contains("Without it"), "{error}");
        }
    }
}
