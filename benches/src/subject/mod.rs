//! The subjects: ways between two hosts, set up side by side.
//!
//! ```text
//!   host a                                             host b
//!   u0  192.0.2.1 ---------- veth, underlay ---------- 192.0.2.2  u0
//!   subject n:
//!       10.(100+n).1.0/24 ==== its own way ==== 10.(100+n).2.0/24
//! ```
//!
//! All of them are up all the time; one that carries nothing costs nothing, which [`crate::campaign`] relies on. [`peers`] adds
//! many peers to this.

mod external;
mod kernel;
pub mod peers;
mod weft;
mod wireguard;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use weft_lab::{Lab, Link, LinkEnd};

use crate::spec::{Kind, SubjectSpec};
use peers::Peer;

/// A subject that is up.
pub trait Subject {
    /// The addresses of host a and host b by way of this subject.
    fn addresses(&self) -> [IpAddr; 2];

    /// Where a packet for a peer has to go on the underlay.
    fn outer_destination(&self, peer: &Peer) -> Ipv4Addr {
        peer.underlay
    }

    /// What it says about itself now.
    ///
    /// # Errors
    /// If it does not answer.
    fn facts(&self) -> Result<Facts>;

    /// How much it has worked so far, if it counts that.
    ///
    /// # Errors
    /// If it does not answer.
    fn work(&self) -> Result<Option<Work>> {
        Ok(None)
    }

    /// Its processes on both hosts.
    fn pids(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// What a subject says about itself. Everything but the drops has to stay as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// MTU inside the tunnel.
    pub overlay_mtu: Option<u32>,
    /// weft: the engine that runs.
    pub engine: Option<String>,
    /// weft: how the TUN was opened.
    pub opener: Option<String>,
    /// weft: workers on each host.
    pub workers: Option<u16>,
    /// weft: microseconds.
    pub spin_us: Option<u32>,
    /// weft: offloads by name, and whether both hosts use them.
    pub offloads: BTreeMap<String, bool>,
    /// Its version.
    pub version: Option<String>,
    /// Command line on host a.
    pub command: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// What ran is not what was asked for: why.
    pub violation: Option<String>,
    /// Packets it dropped itself since it started, by direction and reason, both hosts summed.
    pub drops: BTreeMap<String, u64>,
}

/// Work that a subject counts, since it started, both hosts summed; and how many do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// System calls.
    pub syscalls: u64,
    /// Inner packets sent to the other host.
    pub packets: u64,
    /// Workers that share the flows now, on the host that has more.
    pub workers_in_use: u16,
}

/// Where a subject is set up.
pub struct Site<'a> {
    /// For daemons.
    pub lab: &'a Lab,
    /// The underlay: end `a` is at host a.
    pub link: &'a Link,
    /// Its MTU.
    pub mtu: u32,
    /// Number of the subject, from 0: keeps addresses, ports and names apart.
    pub number: u8,
    /// There are many peers beside host b.
    pub has_peers: bool,
}

impl Site<'_> {
    /// Both hosts with their number.
    pub fn ends(&self) -> [(u8, &LinkEnd); 2] {
        [(1, &self.link.a), (2, &self.link.b)]
    }

    /// An address inside the tunnel: `last` in the subnet of host 1 or 2.
    pub fn overlay(&self, host: u8, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 100 + self.number, host, last)
    }

    /// The subnet of host 1 or 2.
    pub fn subnet(&self, host: u8) -> String {
        format!("{}/24", self.overlay(host, 0))
    }

    /// The overlay network of both.
    pub fn network(&self) -> String {
        format!("10.{}.0.0/16", 100 + self.number)
    }

    /// Sets a subject up.
    ///
    /// # Errors
    /// If it cannot be had here: the kernel lacks it, a program is missing or fails.
    pub fn set_up(&self, spec: &SubjectSpec) -> Result<Box<dyn Subject>> {
        let subject: Box<dyn Subject> = match &spec.kind {
            Kind::Weft(weft) => Box::new(weft::Weft::new(self, weft)?),
            Kind::Vxlan => Box::new(kernel::Vxlan::new(self)?),
            Kind::HostGw => Box::new(kernel::HostGw::new(self)?),
            Kind::WireguardGo => Box::new(wireguard::Wireguard::new(self)?),
            Kind::External(command) => Box::new(external::External::new(self, command)?),
        };
        self.finish_peers(subject.as_ref())?;
        Ok(subject)
    }
}

/// The first UDP port; subjects take one each.
const PORT: u16 = 8285;

impl Site<'_> {
    /// A UDP port that no other subject uses.
    pub fn port(&self) -> u16 {
        PORT + u16::from(self.number)
    }
}

/// The underlay address of host 1 or 2.
pub fn underlay(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}
