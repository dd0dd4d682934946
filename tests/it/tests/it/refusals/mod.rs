//! What weftd refuses, and how it says so; what it survives.
//!
//! - `start`: it cannot have what it wants. Exit 1 with who has it or what is missing, exit 2 about flags.
//! - `trouble`: what it had goes away under it, and comes back.
//! - `control`: hostile clients of the control socket, while packets flow.

mod control;
mod start;
mod trouble;

use anyhow::Result;

use crate::support::{Host, TUN};

/// Gives the TUN of a host a queue that no burst of a test fills: what is lost then, weft has lost.
fn lengthen_tun_queue(host: &Host) -> Result<()> {
    let index = host.node.link(TUN)?.index;
    Ok(host.node.netlink()?.set_txqueuelen(index, 20_000)?)
}
