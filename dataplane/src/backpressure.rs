//! Backpressure: a sender on this host that is faster than the tunnel is made to wait, as before a network card.
//!
//! A TUN device takes every packet off its socket at once, puts it where we read, and drops what does not fit there; the sender is
//! not told, and goes on. So before the queue of each worker stands a token bucket of the kernel (tc-tbf(8)), which counts packets
//! and holds what it has no token for. A packet in it still belongs to its socket: whose buffer is full waits, or
//! is told EAGAIN, and TCP does not send on (TCP small queues).
//!
//! ```text
//!   socket ---> bucket ---------> TUN queue ---> worker
//!               ^ packets wait    never full       |
//!               |                                  | how much may come in (worker::credit)
//!               '-- fills it --- this thread <-----'
//! ```
//!
//! The bucket gets one token each [`TRICKLE`] by itself. After a grant the kernel looks at what waits only when it
//! expected that token; and a TUN whose weftd was killed lets its packets through, if slowly.
//!
//! A netlink call can take long, since it waits for everybody else who changes something about the network (RTNL). So workers
//! do not make it: they ask, and go on.
//!
//! Packets that this host forwards have no socket. They wait in the bucket, and are dropped when too many
//! do: as many as are in [`BUCKET_GRANTS`] grants, and [`BUCKET_MAX`] at most.

use crate::limits::{BUCKET_GRANTS, BUCKET_MAX, GRANT_MAX, SHORT_SLICE, TRICKLE, TUN_QUEUE_LEN};
use crate::shared::WorkerView;
use crate::sys::sched;
use crate::tun::TunDevice;
use rustix::io::Errno;
use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use tracing::warn;
use weft_netlink::{Netlink, NetlinkError, PacketBucket};

/// What workers ask for. One per weftd, shared by its workers and the thread that grants.
#[derive(Debug)]
pub struct Grants {
    /// Packets for each worker's queue; 0: it asks for none.
    wanted: Vec<AtomicU32>,
    is_over: AtomicBool,
    granter: OnceLock<Thread>,
}

impl Grants {
    /// Whether the kernel lets everything in again.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }

    /// Whether what was asked for is still to come.
    pub fn is_pending(&self, queue: usize) -> bool {
        self.wanted[queue].load(Acquire) != 0
    }

    /// Asks that `packets` may enter a queue, instead of what is left of the grant before.
    pub fn ask(&self, queue: usize, packets: u32) {
        self.wanted[queue].store(packets, Release);
        if let Some(granter) = self.granter.get() {
            granter.unpark();
        }
    }
}

/// The buckets before the queues of a TUN, and the thread that fills them. Dropped, it takes them away, unless the TUN goes by itself.
#[derive(Debug)]
pub struct Backpressure {
    tun: u32,
    outlives_us: bool,
    grants: Arc<Grants>,
}

impl Backpressure {
    /// Puts full buckets before the first `queues` queues of a TUN, which gets room for [`TUN_QUEUE_LEN`] packets in each.
    ///
    /// # Errors
    /// The kernel's, or a discipline there that somebody chose: nothing is changed then but that room.
    pub fn install(device: &TunDevice, queues: usize) -> Result<Backpressure, Refused> {
        let tun = device.index;
        let mut netlink = Netlink::open()?;
        if netlink.expect_link(tun)?.txqueuelen < TUN_QUEUE_LEN as u32 {
            netlink.set_txqueuelen(tun, TUN_QUEUE_LEN as u32)?;
        }
        netlink.divide_queues(tun)?;
        for queue in 0..queues {
            if let Err(error) = netlink.replace_packet_bucket(tun, &bucket(queue, GRANT_MAX as u32)) {
                netlink.unite_queues(tun)?;
                return Err(error.into());
            }
        }
        let wanted = (0..queues).map(|_| AtomicU32::new(0)).collect();
        let grants = Arc::new(Grants { wanted, is_over: AtomicBool::new(false), granter: OnceLock::new() });
        Ok(Backpressure { tun, outlives_us: device.is_persistent(), grants })
    }

    /// Begins to grant. When it has to stop, it takes backpressure off the list of offloads in `views`.
    pub fn start(&mut self, views: Vec<Arc<WorkerView>>) -> io::Result<()> {
        let (tun, grants) = (self.tun, self.grants.clone());
        let work = move || {
            // Woken late it would leave senders waiting while there is room for them.
            if let Err(error) = sched::set_slice(SHORT_SLICE) {
                warn!("the thread that grants is scheduled like every thread: {error}");
            }
            if let Err(error) = grant(tun, &grants)
                && !grants.is_over.swap(true, AcqRel)
                // A TUN that is gone ends weftd, which says so.
                && error.errno() != Some(Errno::NODEV)
            {
                // Should our buckets still be there, nobody fills them any more.
                let _ = Backpressure::clear(tun);
                views.iter().for_each(|view| view.offloads.backpressure.store(false, Relaxed));
                warn!(
                    "senders that are too fast lose packets from now on: {error}; restart weftd to hold them back again"
                );
            }
        };
        let granter = thread::Builder::new().name("weft-grants".to_owned()).spawn(work)?;
        let _ = self.grants.granter.set(granter.thread().clone());
        // For what was asked before the workers could wake it.
        granter.thread().unpark();
        Ok(())
    }

    /// Takes away what an earlier weftd may have left at a persistent TUN.
    pub fn clear(tun: u32) -> Result<(), NetlinkError> {
        Netlink::open()?.unite_queues(tun)
    }

    /// For the workers.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }
}

impl Drop for Backpressure {
    fn drop(&mut self) {
        let was_over = self.grants.is_over.swap(true, AcqRel);
        if let Some(granter) = self.grants.granter.get() {
            granter.unpark();
        }
        if self.outlives_us
            && !was_over
            && let Err(error) = Backpressure::clear(self.tun)
        {
            warn!("{error}");
        }
    }
}

/// Why senders are not held back; the message carries the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}{help}", help = remedy(.0))]
pub struct Refused(#[from] NetlinkError);

fn remedy(error: &NetlinkError) -> &'static str {
    match error.errno() {
        Some(Errno::NOENT) => "; the kernel needs CONFIG_NET_SCH_TBF (module sch_tbf)",
        Some(Errno::EXIST) => "; the TUN has a queueing discipline that somebody chose, which stays",
        _ if error.is_permission_denied() => "; give weftd CAP_NET_ADMIN",
        _ => "",
    }
}

fn bucket(queue: usize, packets: u32) -> PacketBucket {
    let rate = (1_000_000_000 / TRICKLE.as_nanos()) as u32;
    let limit = (BUCKET_GRANTS as u32 * packets).min(BUCKET_MAX as u32);
    PacketBucket { queue: queue as u16, rate, burst: packets, limit }
}

/// Fills buckets as asked for, until the end.
fn grant(tun: u32, grants: &Grants) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    while !grants.is_over() {
        for (queue, wanted) in grants.wanted.iter().enumerate() {
            let packets = wanted.load(Acquire);
            if packets > 0 {
                netlink.set_packet_bucket(tun, &bucket(queue, packets))?;
                wanted.store(0, Release);
            }
        }
        thread::park();
    }
    Ok(())
}
