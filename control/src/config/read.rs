//! Takes typed values out of a TOML table, and reports everything that has the wrong type or a name nobody knows.
//!
//! serde stops at the first error; a person who edits a file wants all of them, so the tables are walked here.

use super::{Keyword, Report};
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table and where it stands. Getters return `None` for a missing key without a word, and for a wrong value after
/// reporting it.
pub struct Section<'t> {
    table: &'t DeTable<'t>,
    path: String,
    /// Bytes of the text that the table, or its header, covers.
    pub span: Range<usize>,
}

impl<'t> Section<'t> {
    /// Wraps `table`, which is called `path` (empty for the whole file), and reports every key that is not in `keys`.
    pub fn new(table: &'t Spanned<DeTable<'t>>, keys: &[&str], report: &mut Report) -> Section<'t> {
        Section::at(table.get_ref(), String::new(), table.span(), keys, report)
    }

    fn at(table: &'t DeTable<'t>, path: String, span: Range<usize>, keys: &[&str], report: &mut Report) -> Section<'t> {
        let section = Section { table, path, span };
        for (key, _) in table.iter().filter(|(key, _)| !keys.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let hint = hint_for_unknown(name, keys);
            report.error(key.span(), &section.path_of(name), "unknown key", hint);
        }
        section
    }

    /// The full name of `key`, as `peer[0].endpoint`.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key`, whatever it is.
    fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    /// Whether `key` is there, right or wrong.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether `key` is an array without items.
    pub fn is_empty_array(&self, key: &str) -> bool {
        self.value(key).and_then(|value| value.get_ref().as_array()).is_some_and(|array| array.is_empty())
    }

    /// A string.
    pub fn text(&self, key: &str, report: &mut Report) -> Option<Spanned<&'t str>> {
        let value = self.value(key)?;
        self.as_text(value, &self.path_of(key), report)
    }

    /// A string, or an array of strings; an empty array is an empty list.
    pub fn texts(&self, key: &str, report: &mut Report) -> Vec<Spanned<&'t str>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let path = self.path_of(key);
        match value.get_ref() {
            DeValue::Array(array) => array
                .iter()
                .enumerate()
                .filter_map(|(index, item)| self.as_text(item, &format!("{path}[{index}]"), report))
                .collect(),
            DeValue::String(_) => self.as_text(value, &path, report).into_iter().collect(),
            other => {
                report.error(
                    value.span(),
                    &path,
                    wrong_type(other, "a string or an array of strings"),
                    "put it in quotes",
                );
                Vec::new()
            }
        }
    }

    /// A whole number within `range`; `what` says what it counts.
    pub fn integer(
        &self,
        key: &str,
        range: RangeInclusive<u32>,
        what: &str,
        report: &mut Report,
    ) -> Option<Spanned<u32>> {
        let value = self.value(key)?;
        let (low, high) = (range.start(), range.end());
        let DeValue::Integer(integer) = value.get_ref() else {
            let expected = format!("a whole number of {what} in {low}..={high}");
            let hint = if value.get_ref().as_str().is_some() { "write it without quotes" } else { "" };
            report.error(value.span(), &self.path_of(key), wrong_type(value.get_ref(), &expected), hint);
            return None;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(Spanned::new(value.span(), number)),
            _ => {
                let message = format!("{integer} is out of range; {what} in {low}..={high} were expected");
                report.error(value.span(), &self.path_of(key), message, "");
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str, report: &mut Report) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            other => {
                report.error(
                    value.span(),
                    &self.path_of(key),
                    wrong_type(other, "true or false"),
                    "write it without quotes",
                );
                None
            }
        }
    }

    /// One of the words of `K`.
    pub fn keyword<K: Keyword>(&self, key: &str, report: &mut Report) -> Option<K> {
        let text = self.text(key, report)?;
        let found = K::WORDS.iter().find(|(word, _)| word == text.get_ref());
        if found.is_none() {
            let words: Vec<&str> = K::WORDS.iter().map(|(word, _)| *word).collect();
            let hint =
                closest(text.get_ref(), &words).map(|word| format!("did you mean \"{word}\"?")).unwrap_or_default();
            let message = format!("{:?} is not one of {}", text.get_ref(), words.join(", "));
            report.error(text.span(), &self.path_of(key), message, hint);
        }
        found.map(|(_, value)| *value)
    }

    /// A table inside this one.
    pub fn section(&self, key: &str, keys: &[&str], report: &mut Report) -> Option<Section<'t>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::at(table, self.path_of(key), value.span(), keys, report)),
            other => {
                let message = wrong_type(other, "a table");
                report.error(
                    value.span(),
                    &self.path_of(key),
                    message,
                    format!("begin it with [{key}] on its own line"),
                );
                None
            }
        }
    }

    /// An array of tables inside this one.
    pub fn sections(&self, key: &str, keys: &[&str], report: &mut Report) -> Vec<Section<'t>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let hint = format!("begin each with [[{key}]], in two brackets, on its own line");
        let DeValue::Array(array) = value.get_ref() else {
            report.error(value.span(), &self.path_of(key), wrong_type(value.get_ref(), "an array of tables"), hint);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            match item.get_ref() {
                DeValue::Table(table) => sections.push(Section::at(table, path, item.span(), keys, report)),
                other => report.error(item.span(), &path, wrong_type(other, "a table"), hint.as_str()),
            }
        }
        sections
    }

    fn as_text(&self, value: &'t Spanned<DeValue<'t>>, path: &str, report: &mut Report) -> Option<Spanned<&'t str>> {
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
            other => {
                report.error(value.span(), path, wrong_type(other, "a string"), "put it in quotes");
                None
            }
        }
    }
}

