//! Rules by nftables: `nft -j list table` to see what is there, one atomic `nft -f` to mend it.
//!
//! ```text
//! table ip flannel-ipv4    chain postrtg   nat,    postrouting, srcnat   the masquerading rules
//! table ip6 flannel-ipv6   chain forward   filter, forward,     filter   the forward rules
//! ```
//!
//! What is there is read as JSON, into the types of the `nftables` crate. What is written is nft's own language, because
//! the JSON of nft has no place for the comments of tables and chains that flannel's have (nft 1.0.6 drops them).

use super::differ::differences;
use super::program::{ProgramError, Programs};
use super::wanted::{Family, Rule, Wanted};
use super::{Repair, RulesError, WITHOUT};
use nftables::schema::{Chain as FoundChain, NfListObject};
use nftables::stmt::Statement;
use nftables::types::{NfChainPolicy, NfChainType, NfHook};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

/// The package that has nft, in Debian and Alpine.
const PACKAGE: &str = "nftables";

/// The program, and what it can do here.
#[derive(Debug)]
pub struct Nft {
    program: PathBuf,
    /// The kernel can choose ports at random when masquerading (since 3.14).
    pub random_fully: bool,
}

/// A chain of ours.
struct Chain {
    name: &'static str,
    comment: &'static str,
    kind: NfChainType,
    hook: NfHook,
    /// As nft writes it, and as a number (`enum nf_ip_hook_priorities`, include/uapi/linux/netfilter_ipv4.h).
    priority: (&'static str, i32),
    rules: Vec<Rule>,
}

/// One rule as nft lists it.
#[derive(Debug, PartialEq)]
enum Listed {
    /// Such as ours are.
    Plain(Vec<Statement<'static>>),
    /// With a comment, or of statements that the crate does not know: nobody but a stranger writes those.
    Strange(Value),
}

/// A table of ours as nft lists it.
#[derive(Debug, Default)]
struct Listing {
    chains: HashMap<String, (FoundChain<'static>, Vec<Listed>)>,
}

impl Nft {
    /// The program; `None`: it is not installed.
    pub fn find(programs: &Programs) -> Option<Nft> {
        Some(Nft { program: programs.find("nft")?, random_fully: true })
    }

    /// What to say where [`Nft::find`] gives nothing.
    pub fn missing() -> ProgramError {
        ProgramError::Missing { program: "nft".into(), package: PACKAGE, without: WITHOUT }
    }

    /// Finds out what the kernel can do, by transactions that are checked and not made.
    ///
    /// # Errors
    /// nft can do nothing here: no permission, or a kernel without nat.
    pub fn probe(&mut self, programs: &Programs) -> Result<(), ProgramError> {
        let mut check = |random_fully: bool| {
            self.random_fully = random_fully;
            let flag = if random_fully { " fully-random" } else { "" };
            let script = format!(
                "add table ip weft-probe\nadd chain ip weft-probe c {{ type nat hook postrouting priority srcnat ; }}\n\
                 add rule ip weft-probe c masquerade{flag}\n"
            );
            programs.run(&self.program, &["-c", "-f", "-"], &script).map(drop)
        };
        check(true).or_else(|_| check(false))
    }

