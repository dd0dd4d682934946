//! Reading and switching the features of a network link by name, as `ethtool -k` and `-K` do.
//!
//! Layouts and numbers: `include/uapi/linux/ethtool.h`, Linux 6.18.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::Node;
use crate::sys::{EthtoolCommand, ethtool};

const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// The features of a link and whether each is active: `tx-udp-segmentation`, `rx-gro`, ...
///
/// # Errors
/// If the node has no such link.
pub fn features(node: &Node, link: &str) -> Result<BTreeMap<String, bool>> {
    node.run(|| Ethtool::open(link)?.active()).with_context(|| format!("reading the features of {link}"))
}

/// Switches features of a link. A name ending in `*` stands for all features that begin so and that the link
/// can switch.
///
/// # Errors
/// If a name is unknown, or the kernel keeps a feature as it was.
pub fn set_features(node: &Node, link: &str, wanted: &[(&str, bool)]) -> Result<()> {
    node.run(|| Ethtool::open(link)?.set(wanted))
        .with_context(|| format!("switching features of {link} on {}", node.name()))
}

/// One link, and the kernel's names of features; a feature's index in `names` is the number of its bit.
struct Ethtool<'a> {
    link: &'a str,
    socket: UdpSocket,
    names: Vec<String>,
}

impl<'a> Ethtool<'a> {
    fn open(link: &'a str) -> Result<Self> {
        let mut this = Self { link, socket: UdpSocket::bind("127.0.0.1:0")?, names: Vec::new() };
        // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), then one count per set bit.
        let info = this.request(EthtoolCommand::SetInfo, &[0, 1 << ETH_SS_FEATURES, 0])?;
        let count = info[4] as usize;
        // struct ethtool_gstrings: cmd, string_set, len, then the strings.
        let strings = this.request(EthtoolCommand::Strings, &[ETH_SS_FEATURES, count as u32])?;
        let bytes: Vec<u8> =
            strings[3..].iter().take(count * ETH_GSTRING_LEN / 4).flat_map(|word| word.to_ne_bytes()).collect();
        this.names = bytes.chunks_exact(ETH_GSTRING_LEN).take(count).map(text).collect();
        Ok(this)
    }

    fn active(&self) -> Result<BTreeMap<String, bool>> {
        let (_, active) = self.state()?;
        Ok(self.names.iter().cloned().zip(active).collect())
    }

    /// For each feature, in the order of `names`: can the link switch it, and is it active?
    fn state(&self) -> Result<(Vec<bool>, Vec<bool>)> {
        // struct ethtool_gfeatures: cmd, size, then blocks of available, requested, active, never_changed.
        let block_count = self.names.len().div_ceil(32);
        let answer = self.request(EthtoolCommand::GetFeatures, &[block_count as u32])?;
        let bits = |word: usize| {
            let bit = |bit: usize| answer[2 + bit / 32 * 4 + word] & (1 << (bit % 32)) != 0;
            (0..self.names.len()).map(bit).collect()
        };
        Ok((bits(0), bits(2)))
    }

    fn set(&self, wanted: &[(&str, bool)]) -> Result<()> {
        // struct ethtool_sfeatures: cmd, size, then blocks of valid, requested.
        let block_count = self.names.len().div_ceil(32);
        let mut arguments = vec![block_count as u32];
        arguments.resize(1 + block_count * 2, 0);
        let (switchable, _) = self.state()?;
        let mut changes = Vec::new();
        for (pattern, on) in wanted {
            let matching: Vec<usize> = match pattern.strip_suffix('*') {
                Some(prefix) => self.bits(|bit, name| name.starts_with(prefix) && switchable[bit]),
                None => self.bits(|_, name| name == *pattern),
            };
            if matching.is_empty() {
                bail!("no feature `{pattern}`");
            }
            for bit in matching {
                let block = 1 + bit / 32 * 2;
                arguments[block] |= 1 << (bit % 32);
                arguments[block + 1] |= u32::from(*on) << (bit % 32);
                changes.push((&self.names[bit], *on));
            }
        }
        self.request(EthtoolCommand::SetFeatures, &arguments)?;
        let active = self.active()?;
        match changes.iter().find(|(name, on)| active[*name] != *on) {
            Some((name, on)) => bail!("the kernel does not switch {name} {}", if *on { "on" } else { "off" }),
            None => Ok(()),
        }
    }

    fn bits(&self, wanted: impl Fn(usize, &str) -> bool) -> Vec<usize> {
        let names = self.names.iter().enumerate();
        names.filter(|(bit, name)| wanted(*bit, name)).map(|(bit, _)| bit).collect()
    }

    fn request(&self, command: EthtoolCommand, arguments: &[u32]) -> Result<Vec<u32>> {
        Ok(ethtool(self.socket.as_fd(), self.link, command, arguments)?)
    }
}

fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
