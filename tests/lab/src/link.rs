//! A cable between two nodes.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use weft_netlink::{NewLink, NewLinkKind, TokenBucket, Veth};

use crate::{Node, set_features};

/// How packets cross a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Super-packets cross whole, as between containers on one host.
    Offload,
    /// Every packet crosses at MTU size, as on a plain NIC whose driver merges on receive (GRO).
    Wire,
}

/// The features that `Wire` switches off at both ends: `tso`, `gso` and what `ethtool -k` lists below them for UDP.
const SEGMENTATION_FEATURES: [&str; 5] = [
    "tx-tcp*",
    "tx-generic-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
];

/// What may leave a limited link at once: twice the largest super-packet, so that none is cut for the limit's sake.
const BURST_LEN: u32 = 128 * 1024;
/// What may wait before a limited link, as a time, but not less than some bursts.
const WAIT_MS_MAX: u64 = 10;

/// One end of a [`Link`].
#[derive(Debug, Clone)]
pub struct LinkEnd {
    /// Where it is.
    pub node: Node,
    /// What it is called there.
    pub name: String,
    /// Its index there.
    pub index: u32,
}

/// A veth pair between two nodes, both ends up. Dropping it removes both ends.
#[derive(Debug)]
pub struct Link {
    /// One end.
    pub a: LinkEnd,
    /// The other.
    pub b: LinkEnd,
}

impl Link {
    /// Connects two nodes, in [`Mode::Offload`], and waits until packets pass. `mtu` is in bytes.
    ///
    /// # Errors
    /// If a name is taken, or the kernel refuses.
    pub fn veth(a: &Node, a_name: &str, b: &Node, b_name: &str, mtu: u32) -> Result<Self> {
        let veth = Veth { peer_name: b_name, peer_namespace: Some(b.as_fd()), peer_mtu: Some(mtu), peer_mac: None };
        let new = NewLink { mtu: Some(mtu), up: true, ..NewLink::new(a_name, NewLinkKind::Veth(veth)) };
        let link = a.netlink()?.add_link(&new).with_context(|| format!("connecting {} to {}", a.name(), b.name()))?;
        let a = LinkEnd { node: a.clone(), name: a_name.into(), index: link.index };
        // From here on, dropping `this` removes the pair if the rest fails.
        let mut this = Self { a, b: LinkEnd { node: b.clone(), name: b_name.into(), index: 0 } };
        let mut netlink = b.netlink()?;
        this.b.index = netlink.expect_link(b_name)?.index;
        netlink.set_up(this.b.index)?;
        this.wait_running()?;
        Ok(this)
    }

    /// Gives each end an address such as `192.0.2.1/24`. May be called again for another family.
    ///
    /// # Errors
    /// If a text is not an address with prefix length, or the kernel refuses.
    pub fn addresses(&self, a: &str, b: &str) -> Result<()> {
        for (end, address) in [(&self.a, a), (&self.b, b)] {
            end.node.address(&end.name, address)?;
        }
        Ok(())
    }

    /// Decides how packets cross, in both directions.
    ///
    /// # Errors
    /// If the kernel keeps a feature as it was.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        let offload = mode == Mode::Offload;
        for end in [&self.a, &self.b] {
            let mut wanted = SEGMENTATION_FEATURES.map(|name| (name, offload)).to_vec();
            wanted.push(("rx-gro", !offload));
            set_features(&end.node, &end.name, &wanted)?;
        }
        Ok(())
    }

    /// Holds what each end sends to so many bits per second; `None`: no limit.
    ///
    /// # Errors
    /// The kernel's, such as one that it has no token bucket (`CONFIG_NET_SCH_TBF`).
    pub fn set_rate(&self, bits_per_second: Option<u64>) -> Result<()> {
        for end in [&self.a, &self.b] {
            let mut netlink = end.node.netlink()?;
            let Some(rate) = bits_per_second.map(|bits| bits / 8) else {
                netlink.delete_root_qdisc(end.index)?;
                continue;
            };
            let limit = u32::try_from(rate * WAIT_MS_MAX / 1000).unwrap_or(u32::MAX).max(4 * BURST_LEN);
            netlink
                .replace_token_bucket(end.index, &TokenBucket { rate, burst: BURST_LEN, limit })
                .context("a limited link needs a kernel with tbf (CONFIG_NET_SCH_TBF)")?;
        }
        Ok(())
    }

    /// Sets the MTU of both ends, in bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        for end in [&self.a, &self.b] {
            end.node.netlink()?.set_mtu(end.index, mtu)?;
        }
        Ok(())
    }

    /// Plugs the cable in, at end `a`, and waits until packets pass. Routes to the prefixes of addresses come back,
    /// others that were lost do not, nor do IPv6 addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_up(&self) -> Result<()> {
        self.a.node.netlink()?.set_up(self.a.index)?;
        self.wait_running()
    }

    /// Pulls the cable out, at end `a`: that end goes down, the other loses its carrier.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_down(&self) -> Result<()> {
        Ok(self.a.node.netlink()?.set_down(self.a.index)?)
    }

    fn wait_running(&self) -> Result<()> {
        [&self.a, &self.b].into_iter().try_for_each(|end| end.node.wait_running(&end.name))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // What is left if this fails goes with its namespace.
        let _ = self.a.node.netlink().map(|mut netlink| netlink.delete_link(self.a.index));
    }
}
