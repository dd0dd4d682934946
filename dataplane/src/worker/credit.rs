//! How many packets may enter a worker's TUN queue, and when more may: so many that the worker always finds some, and never more than
//! the queue holds ([`crate::backpressure`] tells how they are held back).
//!
//! A grant replaces what is left of the one before, which nobody can look at. What is known are bounds:
//!
//! ```text
//!   in the queue + may still enter  <=  last bound + granted + trickled since - read since
//!                                   <=  last grant, whenever a read found the queue empty
//! ```

use crate::backpressure::Grants;
use crate::limits::{GRANT_BYTES, GRANT_MAX, GRANT_MIN, TRICKLE, TUN_QUEUE_LEN};
use std::sync::Arc;
use std::time::Duration;

/// Packets and bytes read from a TUN queue since the start, and whether a read since the last look found it empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Packets; a super-packet is one.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nothing was left to read.
    pub found_empty: bool,
}

/// One worker's grants.
#[derive(Debug)]
pub struct Credit {
    grants: Arc<Grants>,
    queue: usize,
    ledger: Ledger,
}

impl Credit {
    /// For worker `queue`, which has [`GRANT_MAX`] at the start.
    pub fn new(grants: Arc<Grants>, queue: usize) -> Credit {
        Credit { grants, queue, ledger: Ledger::default() }
    }

    /// Asks for a grant if it is time. False: senders are not held back any more.
    #[inline]
    pub fn turn(&mut self, now: Duration, reading: Reading) -> bool {
        let is_pending = self.grants.is_pending(self.queue);
        if let Some(packets) = self.ledger.turn(now, reading, is_pending) {
            self.grants.ask(self.queue, packets);
        }
        !self.grants.is_over()
    }
}

#[derive(Debug)]
struct Ledger {
    /// The bound of both above, in packets.
    outstanding: usize,
    granted: usize,
    /// Packets read by the last turn.
    read: u64,
    /// What was read by the last grant.
    at_grant: Reading,
    /// Up to when what trickled in is counted.
    counted: Duration,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            outstanding: GRANT_MAX,
            granted: GRANT_MAX,
            read: 0,
            at_grant: Reading::default(),
            counted: Duration::ZERO,
        }
    }
}