    /// What it takes to make one family's table as `wanted` says; `None`: it is.
    pub fn plan(&self, programs: &Programs, family: Family, wanted: &Wanted) -> Result<Option<Repair>, RulesError> {
        let wanted = Wanted { random_fully: wanted.random_fully && self.random_fully, ..*wanted };
        let found = match programs.run(&self.program, &["-j", "list", "table", family.nft(), table(family)], "") {
            Ok(json) => Some(Listing::parse(&json).map_err(RulesError::Listing)?),
            Err(error) if error.is_absence() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(repair(found.as_ref(), family, &chains(&wanted, family)))
    }

    /// Makes the changes of a plan: all or none.
    pub fn write(&self, programs: &Programs, script: &str) -> Result<(), ProgramError> {
        programs.run(&self.program, &["-f", "-"], script).map(drop)
    }
}

fn table(family: Family) -> &'static str {
    if family == Family::V4 { "flannel-ipv4" } else { "flannel-ipv6" }
}

fn chains(wanted: &Wanted, family: Family) -> [Chain; 2] {
    [
        Chain {
            name: "postrtg",
            comment: "chain to manage traffic masquerading by flannel",
            kind: NfChainType::NAT,
            hook: NfHook::Postrouting,
            priority: ("srcnat", 100),
            rules: wanted.masquerade_nft(family),
        },
        Chain {
            name: "forward",
            comment: "chain to accept flannel traffic",
            kind: NfChainType::Filter,
            hook: NfHook::Forward,
            priority: ("filter", 0),
            rules: wanted.forward(family),
        },
    ]
}

fn repair(found: Option<&Listing>, family: Family, chains: &[Chain]) -> Option<Repair> {
    let (header, table) = (family.nft(), table(family));
    let wants_table = chains.iter().any(|chain| !chain.rules.is_empty());
    let mut repair = Repair::default();
    let mut note = |phrase: String| repair.phrases.push(format!("{family} table {table}: {phrase}"));
    if !wants_table {
        found?;
        note("removed".into());
        repair.script = format!("delete table {header} {table}\n");
        return Some(repair);
    }
    let mut script = format!("add table {header} {table} {{ comment \"rules for {table}\" ; }}\n");
    for chain in chains {
        let (name, place) = (chain.name, format!("{header} {table} {}", chain.name));
        let there = found.and_then(|listing| listing.chains.get(name));
        let delete = format!("flush chain {place}\ndelete chain {place}\n");
        match there {
            None if chain.rules.is_empty() => continue,
            Some(_) if chain.rules.is_empty() => {
                note(format!("chain {name} removed"));
                script += &delete;
                continue;
            }
            None => note(format!("chain {name} made, with {} rules", chain.rules.len())),
            Some((properties, rules)) => {
                let is_ours = chain.has_properties(properties);
                let wanted: Vec<Listed> =
                    chain.rules.iter().map(|rule| Listed::Plain(rule.statements(family))).collect();
                let differences = differences(rules, &wanted, Listed::show);
                if !is_ours {
                    note(format!("chain {name} was another than flannel's, made anew"));
                    script += &delete;
                } else if differences.is_empty() {
                    continue;
                }
                differences.iter().for_each(|difference| note(format!("chain {name} rewritten: {difference}")));
            }
        }
        let (kind, hook) = if chain.kind == NfChainType::NAT { ("nat", "postrouting") } else { ("filter", "forward") };
        let (priority, comment) = (chain.priority.0, chain.comment);
        // Writing to a string does not fail.
        let _ = writeln!(
            script,
            "add chain {place} {{ type {kind} hook {hook} priority {priority} ; comment \"{comment}\" ; }}\nflush chain {place}"
        );
        chain.rules.iter().for_each(|rule| script.extend(["add rule ", &place, " ", &rule.nft(family), "\n"]));
    }
    repair.script = script;
    (!repair.phrases.is_empty()).then_some(repair)
}

impl Chain {
    fn has_properties(&self, found: &FoundChain<'_>) -> bool {
        found._type == Some(self.kind)
            && found.hook == Some(self.hook)
            && found.prio == Some(self.priority.1)
            && found.policy.is_none_or(|policy| policy == NfChainPolicy::Accept)
    }
}

impl Listing {
    /// Reads what `nft -j list table` prints. Objects that are neither chains nor rules do not matter here.
    fn parse(json: &str) -> Result<Listing, serde_json::Error> {
        #[derive(serde::Deserialize)]
        struct Document {
            nftables: Vec<Value>,
        }
        let mut listing = Listing::default();
        for object in serde_json::from_str::<Document>(json)?.nftables {
            if let Some(rule) = object.get("rule") {
                let chain = rule.get("chain").and_then(Value::as_str).unwrap_or_default();
                if let Some((_, rules)) = listing.chains.get_mut(chain) {
                    rules.push(Listed::of(rule));
                }
            } else if object.get("chain").is_some()
                && let NfListObject::Chain(chain) = serde_json::from_value(object)?
            {
                listing.chains.insert(chain.name.to_string(), (chain, Vec::new()));
            }
        }
        Ok(listing)
    }
}

impl Listed {
    fn of(rule: &Value) -> Listed {
        let mut statements = rule.get("expr").cloned().unwrap_or_default();
        statements.as_array_mut().into_iter().flatten().for_each(flags_as_list);
        match serde_json::from_value(statements) {
            Ok(statements) if rule.get("comment").is_none() => Listed::Plain(statements),
            _ => Listed::Strange(rule.get("expr").cloned().unwrap_or_default()),
        }
    }

