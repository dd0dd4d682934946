//! The choice of the external interface, on a real host, and what follows from changes of it.

use anyhow::Result;
use weft_control::flannel::external::{InterfaceOptions, Selection, discover};
use weft_lab::Lab;
use weft_lab::topology::Routed;

use super::{DUAL, V4};

#[test]
fn the_kernel_is_read_as_the_rules_need_it() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let net = Routed::new(&lab, 1500, 1400)?;
    let mut netlink = net.r.netlink()?;
    let mut choose = |options: InterfaceOptions| discover(&mut netlink, &options, &[V4], None);
    let none = InterfaceOptions::default;

    // The router has no default route.
    let error = choose(none()).expect_err("no default route").to_string();
    assert!(error.contains("there is no IPv4 default route"), "{error}");
    assert!(error.contains("left (192.0.2.254"), "{error}");
    let reach = choose(InterfaceOptions { iface_can_reach: Some("198.51.100.1".parse()?), ..none() })?.external;
    assert_eq!((reach.name.as_str(), reach.mtu), ("right", 1400));
    assert_eq!(reach.addr, Some("198.51.100.254".parse()?));
    let regex = choose(InterfaceOptions { iface_regex: vec!["^le".into()], ..none() })?.external;
    assert_eq!(regex.name, "left");

    // The host has one, for both families, and may be behind a NAT.
    let public = Some("203.0.113.7".parse()?);
    let nat = InterfaceOptions { public_ip: public, ..none() };
    let Selection { external, notes } = discover(&mut net.a.netlink()?, &nat, &[DUAL], None)?;
    assert_eq!((external.name.as_str(), external.addr, external.public), ("u0", Some("192.0.2.1".parse()?), public));
    assert_eq!(external.addr_v6, Some("2001:db8:1::1".parse()?));
    assert_eq!(notes.len(), 1, "{notes:?}");

    // What changes is seen, what is in use stays.
    net.left.set_mtu(1400)?;
    net.a.address("u0", "192.0.2.77/24")?;
    let again = discover(&mut net.a.netlink()?, &nat, &[DUAL], Some(&external))?.external;
    assert_eq!((again.mtu, again.addr), (1400, external.addr));
    Ok(())
}