impl Ledger {
    /// The grant to ask for. `is_pending`: the one before is not in force yet.
    #[inline]
    fn turn(&mut self, now: Duration, reading: Reading, is_pending: bool) -> Option<u32> {
        let elapsed = now.saturating_sub(self.counted);
        let mut trickled = 0;
        if elapsed >= TRICKLE {
            // Not a division in every turn.
            trickled = (elapsed.as_nanos() / TRICKLE.as_nanos()) as u32;
            self.counted += TRICKLE * trickled;
        }
        let read = (reading.packets - self.read) as usize;
        self.read = reading.packets;
        self.outstanding = (self.outstanding + trickled as usize).saturating_sub(read).min(TUN_QUEUE_LEN);
        let packets = (reading.packets - self.at_grant.packets) as usize;
        if is_pending || packets == 0 {
            return None;
        }
        if reading.found_empty {
            self.outstanding = self.outstanding.min(self.granted);
        }
        let mean_len = (reading.bytes - self.at_grant.bytes) as usize / packets;
        let grant = (GRANT_BYTES / mean_len.max(1)).clamp(GRANT_MIN, GRANT_MAX);
        // An empty queue has room for what is left of the last grant and for this one.
        let has_room = reading.found_empty || self.outstanding <= grant;
        // Half of what was granted, which is there to be read, and not of what may be granted now.
        if packets < grant.min(self.granted) / 2 || !has_room {
            return None;
        }
        self.outstanding += grant;
        self.granted = grant;
        self.at_grant = reading;
        Some(grant as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TURN: Duration = Duration::from_micros(50);

    /// Bucket and queue, senders, a worker, and a thread that takes its time.
    #[derive(Debug)]
    struct Model {
        ledger: Ledger,
        now: Duration,
        tokens: usize,
        /// How many tokens the bucket holds.
        size: usize,
        trickle: Duration,
        queue: usize,
        reading: Reading,
        /// A grant, and when it will be in force.
        asked: Option<(usize, Duration)>,
        longest_queue: usize,
    }

    impl Model {
        fn new() -> Model {
            Model {
                ledger: Ledger::default(),
                now: Duration::ZERO,
                tokens: GRANT_MAX,
                size: GRANT_MAX,
                trickle: Duration::ZERO,
                queue: 0,
                reading: Reading::default(),
                asked: None,
                longest_queue: 0,
            }
        }

        /// `offered` packets want to enter, the worker reads up to `wanted`, each of `len` bytes, and a grant that it asks
        /// for takes `delay` turns.
        fn turn(&mut self, offered: usize, wanted: usize, len: usize, delay: u32) {
            self.now += TURN;
            if let Some((grant, at)) = self.asked
                && at <= self.now
            {
                (self.tokens, self.size) = (grant, grant);
                self.asked = None;
            }
            self.trickle += TURN;
            if self.trickle >= TRICKLE {
                self.trickle -= TRICKLE;
                self.tokens = (self.tokens + 1).min(self.size);
            }
            let entering = offered.min(self.tokens);
            self.tokens -= entering;
            self.queue += entering;
            self.longest_queue = self.longest_queue.max(self.queue);
            let read = wanted.min(self.queue);
            self.queue -= read;
            self.reading.packets += read as u64;
            self.reading.bytes += (read * len) as u64;
            self.reading.found_empty = read < wanted;
            if let Some(grant) = self.ledger.turn(self.now, self.reading, self.asked.is_some()) {
                self.asked = Some((grant as usize, self.now + delay * TURN));
            }
        }
    }

    proptest! {
        #[test]
        fn the_queue_never_overflows(
            phases in prop::collection::vec((0..300usize, 0..130usize, 60..65_000usize, 0..100u32, 1..200usize), 1..20),
        ) {
            let mut model = Model::new();
            for (offered, wanted, len, delay, turns) in phases {
                (0..turns).for_each(|_| model.turn(offered, wanted, len, delay));
                prop_assert!(model.longest_queue <= TUN_QUEUE_LEN, "{model:?}");
            }
        }

        #[test]
        fn whatever_came_before_a_worker_that_reads_is_fed(
            phases in prop::collection::vec((0..300usize, 0..130usize, 60..65_000usize, 0..100u32, 1..200usize), 0..10),
            len in 60..65_000usize,
        ) {
            let mut model = Model::new();
            for (offered, wanted, len, delay, turns) in phases {
                (0..turns).for_each(|_| model.turn(offered, wanted, len, delay));
            }
            // It takes some grants for the other packets to show in the mean, at worst the smallest and at the pace of the trickle.
            (0..2 * GRANT_MIN as u32 * (TRICKLE.as_micros() / TURN.as_micros()) as u32).for_each(|_| model.turn(300, 8, len, 2));
            let before = model.reading.packets;
            (0..1000).for_each(|_| model.turn(300, 8, len, 2));
            let read = model.reading.packets - before;
            prop_assert!(read >= 8 * 1000 * 2 / 3, "{read} packets in 1000 turns: {model:?}");
        }
    }

    #[test]
    fn grants_hold_as_many_packets_as_bytes_allow() {
        let mut model = Model::new();
        (0..10_000).for_each(|_| model.turn(300, 64, 1000, 1));
        assert_eq!(model.ledger.granted, GRANT_MAX);
        (0..10_000).for_each(|_| model.turn(300, 64, 62_000, 1));
        assert_eq!(model.ledger.granted, GRANT_BYTES / 62_000);
    }

    #[test]
    fn an_idle_worker_asks_for_nothing() {
        let mut model = Model::new();
        (0..100_000).for_each(|_| model.turn(0, 1, 0, 1));
        assert!(model.asked.is_none() && model.reading.packets == 0);
    }
}