fn wrong_type(value: &DeValue<'_>, expected: &str) -> String {
    let article = if value.type_str().starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("is {article} {}; {expected} was expected", value.type_str())
}

/// What the reader of an unknown key should do: a word from WireGuard's or flannel's configuration is answered with
/// ours, a misspelling with the closest key.
fn hint_for_unknown(name: &str, keys: &[&str]) -> String {
    let folded: String =
        name.chars().filter(|letter| letter.is_alphanumeric()).collect::<String>().to_ascii_lowercase();
    if let Some((_, hint)) = FOREIGN_KEYS.iter().find(|(foreign, _)| *foreign == folded) {
        return (*hint).to_owned();
    }
    match closest(name, keys) {
        Some(key) => format!("did you mean `{key}`?"),
        None => format!("known here are: {}", keys.join(", ")),
    }
}

/// The candidate that `name` was probably meant to be.
fn closest<'c>(name: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let folded = name.to_ascii_lowercase();
    candidates
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&folded, candidate), *candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Jaro-Winkler similarity from which a word counts as misspelt; clap uses the same measure with 0.7 and suggests too
/// much with short keys.
const SIMILARITY_MIN: f64 = 0.8;

/// Keys that people know from WireGuard (wg(8), wg-quick(8)) and flannel, folded to lower case without punctuation.
const FOREIGN_KEYS: &[(&str, &str)] = &[
    ("allowedips", "WireGuard's AllowedIPs are `subnets` of a [[peer]]"),
    ("listenport", "WireGuard's ListenPort is part of `listen`, as in listen = \"0.0.0.0:8285\""),
    ("port", "the port is part of `listen` here and of `endpoint` in a [[peer]]"),
    ("privatekey", "weft has no keys: it does not encrypt. Run it on a trusted or encrypted underlay"),
    ("publickey", "weft has no keys: it does not encrypt. Run it on a trusted or encrypted underlay"),
    ("presharedkey", "weft has no keys: it does not encrypt. Run it on a trusted or encrypted underlay"),
    ("persistentkeepalive", "weft sends no keepalives; leave it out"),
    ("interface", "the keys of this end stand at the top of the file, outside any table"),
    ("peers", "begin each peer with [[peer]]"),
    ("backend", "weft speaks flannel's udp backend only; the port is part of `listen`"),
    ("publicip", "a peer's underlay address is its `endpoint`"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_its_key() {
        let keys = ["name", "subnets", "endpoint", "aliases"];
        for (word, expected) in [
            ("subnet", Some("subnets")),
            ("Endpoint", Some("endpoint")),
            ("end_point", Some("endpoint")),
            ("zzz", None),
        ] {
            assert_eq!(closest(word, &keys), expected, "{word}");
        }
    }

    #[test]
    fn a_word_from_wireguard_is_answered_with_ours() {
        for word in ["AllowedIPs", "allowed_ips", "allowed-ips"] {
            assert!(hint_for_unknown(word, &["subnets"]).contains("`subnets`"), "{word}");
        }
    }
}
