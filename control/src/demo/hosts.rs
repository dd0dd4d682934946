//! The two hosts of the demo, and the three ways between them.
//!
//! ```text
//!   host a                                                       host b
//!   u0       192.0.2.1 ----------- veth, MTU 1500 ----------- 192.0.2.2       u0         underlay
//!   weft-a  10.99.0.1 fd99::1 ====== weft, UDP 8285 ====== 10.99.0.2 fd99::2  weft-b     weft
//!   flannel.1   10.9.1.0 ========== VXLAN, UDP 8472 =========== 10.9.2.0      flannel.1  kernel VXLAN
//!   lo          10.8.1.1 -------- a route, no tunnel ---------- 10.8.2.1      lo         plain routing
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use weft_lab::measure::Stop;
use weft_lab::topology::Pair;
use weft_lab::{FlannelVxlan, Lab, Link, Node, Ping, ping};

use super::Options;
use super::report::Subject;
use super::tunnel::{Ran, Tunnel};
use crate::config::Engine;

/// MTU of the cable, in bytes: Ethernet's.
pub const UNDERLAY_MTU: u32 = 1500;

/// One of the two hosts.
#[derive(Debug)]
pub struct Host {
    /// Its end of the tunnel.
    pub tunnel: Tunnel,
    _vxlan: FlannelVxlan,
    /// Its network namespace.
    pub node: Node,
    /// Its address on the cable.
    pub underlay: Ipv4Addr,
    /// Its addresses inside the tunnel.
    pub overlay: [IpAddr; 2],
    vxlan_address: IpAddr,
    plain_address: IpAddr,
}

impl Host {
    /// The address by which the other host reaches this one by way of `subject`.
    pub fn address(&self, subject: Subject) -> IpAddr {
        match subject {
            Subject::Weft => self.overlay[0],
            Subject::Vxlan => self.vxlan_address,
            Subject::Plain => self.plain_address,
        }
    }
}

/// Both hosts and the cable. Dropping it takes everything away.
#[derive(Debug)]
pub struct Hosts {
    /// Sends in measurements.
    pub a: Host,
    /// Receives in measurements.
    pub b: Host,
    /// The cable.
    pub link: Link,
}

impl Hosts {
    /// Makes the hosts and the cable between them, VXLAN and plain routes. The tunnel has its files and is not up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(lab: &Lab, options: &Options) -> Result<Self> {
        let Pair { link, a, b } = Pair::new(lab, UNDERLAY_MTU)?;
        let vxlan = |number: u8, end| {
            FlannelVxlan::new(end, &format!("192.0.2.{number}"), &format!("10.9.{number}.0/24"))
                .context("making a kernel VXLAN device")
        };
        let (vxlan_a, vxlan_b) = (vxlan(1, &link.a)?, vxlan(2, &link.b)?);
        vxlan_a.add_peer(&vxlan_b)?;
        vxlan_b.add_peer(&vxlan_a)?;
        for (node, own, other) in [(&a, 1, 2), (&b, 2, 1)] {
            node.address("lo", &format!("10.8.{own}.1/32"))?;
            node.route_via(&format!("10.8.{other}.0/24"), &format!("192.0.2.{other}"), "u0")?;
        }
        let host = |node: Node, number: u8, vxlan| -> Result<Host> {
            let (name, other, other_number) = if number == 1 { ("weft-a", "b", 2) } else { ("weft-b", "a", 1) };
            let text = tunnel_file(name, number, other, other_number, options);
            Ok(Host {
                tunnel: Tunnel::write(&node, lab.directory(), name, &text)?,
                _vxlan: vxlan,
                node,
                underlay: Ipv4Addr::new(192, 0, 2, number),
                overlay: overlay(number),
                vxlan_address: Ipv4Addr::new(10, 9, number, 0).into(),
                plain_address: Ipv4Addr::new(10, 8, number, 1).into(),
            })
        };
        Ok(Self { a: host(a, 1, vxlan_a)?, b: host(b, 2, vxlan_b)?, link })
    }

    /// `weft up` on both hosts; `each` is shown what was run and what it said.
    ///
    /// # Errors
    /// Of [`Tunnel::up`].
    pub fn up(&mut self, stop: &Stop, mut each: impl FnMut(&Host, &Ran)) -> Result<()> {
        for host in [&mut self.a, &mut self.b] {
            let ran = host.tunnel.up(stop)?;
            each(host, &ran);
        }
        Ok(())
    }

    /// `weft down` on both hosts, both even if one fails.
    ///
    /// # Errors
    /// Of [`Tunnel::down`]: the first.
    pub fn down(&mut self, mut each: impl FnMut(&Host, &Ran)) -> Result<()> {
        let mut outcome = Ok(());
        for host in [&mut self.a, &mut self.b] {
            match host.tunnel.down() {
                Ok(ran) => each(host, &ran),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Makes sure that what weft is compared with works at all.
    ///
    /// # Errors
    /// If there is no reply.
    pub fn check_opponents(&self) -> Result<()> {
        for subject in [Subject::Vxlan, Subject::Plain] {
            ping(&self.a.node, &Ping::to(self.b.address(subject)))?
                .reply()
                .with_context(|| format!("host b does not answer by way of {}", subject.name()))?;
        }
        Ok(())
    }
}

fn overlay(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 99, 0, number).into(), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number.into()).into()]
}

/// The tunnel file of one host. It is that of `examples/two-hosts-a.toml` with IPv6 added.
fn tunnel_file(name: &str, number: u8, other: &str, other_number: u8, options: &Options) -> String {
    let [v4, v6] = overlay(number);
    let [other_v4, other_v6] = overlay(other_number);
    let dataplane = match options.engine {
        Engine::Auto => String::new(),
        engine => format!("[dataplane]\nengine = \"{}\"\n\n", engine.word()),
    };
    format!(
        "name = \"{name}\"\n\
         address = [\"{v4}/24\", \"{v6}/64\"]\n\
         \n\
         {dataplane}\
         [[peer]]\n\
         name = \"{other}\"\n\
         subnets = [\"{other_v4}/32\", \"{other_v6}/128\"]\n\
         endpoint = \"192.0.2.{other_number}\"\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_tunnel_files_are_right_and_free_of_warnings() {
        for (name, number, other, other_number) in [("weft-a", 1, "b", 2), ("weft-b", 2, "a", 1)] {
            for engine in [Engine::Auto, Engine::Epoll] {
                let options = Options { engine, ..Options::default() };
                let text = tunnel_file(name, number, other, other_number, &options);
                let loaded = config::parse("t.toml", name, &text, &|_| false).unwrap();
                assert!(loaded.report.problems.is_empty(), "{}", loaded.report);
                assert_eq!(loaded.tunnel.dataplane.engine, engine);
                assert_eq!(loaded.tunnel.addresses.len(), 2);
                assert_eq!(loaded.tunnel.peers[0].name, other);
            }
        }
    }
}
