//! Names of the annotations by which stock flannel's nodes find each other where Kubernetes is the registry
//! (`pkg/subnet/kube/annotations.go`): a prefix, which `--kube-annotation-prefix` gives, and ten fixed ends.
//!
//! ```text
//! flannel.alpha.coreos.com      flannel.alpha.coreos.com/backend-type
//! org.com/9                     org.com/9-backend-type
//! org                           refused: no domain name
//! ```

/// All names under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotations {
    /// `"true"` on a node that flannel looks after.
    pub kube_subnet_manager: String,
    /// `BackendType` of a lease.
    pub backend_type: String,
    /// `BackendData` of a lease, as JSON.
    pub backend_data: String,
    /// `BackendV6Data` of a lease, as JSON.
    pub backend_v6_data: String,
    /// `PublicIP` of a lease.
    pub public_ip: String,
    /// `PublicIPv6` of a lease.
    pub public_ipv6: String,
    /// What an administrator has published in the place of the node's own public IP.
    pub public_ip_overwrite: String,
    /// The same for IPv6.
    pub public_ipv6_overwrite: String,
    /// What an administrator gives as `--public-ip`.
    pub node_public_ip: String,
    /// What an administrator gives as `--public-ipv6`.
    pub node_public_ipv6: String,
}

impl Annotations {
    /// The names under a prefix; or what is wrong with it.
    ///
    /// # Errors
    /// It is no domain name of at least two parts, in lower case, with perhaps a slash and the beginning of a name behind it.
    /// Stock flannel looks at the end of a prefix only, and so takes `A.org.com` for `org.com`, which Kubernetes then refuses;
    /// all of it counts here.
    pub fn new(prefix: &str) -> Result<Annotations, String> {
        let (domain, begin) = prefix.split_once('/').unwrap_or((prefix, ""));
        if begin.contains('/') {
            return Err("it has more than one slash".to_owned());
        }
        let is_plain = |part: &str| part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        let is_label = |label: &str| !label.is_empty() && is_plain(label);
        if !domain.contains('.') || !domain.split('.').all(is_label) {
            return Err(format!(
                "{domain:?} is no domain name of several parts in lower case, such as \"example.org\""
            ));
        }
        if !is_plain(begin) {
            return Err(format!("{begin:?} has other characters than a to z, 0 to 9, \"_\" and \"-\""));
        }
        let dash = if begin.is_empty() || begin.ends_with('-') { "" } else { "-" };
        let name = |end: &str| format!("{domain}/{begin}{dash}{end}");
        Ok(Annotations {
            kube_subnet_manager: name("kube-subnet-manager"),
            backend_type: name("backend-type"),
            backend_data: name("backend-data"),
            backend_v6_data: name("backend-v6-data"),
            public_ip: name("public-ip"),
            public_ipv6: name("public-ipv6"),
            public_ip_overwrite: name("public-ip-overwrite"),
            public_ipv6_overwrite: name("public-ipv6-overwrite"),
            node_public_ip: name("node-public-ip"),
            node_public_ipv6: name("node-public-ipv6"),
        })
    }
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
            let names = Annotations::new(prefix);
            assert_eq!(names.as_ref().ok().map(|names| names.backend_type.as_str()), expected, "{prefix:?}: {names:?}");
        }
    }

    #[test]
    fn the_ten_names_are_those_of_stock_flannel() {
        let name = |end: &str| format!("flannel.alpha.coreos.com/{end}");
        let expected = Annotations {
            kube_subnet_manager: name("kube-subnet-manager"),
            backend_type: name("backend-type"),
            backend_data: name("backend-data"),
            backend_v6_data: name("backend-v6-data"),
            public_ip: name("public-ip"),
            public_ipv6: name("public-ipv6"),
            public_ip_overwrite: name("public-ip-overwrite"),
            public_ipv6_overwrite: name("public-ipv6-overwrite"),
            node_public_ip: name("node-public-ip"),
            node_public_ipv6: name("node-public-ipv6"),
        };
        assert_eq!(Annotations::new("flannel.alpha.coreos.com"), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (prefix, why) in [
            ("org", "\"org\" is no domain name"),
            ("org.com/a/b", "more than one slash"),
            ("org.com/A", "\"A\" has other characters"),
        ] {
            assert!(Annotations::new(prefix).unwrap_err().contains(why), "{prefix}");
        }
    }
}
