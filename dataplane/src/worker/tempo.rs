//! When a worker looks for work again: at once, after a while, or when the kernel wakes it.
//!
//! ```text
//!  a turn brought nothing, and before it came
//!    a request, a reply, an acknowledgement   -> spin: what answers it is likely to come before a sleep would be over;
//!                                                longer where answers have come soon after a spin had ended in vain
//!    bulk traffic                             -> sleep: a spin would take the core from those who make and use the traffic
//!  a turn brought something
//!    few of a flood of small packets          -> nap: what arrives meanwhile shares a send, at either end
//!    anything else                            -> no pause
//! ```

use crate::io::Received;
use crate::limits::{
    ANSWER_MAX, BULK_BYTES, BULK_MEMORY, BULK_PACKETS, FLOOD_PACKETS_PER_SECOND, FLOOD_WINDOW, NAP_PACKETS_MAX,
    STRETCHED_SPIN_MAX,
};
use std::time::Duration;

/// What to do before the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Nothing.
    None,
    /// Let others have the core, if they want it.
    Yield,
    /// Sleep for [`crate::limits::NAP`], whatever arrives.
    Nap,
    /// Sleep until something arrives.
    Sleep,
}

/// What the last turns brought, as far as it decides on the next. Times are those of one monotonic clock.
#[derive(Debug)]
pub struct Tempo {
    /// As long as asked for, at least ...
    spin: Duration,
    /// ... and now, because answers took longer than that.
    stretched: Duration,
    last_active: Duration,
    was_from_tun: bool,
    last_bulk: Option<Duration>,
    /// Small packets read from TUN since then.
    window: (Duration, usize),
    is_flood: bool,
}

impl Tempo {
    /// `spin`: how long to look for work before sleeping; up to [`STRETCHED_SPIN_MAX`] where answers come later.
    pub fn new(spin: Duration) -> Tempo {
        Tempo {
            spin,
            stretched: spin,
            last_active: Duration::ZERO,
            was_from_tun: false,
            last_bulk: None,
            window: (Duration::ZERO, 0),
            is_flood: false,
        }
    }

    /// Notes what a turn that ended at `now` brought.
    #[inline]
    pub fn note(&mut self, now: Duration, received: &Received) {
        if received.packets > 0 {
            let from_tun = received.small_from_tun > 0;
            if from_tun != self.was_from_tun {
                self.note_answer(now.saturating_sub(self.last_active));
            }
            self.was_from_tun = from_tun;
            self.last_active = now;
        }
        if received.packets >= BULK_PACKETS || received.bytes >= BULK_BYTES {
            self.last_bulk = Some(now);
        }
        self.window.1 += received.small_from_tun;
        let elapsed = now.saturating_sub(self.window.0);
        if elapsed >= FLOOD_WINDOW {
            self.is_flood = self.window.1 as f64 >= elapsed.as_secs_f64() * FLOOD_PACKETS_PER_SECOND;
            self.window = (now, 0);
        }
    }

    /// Notes that a packet came from the one side `after` the last one had come from the other.
    ///
    /// Who sleeps is late for the answer, and so the next one waits for longer: where waking a core takes longer than the spin, as
    /// on some virtual machines, both ends would sleep through every answer for ever. (Packets that follow each other in
    /// one direction answer nothing; nobody waits for them.)
    #[inline]
    fn note_answer(&mut self, after: Duration) {
        self.stretched = if after <= self.spin {
            self.spin.max(self.stretched - self.stretched / 8)
        } else if after > ANSWER_MAX {
            self.spin
        } else if after > self.stretched {
            (2 * self.stretched).min(STRETCHED_SPIN_MAX).max(self.spin)
        } else {
            self.stretched
        };
    }

    /// Whether there was bulk traffic a moment ago.
    #[inline]
    pub fn in_bulk(&self, now: Duration) -> bool {
        self.last_bulk.is_some_and(|last| now.saturating_sub(last) <= BULK_MEMORY)
    }

