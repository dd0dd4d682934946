//! The prefix by which stock flannel's nodes name their annotations where Kubernetes is the registry
//! (`pkg/subnet/kube/annotations.go`): `--kube-annotation-prefix`.
//!
//! ```text
//! flannel.alpha.coreos.com      flannel.alpha.coreos.com/backend-type
//! org.com/9                     org.com/9-backend-type
//! org                           refused: no domain name
//! ```

/// What all names under a prefix begin with; or what is wrong with the prefix.
///
/// # Errors
/// It is no domain name of at least two parts, in lower case, with perhaps a slash and the beginning of a name behind it.
/// Stock flannel looks at the end of a prefix only, and so takes `A.org.com` for `org.com`, which Kubernetes then refuses;
/// all of it counts here.
pub fn complete(prefix: &str) -> Result<String, String> {
    let (domain, begin) = prefix.split_once('/').unwrap_or((prefix, ""));
    if begin.contains('/') {
        return Err("it has more than one slash".to_owned());
    }
    let is_plain = |part: &str| part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    let is_label = |label: &str| !label.is_empty() && is_plain(label);
    if !domain.contains('.') || !domain.split('.').all(is_label) {
        return Err(format!("{domain:?} is no domain name of several parts in lower case, such as \"example.org\""));
    }
    if !is_plain(begin) {
        return Err(format!("{begin:?} has other characters than a to z, 0 to 9, \"_\" and \"-\""));
    }
    let dash = if begin.is_empty() || begin.ends_with('-') { "" } else { "-" };
    Ok(format!("{domain}/{begin}{dash}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_completed_and_refused_as_stock_flannel_does() {
        let stock = [
            ("flannel.alpha.coreos.com", Some("flannel.alpha.coreos.com/backend-type")),
            ("flannel.alpha.coreos.com/", Some("flannel.alpha.coreos.com/backend-type")),
            ("flannel.alpha.coreos.com/prefix", Some("flannel.alpha.coreos.com/prefix-backend-type")),
            ("flannel.alpha.coreos.com/prefix-", Some("flannel.alpha.coreos.com/prefix-backend-type")),
            ("org.com", Some("org.com/backend-type")),
            ("org9.com", Some("org9.com/backend-type")),
            ("org.com/9", Some("org.com/9-backend-type")),
            ("org", None),
            ("org/", None),
            ("org/prefix", None),
            ("org.COM", None),
            ("org.com/PREFIX", None),
        ];
        let more = [
            ("a_b-c.d", Some("a_b-c.d/backend-type")),
            ("org.com/a_b", Some("org.com/a_b-backend-type")),
            ("org.com/-", Some("org.com/-backend-type")),
            ("org.com/a--", Some("org.com/a--backend-type")),
            ("", None),
            ("/", None),
            ("/prefix", None),
            (".", None),
            ("org.", None),
            (".com", None),
            ("org..com", None),
            ("org.com//", None),
            ("org.com/a/", None),
            ("org.com/a/b", None),
            ("org.com/a.b", None),
            ("org.com/a b", None),
            ("org.com ", None),
            ("a org.com", None),
            ("ORG.org.com", None),
            ("\u{f6}rg.com", None),
            ("org.com\n", None),
        ];
        for (prefix, expected) in stock.into_iter().chain(more) {
            let name = complete(prefix).map(|begin| begin + "backend-type");
            assert_eq!(name.as_deref().ok(), expected, "{prefix:?}: {name:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (prefix, why) in [
            ("org", "\"org\" is no domain name"),
            ("org.com/a/b", "more than one slash"),
            ("org.com/A", "\"A\" has other characters"),
        ] {
            assert!(complete(prefix).unwrap_err().contains(why), "{prefix}");
        }
    }
}
