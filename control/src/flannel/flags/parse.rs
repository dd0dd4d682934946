//! Command lines as Go's `flag` package reads them: one dash or two, `--x VALUE` or `--x=VALUE`, booleans without a value or
//! with `=`, and the first argument that is no flag ends them.

use super::table::{FLAGS, Flag, Kind};
use crate::state::RUN_DIR_VARIABLE;
use std::collections::BTreeMap;

/// What is wrong with a command line or a variable, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FlagError(pub String);

/// Values as they were written, by flag. A list has one for each time that it was given, any other flag its last.
pub type Values = BTreeMap<&'static str, Vec<String>>;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To run with these.
    Run(Values),
    /// The usage text: `-h` or `--help`.
    Help,
}

/// Reads a command line without the program's name.
pub fn command_line(arguments: &[String]) -> Result<Asked, FlagError> {
    let mut values = Values::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
            return Err(FlagError(format!("{argument:?} is not a flag, and there is nothing else to give")));
        };
        let text = text.strip_prefix('-').unwrap_or(text);
        if text.is_empty() {
            return match rest.next() {
                None => break,
                Some(extra) => Err(FlagError(format!("{extra:?} is not a flag, and there is nothing else to give"))),
            };
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
            if ["h", "help"].contains(&name) {
                return Ok(Asked::Help);
            }
            return Err(FlagError(format!("there is no flag {argument:?}{}", nearest(name))));
        };
        let value = match (flag.kind, value) {
            (_, Some(value)) => value,
            (Kind::Bool, None) => "true".to_owned(),
            (_, None) => match rest.next() {
                Some(value) => value.clone(),
                None => return Err(FlagError(format!("--{name} needs a value"))),
            },
        };
        add(&mut values, flag, value);
    }
    Ok(Asked::Run(values))
}

/// Adds what variables say about flags that the command line does not give. An empty variable says nothing. A repeatable flag
/// gets one value from its variable.
pub fn environment(values: &mut Values, variable: impl Fn(&str) -> Option<String>) {
    let said = |name: &str| variable(name).filter(|value| !value.is_empty());
    for flag in FLAGS {
        if values.contains_key(flag.name) {
            continue;
        }
        let shared = || if flag.name == "run-dir" { said(RUN_DIR_VARIABLE) } else { None };
        if let Some(value) = said(&flag.variable()).or_else(shared) {
            add(values, flag, value);
        }
    }
}

fn add(values: &mut Values, flag: &Flag, value: String) {
    let given = values.entry(flag.name).or_default();
    if flag.kind != Kind::List {
        given.clear();
    }
    given.push(value);
}

fn nearest(name: &str) -> String {
    let by_distance = FLAGS.iter().map(|flag| (strsim::damerau_levenshtein(name, flag.name), flag.name)).min();
    match by_distance {
        Some((distance, nearest)) if distance <= 2 && nearest.len() > 2 => format!("; did you mean --{nearest}?"),
        _ => String::new(),
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// An integer as Go's `strconv.ParseInt` with base 0 reads it: decimal, or by a prefix hexadecimal, octal or binary, with `_`
/// between digits of the prefixed forms.
pub fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)];
    let with_prefix = prefixed.iter().find_map(|(prefix, base)| Some((lower.strip_prefix(prefix)?, *base)));
    let (digits, base) = with_prefix.filter(|(digits, _)| !digits.is_empty()).unwrap_or((&lower, 10));
    let plain = if base == 10 { digits.to_owned() } else { digits.replace('_', "") };
    if !plain.starts_with(|first: char| first.is_digit(base)) {
        return None;
    }
    let magnitude = i64::from_str_radix(&plain, base).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}
