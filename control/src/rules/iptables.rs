//! Rules by iptables: one `iptables-save` to see what is there, one `iptables-restore` to mend it.
//!
//! ```text
//! nat     POSTROUTING  ... -j FLANNEL-POSTRTG   ->  FLANNEL-POSTRTG  the masquerading rules
//! filter  FORWARD      ... -j FLANNEL-FWD       ->  FLANNEL-FWD      the forward rules
//! ```

use super::differ::differences;
use super::program::{ProgramError, Programs};
use super::wanted::{Family, Wanted};
use super::{Repair, WITHOUT};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Seconds that `iptables-restore` waits for somebody else's lock (`/run/xtables.lock`).
const WAIT: &str = "--wait=5";
/// The package that has the programs, in Debian and Alpine.
const PACKAGE: &str = "iptables";

/// The programs of one family in one flavour, and what they can do.
#[derive(Debug)]
pub struct Iptables {
    family: Family,
    save: PathBuf,
    restore: PathBuf,
    /// `iptables-restore` can wait for its lock (since 1.6.2).
    waits: bool,
    /// ... and knows `--random-fully` (since 1.6.2).
    pub random_fully: bool,
}

/// The two implementations that a node may have side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// On top of nftables.
    Nft,
    /// The kernel's ip_tables.
    Legacy,
}

/// A chain of ours, and the rule that leads there.
struct Chain {
    table: &'static str,
    parent: &'static str,
    name: &'static str,
    comment: &'static str,
    rules: Vec<String>,
}

impl Iptables {
    /// The programs that the node calls `iptables-save` and so on; `None`: they are not installed.
    pub fn find(programs: &Programs, family: Family) -> Option<Iptables> {
        Iptables::named(programs, family, "")
    }

    /// The programs of one flavour, whatever the node calls `iptables-save`; `None`: they are not installed.
    pub fn of_flavour(programs: &Programs, family: Family, flavour: Flavour) -> Option<Iptables> {
        Iptables::named(programs, family, if flavour == Flavour::Nft { "-nft" } else { "-legacy" })
    }

    fn named(programs: &Programs, family: Family, infix: &str) -> Option<Iptables> {
        let [save, restore] = ["save", "restore"].map(|verb| programs.find(&format!("{}{infix}-{verb}", stem(family))));
        Some(Iptables { family, save: save?, restore: restore?, waits: true, random_fully: true })
    }

    /// What to say where [`Iptables::find`] gives nothing.
    pub fn missing(family: Family) -> ProgramError {
        let program = format!("{0}-save or {0}-restore", stem(family));
        ProgramError::Missing { program, package: PACKAGE, without: WITHOUT }
    }

    /// The flavour, by what the program says of itself.
    pub fn flavour(&self, programs: &Programs) -> Result<Flavour, ProgramError> {
        let version = programs.run(&self.save, &["--version"], "")?;
        Ok(if version.contains("nf_tables") { Flavour::Nft } else { Flavour::Legacy })
    }

