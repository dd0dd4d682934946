//! Whether the kernel shows bridged packets to the rules, which pods on one bridge may depend on.

use std::path::Path;

/// What is missing for packets that cross a bridge to be seen by iptables, a sentence for each family; nothing, if all is
/// well. flannel refuses to start; but a node without bridges, or with nftables rules, needs none of it.
pub fn bridge_filter_warnings(v4: bool, v6: bool) -> Vec<String> {
    warnings(Path::new("/proc/sys/net/bridge"), v4, v6)
}

fn warnings(dir: &Path, v4: bool, v6: bool) -> Vec<String> {
    let families = [(v4, "bridge-nf-call-iptables", "IPv4"), (v6, "bridge-nf-call-ip6tables", "IPv6")];
    let missing = families.into_iter().filter(|(wanted, file, _)| *wanted && !dir.join(file).exists());
    missing
        .map(|(_, file, family)| {
            format!(
                "{} does not exist: the module br_netfilter is not loaded, so {family} packets between pods on one bridge pass \
                 by iptables, and a pod that calls a Service which a pod of its own node serves gets no answer; `modprobe \
                 br_netfilter` loads it",
                dir.join(file).display()
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_and_needed_is_warned_about() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bridge-nf-call-iptables"), "1").unwrap();
        assert!(warnings(dir.path(), true, false).is_empty());
        let both = warnings(dir.path(), true, true);
        assert!(
            both.len() == 1 && both[0].contains("bridge-nf-call-ip6tables") && both[0].contains("modprobe"),
            "{both:?}"
        );
    }
}
