//! A thousand peers: what a reconciliation costs. The times are printed; `--nocapture` shows them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_control::backend::vxlan::VxlanConfig;
use weft_control::flannel::{Backend, FlannelLease};
use weft_lab::Lab;
use weft_lab::measure::process_cpu_time;
use weft_lab::topology::Switched;

use super::{Member, V4, host_gw_member, stranger, vxlan_member};

const PEER_COUNT: u32 = 1_000;
const WARM_COUNT: usize = 20;
/// Far more CPU time than it takes; a dump per peer would take more.
const WARM_TIME_MAX: Duration = Duration::from_millis(500);

/// Peers with a /26 each, so that a /16 holds a thousand; all but ours are beyond 10.9.4.0.
fn leases(kind: &str) -> Vec<FlannelLease> {
    let lease = |number: u32| {
        let mac = format!("02:01:00:00:{:02x}:{:02x}", number >> 8, number & 0xff);
        let mut lease = stranger(2, &mac, &format!("192.0.2.{}", 4 + number % 250));
        let base = u32::from(std::net::Ipv4Addr::new(10, 9, 4, 0)) + number * 64;
        lease.subnets.v4 = Some(ipnet::Ipv4Net::new_assert(base.into(), 26));
        lease.attrs.backend_type = kind.into();
        lease
    };
    (0..PEER_COUNT).map(lease).collect()
}

fn measure<B: Backend + Send>(what: &str, mut member: Member<B>, peers: &[FlannelLease]) -> Result<()> {
    let begun = Instant::now();
    let done = member.reconcile(peers)?;
    let cold = begun.elapsed();
    ensure!(done.notes.is_empty() && done.changes.len() == peers.len(), "{:?}", done.notes);
    let mut warm = Vec::new();
    for _ in 0..WARM_COUNT {
        let begun = process_cpu_time();
        member.settled(peers)?;
        warm.push(process_cpu_time() - begun);
    }
    warm.sort();
    let begun = Instant::now();
    let done = member.reconcile(&[])?;
    let pruned = begun.elapsed();
    ensure!(!done.changes.is_empty());
    let (median, worst) = (warm[WARM_COUNT / 2], warm[WARM_COUNT - 1]);
    println!(
        "{what}, {PEER_COUNT} peers: cold {cold:?}, warm {median:?} of CPU time (worst {worst:?}), all pruned {pruned:?}"
    );
    ensure!(median < WARM_TIME_MAX, "{what}: {median:?} with nothing to do");
    member.settled(&[])
}

#[test]
fn a_thousand_peers_cost_little_when_all_is_well() -> Result<()> {
    let Some(lab) = Lab::start() else { return Ok(()) };
    let net = Switched::new(&lab, 3, 1500)?;
    let direct = VxlanConfig { direct_routing: true, ..VxlanConfig::default() };
    measure("vxlan", vxlan_member(&net.hosts[0], 1, VxlanConfig::default(), V4)?, &leases("vxlan"))?;
    measure("vxlan with DirectRouting", vxlan_member(&net.hosts[1], 2, direct, V4)?, &leases("vxlan"))?;
    measure("host-gw", host_gw_member(&net.hosts[2], 3, V4)?, &leases("host-gw"))
}