    /// Finds out what the programs can do, by a transaction that is tested and not made.
    ///
    /// # Errors
    /// They can do nothing here: no permission, or a kernel without nat.
    pub fn probe(&mut self, programs: &Programs) -> Result<(), ProgramError> {
        let mut refused = None;
        for (waits, random_fully) in [(true, true), (true, false), (false, true), (false, false)] {
            let port = if random_fully { " --random-fully" } else { "" };
            let script = format!("*nat\n:WEFT-PROBE - [0:0]\n-A WEFT-PROBE -j MASQUERADE{port}\nCOMMIT\n");
            (self.waits, self.random_fully) = (waits, random_fully);
            match self.restore(programs, &script, true) {
                Ok(()) => return Ok(()),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// What it takes to make the chains as `wanted` says; `None`: they are.
    pub fn plan(&self, programs: &Programs, wanted: &Wanted) -> Result<Option<Repair>, ProgramError> {
        let dump = Dump::parse(&programs.run(&self.save, &[], "")?);
        let wanted = Wanted { random_fully: wanted.random_fully && self.random_fully, ..*wanted };
        Ok(repair(&dump, self.family, &chains(&wanted, self.family)))
    }

    /// Makes the changes of a plan: all of one table, or none.
    pub fn write(&self, programs: &Programs, script: &str) -> Result<(), ProgramError> {
        self.restore(programs, script, false)
    }

    fn restore(&self, programs: &Programs, script: &str, test: bool) -> Result<(), ProgramError> {
        let flags = [("--noflush", true), (WAIT, self.waits), ("--test", test)];
        let arguments: Vec<&str> = flags.into_iter().filter(|(_, on)| *on).map(|(flag, _)| flag).collect();
        programs.run(&self.restore, &arguments, script).map(drop)
    }
}

fn stem(family: Family) -> &'static str {
    if family == Family::V4 { "iptables" } else { "ip6tables" }
}

fn chains(wanted: &Wanted, family: Family) -> [Chain; 2] {
    let text = |rules: Vec<super::wanted::Rule>, comment| rules.iter().map(|rule| rule.iptables(comment)).collect();
    let (masq, forward) = ("flanneld masq", "flanneld forward");
    [
        Chain {
            table: "nat",
            parent: "POSTROUTING",
            name: "FLANNEL-POSTRTG",
            comment: masq,
            rules: text(wanted.masquerade_iptables(family), masq),
        },
        Chain {
            table: "filter",
            parent: "FORWARD",
            name: "FLANNEL-FWD",
            comment: forward,
            rules: text(wanted.forward(family), forward),
        },
    ]
}

fn repair(dump: &Dump, family: Family, chains: &[Chain]) -> Option<Repair> {
    let mut all = Repair::default();
    for chain in chains {
        let (mut lines, mut phrases) = (String::new(), Vec::new());
        match chain.rules.is_empty() {
            true => remove(dump, chain, &mut lines, &mut phrases),
            false => install(dump, chain, &mut lines, &mut phrases),
        }
        if !phrases.is_empty() {
            // Writing to a string does not fail.
            let _ = write!(all.script, "*{}\n{lines}COMMIT\n", chain.table);
            all.phrases.extend(phrases.iter().map(|phrase| format!("{family} {}: {phrase}", chain.table)));
        }
    }
    (!all.phrases.is_empty()).then_some(all)
}

fn install(dump: &Dump, chain: &Chain, lines: &mut String, phrases: &mut Vec<String>) {
    let Chain { table, parent, name, comment, rules } = chain;
    let found = dump.chain(table, name);
    let differences = match found {
        None => vec![format!("{name} made, with {} rules", rules.len())],
        Some(found) => differences(found, rules, String::clone)
            .into_iter()
            .map(|difference| format!("{name} rewritten: {difference}"))
            .collect(),
    };
    if !differences.is_empty() {
        // With --noflush, naming a chain of one's own makes it, or flushes it.
        let _ = writeln!(lines, ":{name} - [0:0]");
        rules.iter().for_each(|rule| lines.extend(["-A ", name, " ", rule, "\n"]));
    }
    phrases.extend(differences);
    let jump = format!("-m comment --comment \"{comment}\" -j {name}");
    let mut has_jump = false;
    for rule in dump.chain(table, parent).unwrap_or_default().iter().filter(|rule| leads_to(rule, name)) {
        if *rule != jump {
            phrases.push(format!("jump `{rule}` removed from {parent}"));
        } else if has_jump {
            phrases.push(format!("second jump to {name} removed from {parent}"));
        } else {
            has_jump = true;
            continue;
        }
        lines.extend(["-D ", parent, " ", rule, "\n"]);
    }
    if !has_jump {
        lines.extend(["-A ", parent, " ", &jump, "\n"]);
        if found.is_some() {
            phrases.push(format!("jump from {parent} to {name} was missing"));
        }
    }
}

fn remove(dump: &Dump, chain: &Chain, lines: &mut String, phrases: &mut Vec<String>) {
    let Chain { table, name, .. } = chain;
    for (parent, rules) in dump.tables.get(*table).into_iter().flatten() {
        for rule in rules.iter().filter(|rule| parent != name && leads_to(rule, name)) {
            lines.extend(["-D ", parent, " ", rule, "\n"]);
            phrases.push(format!("jump from {parent} to {name} removed"));
        }
    }
    if dump.chain(table, name).is_some() {
        let _ = write!(lines, "-F {name}\n-X {name}\n");
        phrases.push(format!("{name} removed"));
    }
}

/// Whether a rule jumps or goes to a chain.
fn leads_to(rule: &str, chain: &str) -> bool {
    let words = words(rule);
    words
        .windows(2)
        .any(|pair| matches!(pair, [option, target] if (option == "-j" || option == "-g") && target == chain))
}

/// The words of a rule as `iptables-save` quotes them.
fn words(rule: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for character in rule.chars() {
        match character {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '"' if !escaped => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().expect("there is one from the start").push(other),
        }
        escaped = false;
    }
    words
}

/// What `iptables-save` tells.
#[derive(Debug, Default)]
struct Dump {
    /// Rules without `-A CHAIN `, by table and chain.
    tables: HashMap<String, HashMap<String, Vec<String>>>,
}

impl Dump {
    fn parse(text: &str) -> Dump {
        let mut dump = Dump::default();
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim().to_owned();
            } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                dump.tables.entry(table.clone()).or_default().entry(chain.to_owned()).or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
                let chains = dump.tables.entry(table.clone()).or_default();
                chains.entry(chain.to_owned()).or_default().push(rule.trim_end().to_owned());
            }
        }
        dump
    }

    fn chain(&self, table: &str, chain: &str) -> Option<&[String]> {
        self.tables.get(table)?.get(chain).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::wanted::Overlay;

    fn wanted() -> Wanted {
        let overlay = Overlay { network: "10.5.0.0/16".parse().unwrap(), subnet: "10.5.1.0/24".parse().unwrap() };
        Wanted { v4: Some(overlay), v6: None, masquerade: true, random_fully: true, forward: true }
    }

    fn plan(dump: &str, wanted: &Wanted) -> Option<Repair> {
        repair(&Dump::parse(dump), Family::V4, &chains(wanted, Family::V4))
    }

    /// What a dump shows after everything was made: the script itself, with the chains of the kernel.
    fn whole() -> String {
        let script = plan("", &wanted()).unwrap().script;
        script
            .replace("*nat\n", "*nat\n:POSTROUTING ACCEPT [1:2]\n")
            .replace("*filter\n", "*filter\n:FORWARD DROP [0:0]\n")
    }

    #[test]
    fn an_empty_node_gets_chains_rules_and_jumps_in_one_script() {
        let repair = plan("", &wanted()).unwrap();
        let expected = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
COMMIT
"#;
        assert_eq!(repair.script, expected);
        let phrases = ["IPv4 nat: FLANNEL-POSTRTG made, with 6 rules", "IPv4 filter: FLANNEL-FWD made, with 2 rules"];
        assert_eq!(repair.phrases, phrases);
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        assert_eq!(plan(&whole(), &wanted()), None);
        let others = whole().replace(
            "COMMIT",
            "-A KUBE-X -m comment --comment \"-j FLANNEL-FWD \\\" -j FLANNEL-POSTRTG\" -j RETURN\nCOMMIT",
        );
        assert_eq!(plan(&others, &wanted()), None);
    }

    #[test]
    fn only_the_table_with_a_difference_is_written() {
        let forward = "-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n";
        let repair = plan(&whole().replace(forward, ""), &wanted()).unwrap();
        assert_eq!(repair.phrases, ["IPv4 filter: FLANNEL-FWD rewritten: 1 of 2 rules missing"]);
        assert!(repair.script.starts_with("*filter\n:FLANNEL-FWD - [0:0]\n") && !repair.script.contains("*nat"));
        assert!(!repair.script.contains("FORWARD"), "the jump is there already");
    }

    #[test]
    fn jumps_are_mended_without_touching_the_rules() {
        let jump = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
        let cases = [
            (whole().replace(jump, ""), jump.to_owned(), "jump from FORWARD to FLANNEL-FWD was missing"),
            (
                whole().replace(jump, &jump.repeat(2)),
                jump.replace("-A", "-D"),
                "second jump to FLANNEL-FWD removed from FORWARD",
            ),
            (
                whole().replace(jump, &format!("-A FORWARD -g FLANNEL-FWD\n{jump}")),
                "-D FORWARD -g FLANNEL-FWD\n".to_owned(),
                "jump `-g FLANNEL-FWD` removed from FORWARD",
            ),
        ];
        for (dump, line, phrase) in cases {
            let repair = plan(&dump, &wanted()).unwrap();
            assert_eq!(repair.script, format!("*filter\n{line}COMMIT\n"));
            assert_eq!(repair.phrases, [format!("IPv4 filter: {phrase}")]);
        }
    }

    #[test]
    fn another_network_replaces_the_rules_of_the_former() {
        let overlay = Overlay { network: "10.6.0.0/16".parse().unwrap(), subnet: "10.6.1.0/24".parse().unwrap() };
        let repair = plan(&whole(), &Wanted { v4: Some(overlay), ..wanted() }).unwrap();
        assert!(repair.script.contains(":FLANNEL-POSTRTG") && !repair.script.contains("10.5."), "{}", repair.script);
        assert!(repair.phrases.iter().any(|phrase| phrase.contains("foreign rule `-s 10.5.1.0/24")));
    }

    #[test]
    fn removal_takes_every_reference_and_nothing_else() {
        let dump = whole().replace("*filter\n", "*filter\n:MINE - [0:0]\n-A MINE -j FLANNEL-FWD\n-A MINE -j DROP\n");
        let repair = plan(&dump, &Wanted::default()).unwrap();
        let nat = "*nat\n-D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
                   -F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n";
        assert!(repair.script.starts_with(nat), "{}", repair.script);
        assert!(repair.script.contains("-D MINE -j FLANNEL-FWD\n") && !repair.script.contains("DROP"));
        assert_eq!(plan("", &Wanted::default()), None);
    }
}
