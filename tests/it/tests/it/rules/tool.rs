//! The programs of one way of making rules, on a node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use weft_control::rules::{Mode, Overlay, Programs, Rules, Wanted};
use weft_lab::{Lab, Node};

/// Where the packages nftables and iptables put their programs.
const SBIN: &str = "/usr/sbin";

/// A way of making rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// iptables on top of nftables.
    IptablesNft,
    /// iptables of the kernel's own.
    IptablesLegacy,
    /// nft.
    Nft,
}

impl Tool {
    /// All, for loops.
    pub const ALL: [Tool; 3] = [Tool::IptablesNft, Tool::IptablesLegacy, Tool::Nft];
    /// The two that are called iptables.
    pub const IPTABLES: [Tool; 2] = [Tool::IptablesNft, Tool::IptablesLegacy];

    pub fn mode(self) -> Mode {
        if self == Tool::Nft { Mode::Nftables } else { Mode::Iptables }
    }

    fn flavour(self) -> &'static str {
        if self == Tool::IptablesLegacy { "legacy" } else { "nft" }
    }

    /// The programs of a node whose `iptables` is this one.
    pub fn programs(self, lab: &Lab) -> Result<Programs> {
        let dir = self.directory(lab)?;
        Ok(Programs::within([dir, PathBuf::from(SBIN), "/usr/bin".into(), "/bin".into()]))
    }

    /// A directory in which `iptables`, `ip6tables-save` and so on are those of this flavour.
    fn directory(self, lab: &Lab) -> Result<PathBuf> {
        let dir = lab.directory().join(format!("bin-{}", self.flavour()));
        if dir.exists() {
            return Ok(dir);
        }
        fs::create_dir(&dir)?;
        ensure!(Path::new(SBIN).join("nft").exists(), "{SBIN}/nft is missing: install the package nftables");
        for stem in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                let target = Path::new(SBIN).join(format!("{stem}-{}{verb}", self.flavour()));
                ensure!(target.exists(), "{} is missing: install the package iptables", target.display());
                symlink(target, dir.join(format!("{stem}{verb}")))?;
            }
        }
        Ok(dir)
    }

    /// Starts on a node; gives the rules and what was said about others' remains.
    pub fn start(self, lab: &Lab, node: &Node) -> Result<(Rules, Vec<String>)> {
        let programs = self.programs(lab)?;
        Ok(node.run(|| Rules::start(self.mode(), programs))?)
    }

    /// Runs a shell script on a node, with the flavour's `iptables`; gives its output.
    pub fn sh(self, lab: &Lab, node: &Node, script: &str) -> Result<String> {
        let path = format!("{}:{SBIN}:/usr/bin:/bin", self.directory(lab)?.display());
        let mut command = Command::new("sh");
        command.args(["-ec", script]).env("PATH", path);
        let output = node.run(|| command.stdin(Stdio::null()).output()).context("sh")?;
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(output.status.success(), "{self:?}: `{script}` failed: {err}{out}");
        Ok(out)
    }

    /// All rules, without what changes by itself.
    pub fn dump(self, lab: &Lab, node: &Node) -> Result<String> {
        let script = match self {
            Tool::Nft => "nft list ruleset",
            _ => "iptables-save; ip6tables-save",
        };
        let text = self.sh(lab, node, script)?;
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(|line| match line.split_once(" [") {
            Some((chain, _)) if chain.starts_with(':') => chain,
            _ => line,
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Both families, everything on.
pub fn wanted() -> Wanted {
    let overlay = |network: &str, subnet: &str| {
        Some(Overlay { network: network.parse().expect("a prefix"), subnet: subnet.parse().expect("a prefix") })
    };
    Wanted {
        v4: overlay("10.5.0.0/16", "10.5.1.0/24"),
        v6: overlay("fd05::/48", "fd05:0:0:1::/64"),
        masquerade: true,
        random_fully: true,
        forward: true,
    }
}