    fn show(&self) -> String {
        match self {
            Listed::Plain(statements) => serde_json::to_string(statements).unwrap_or_default(),
            Listed::Strange(expr) => expr.to_string(),
        }
    }
}

/// nft writes one flag as a text and several as a list; the crate reads lists only.
fn flags_as_list(statement: &mut Value) {
    let flags = statement.get_mut("masquerade").and_then(|masquerade| masquerade.get_mut("flags"));
    if let Some(flags) = flags.filter(|flags| flags.is_string()) {
        *flags = Value::Array(vec![flags.take()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::wanted::Overlay;

    /// What nft 1.0.6 prints after [`repair`] of nothing; `FLAGS` may be a text or a list.
    const LISTING: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
{"table": {"family": "ip", "name": "flannel-ipv4", "handle": 2}},
{"chain": {"family": "ip", "table": "flannel-ipv4", "name": "postrtg", "handle": 1, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}},
{"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 2, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 16384}}, {"return": null}]}},
{"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 3, "expr": [SADDR, {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "10.5.0.0", "len": 16}}}}, {"return": null}]}},
{"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 4, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.5.0.0", "len": 16}}}}, {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "10.5.1.0", "len": 24}}}}, {"return": null}]}},
{"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 5, "expr": [{"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.5.1.0", "len": 24}}}}, {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "10.5.0.0", "len": 16}}}}, {"return": null}]}},
{"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 6, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.5.0.0", "len": 16}}}}, {"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "224.0.0.0", "len": 4}}}}, {"masquerade": {"flags": FLAGS}}]}},
{"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 7, "expr": [{"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.5.0.0", "len": 16}}}}, {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "10.5.0.0", "len": 16}}}}, {"masquerade": {"flags": FLAGS}}]}}]}"#;
    const SADDR: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.5.1.0", "len": 24}}}}"#;

    fn wanted() -> Wanted {
        let overlay = Overlay { network: "10.5.0.0/16".parse().unwrap(), subnet: "10.5.1.0/24".parse().unwrap() };
        Wanted { v4: Some(overlay), v6: None, masquerade: true, random_fully: true, forward: false }
    }

    fn listing(flags: &str) -> String {
        LISTING.replace("FLAGS", flags).replace("SADDR", SADDR)
    }

    fn plan(json: &str, wanted: &Wanted) -> Option<Repair> {
        repair(Some(&Listing::parse(json).unwrap()), Family::V4, &chains(wanted, Family::V4))
    }

    #[test]
    fn an_empty_node_gets_flannels_table_in_one_script() {
        let both = Wanted { forward: true, ..wanted() };
        let made = repair(None, Family::V4, &chains(&both, Family::V4)).unwrap();
        let expected = "\
add table ip flannel-ipv4 { comment \"rules for flannel-ipv4\" ; }
add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority srcnat ; comment \"chain to manage traffic masquerading by flannel\" ; }
flush chain ip flannel-ipv4 postrtg
add rule ip flannel-ipv4 postrtg meta mark 0x4000 return
add rule ip flannel-ipv4 postrtg ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return
add rule ip flannel-ipv4 postrtg ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return
add rule ip flannel-ipv4 postrtg ip saddr != 10.5.1.0/24 ip daddr 10.5.0.0/16 return
add rule ip flannel-ipv4 postrtg ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
add rule ip flannel-ipv4 postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
add chain ip flannel-ipv4 forward { type filter hook forward priority filter ; comment \"chain to accept flannel traffic\" ; }
flush chain ip flannel-ipv4 forward
add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept
add rule ip flannel-ipv4 forward ip daddr 10.5.0.0/16 accept
";
        assert_eq!(made.script, expected);
        assert_eq!(made.phrases.len(), 2);
        assert_eq!(repair(None, Family::V4, &chains(&Wanted::default(), Family::V4)), None);
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone_be_a_flag_a_text_or_a_list() {
        for flags in ["\"fully-random\"", "[\"fully-random\"]"] {
            assert_eq!(plan(&listing(flags), &wanted()), None, "{flags}");
        }
    }

    #[test]
    fn a_strange_rule_a_changed_policy_and_an_unwanted_chain_are_noticed() {
        let whole = listing("\"fully-random\"");
        let strange = whole.replace(SADDR, "{\"xt\": {\"type\": \"match\", \"name\": \"unheard-of\"}}");
        let repair = plan(&strange, &wanted()).unwrap();
        assert!(repair.phrases.iter().any(|phrase| phrase.contains("unheard-of")), "{:?}", repair.phrases);
        assert!(repair.phrases.iter().any(|phrase| phrase.contains("1 of 6 rules missing")), "{:?}", repair.phrases);
        let repair = plan(&whole.replace("\"policy\": \"accept\"", "\"policy\": \"drop\""), &wanted()).unwrap();
        assert!(repair.script.contains("delete chain ip flannel-ipv4 postrtg\nadd chain"), "{}", repair.script);
        let repair = plan(&whole, &Wanted { masquerade: false, forward: true, ..wanted() }).unwrap();
        assert!(repair.script.contains("delete chain ip flannel-ipv4 postrtg\nadd chain ip flannel-ipv4 forward"));
        let repair = plan(&whole, &Wanted { v4: None, ..wanted() }).unwrap();
        assert_eq!(repair.script, "delete table ip flannel-ipv4\n");
    }
}