    /// What to do next. `has_work`: something is queued or held over.
    #[inline]
    pub fn pause(&self, now: Duration, received: &Received, has_work: bool) -> Pause {
        if self.is_flood && received.small_from_tun < NAP_PACKETS_MAX {
            return if has_work || received.packets > 0 { Pause::Nap } else { Pause::Sleep };
        }
        if has_work || received.packets > 0 {
            return Pause::None;
        }
        if !self.in_bulk(now) && now.saturating_sub(self.last_active) < self.stretched {
            Pause::Yield
        } else {
            Pause::Sleep
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Received = Received { packets: 0, bytes: 0, small_from_tun: 0 };
    const REQUEST: Received = Received { packets: 1, bytes: 100, small_from_tun: 1 };
    const SUPER_PACKET: Received = Received { packets: 1, bytes: 65_000, small_from_tun: 0 };

    fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn after_a_request_it_spins_for_the_time_given_and_then_sleeps() {
        let mut tempo = Tempo::new(us(50));
        tempo.note(us(10_000), &REQUEST);
        assert_eq!(tempo.pause(us(10_000), &REQUEST, false), Pause::None);
        assert_eq!(tempo.pause(us(10_049), &NOTHING, false), Pause::Yield);
        assert_eq!(tempo.pause(us(10_050), &NOTHING, false), Pause::Sleep);
    }

    #[test]
    fn it_spins_for_longer_where_answers_come_late_and_no_longer_when_they_come_soon() {
        const ANSWER: Received = Received { packets: 1, bytes: 100, small_from_tun: 0 };
        let mut tempo = Tempo::new(us(50));
        let mut now = us(10_000);
        let mut exchange = |tempo: &mut Tempo, after: Duration| {
            for received in [REQUEST, ANSWER] {
                now += after;
                tempo.note(now, &received);
            }
            // How long it spins now.
            (0..=1000)
                .map(us)
                .find(|&idle| tempo.pause(now + idle, &NOTHING, false) == Pause::Sleep)
                .expect("it sleeps")
        };
        assert_eq!(exchange(&mut tempo, us(20)), us(50));
        assert_eq!(exchange(&mut tempo, us(150)), us(200), "twice too late, twice as long each time");
        assert_eq!(exchange(&mut tempo, us(390)), us(200), "and no longer");
        assert_eq!(exchange(&mut tempo, us(100)), us(200), "in time, thanks to the longer spin");
        for _ in 0..20 {
            exchange(&mut tempo, us(30));
        }
        assert_eq!(exchange(&mut tempo, us(30)), us(50), "soon for long");
        exchange(&mut tempo, us(150));
        assert_eq!(exchange(&mut tempo, us(5000)), us(50), "no spin would reach that");
        // Who wants no spin gets none, and who wants a longer one gets no shorter.
        for spin in [us(0), us(500)] {
            let mut tempo = Tempo::new(spin);
            exchange(&mut tempo, us(150));
            assert_eq!(exchange(&mut tempo, us(150)), spin);
        }
    }

    #[test]
    fn packets_in_one_direction_are_no_answers() {
        let mut tempo = Tempo::new(us(50));
        (0..50).for_each(|count| tempo.note(us(10_000 + 100 * count), &REQUEST));
        assert_eq!(tempo.pause(us(14_950), &NOTHING, false), Pause::Sleep);
    }

    #[test]
    fn in_bulk_traffic_it_sleeps_at_once_and_spins_again_when_that_is_over() {
        let mut tempo = Tempo::new(us(50));
        tempo.note(us(10_000), &SUPER_PACKET);
        assert_eq!(tempo.pause(us(10_001), &NOTHING, false), Pause::Sleep);
        tempo.note(us(11_002), &REQUEST);
        assert_eq!(tempo.pause(us(11_010), &NOTHING, false), Pause::Yield);
    }

    #[test]
    fn work_that_is_left_is_done_without_a_pause() {
        let mut tempo = Tempo::new(us(50));
        tempo.note(us(10_000), &SUPER_PACKET);
        assert_eq!(tempo.pause(us(10_001), &NOTHING, true), Pause::None);
    }

    #[test]
    fn a_flood_of_small_packets_is_read_in_portions_and_nothing_sleeps_on_work() {
        let mut tempo = Tempo::new(us(50));
        let few = Received { packets: 5, bytes: 500, small_from_tun: 5 };
        let many = Received { packets: 64, bytes: 6400, small_from_tun: 64 };
        // 5 packets in 10 us are half a million a second.
        (0..300).for_each(|turn| tempo.note(us(10_000 + 10 * turn), &few));
        let now = us(13_000);
        assert_eq!(tempo.pause(now, &few, false), Pause::Nap);
        assert_eq!(tempo.pause(now, &many, false), Pause::None);
        assert_eq!(tempo.pause(now, &NOTHING, true), Pause::Nap);
        assert_eq!(tempo.pause(now, &NOTHING, false), Pause::Sleep);
        // A thousand packets a second are no flood, nor are super-packets.
        (0..5).for_each(|turn| tempo.note(us(20_000 + 1000 * turn), &REQUEST));
        assert_eq!(tempo.pause(us(24_000), &REQUEST, false), Pause::None);
        (0..300).for_each(|turn| tempo.note(us(30_000 + 50 * turn), &SUPER_PACKET));
        assert_eq!(tempo.pause(us(45_000), &SUPER_PACKET, false), Pause::None);
    }
}
