//! In what a chain differs from what it should be, for people.

/// Phrases for everything in which `found` differs from `wanted`; none, if they are equal. `show` tells a rule in one line.
pub fn differences<T: PartialEq>(found: &[T], wanted: &[T], show: impl Fn(&T) -> String) -> Vec<String> {
    if found == wanted {
        return Vec::new();
    }
    let mut phrases = Vec::new();
    let count = |rules: &[T], rule: &T| rules.iter().filter(|other| *other == rule).count();
    let missing = wanted.iter().filter(|rule| count(found, rule) == 0).count();
    if missing > 0 {
        phrases.push(format!("{missing} of {} rules missing", wanted.len()));
    }
    for (index, rule) in found.iter().enumerate() {
        let is_first = !found[..index].contains(rule);
        if !wanted.contains(rule) {
            phrases.push(format!("foreign rule `{}`", show(rule)));
        } else if is_first && count(found, rule) > count(wanted, rule) {
            phrases.push(format!("rule `{}` there {} times", show(rule), count(found, rule)));
        }
    }
    if phrases.is_empty() {
        phrases.push("rules out of order".to_owned());
    }
    phrases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_difference_has_its_phrase() {
        let cases: [(&[&str], &[&str]); 6] = [
            (&["a", "b", "c"], &[]),
            (&[], &["3 of 3 rules missing"]),
            (&["a", "c"], &["1 of 3 rules missing"]),
            (&["a", "c", "b"], &["rules out of order"]),
            (&["a", "b", "b", "c"], &["rule `b` there 2 times"]),
            (&["x", "a", "c"], &["1 of 3 rules missing", "foreign rule `x`"]),
        ];
        for (found, expected) in cases {
            let phrases = differences(found, &["a", "b", "c"], |rule| (*rule).to_owned());
            assert_eq!(phrases, expected, "{found:?}");
        }
    }
}
