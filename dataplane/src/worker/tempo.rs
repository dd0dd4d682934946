//! When a worker looks for work again: at once, after a while, or when the kernel wakes it.
//!
//! ```text
//!  a turn brought nothing, and before it came
//!    a request, a reply, an acknowledgement   -> spin: what answers it is likely to come before a sleep would be over;
//!                                                longer where answers have come soon after a spin had ended in vain
//!    bulk traffic                             -> sleep: a spin would take the core from those who make and use the traffic
//!    a request, and a turn took long while
//!      another worker had bulk traffic        -> sleep: who yields waits until those on its core have had their turns, and who
//!                                                sleeps is woken before them
//!  a turn brought something
//!    few of a flood of small packets          -> nap: what arrives meanwhile shares a send, at either end
//!    anything else                            -> no pause
//! ```

use crate::engine::Wait;
use crate::io::Received;
use crate::limits::{
    ANSWER_MAX, BULK_BYTES, BULK_MEMORY, BULK_PACKETS, CROWDED_MEMORY, CROWDED_TURN, FLOOD_PACKETS_PER_SECOND,
    FLOOD_WINDOW, MISSED_ANSWERS_FORGOTTEN, MISSED_ANSWERS_MAX, NAP_PACKETS_MAX, STRETCHED_SPIN_MAX,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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

/// How long to look for an answer: a packet from the one side after one from the other.
///
/// Who sleeps is late for the answer, and the next one waits for longer: where waking a core takes longer than the spin, as on
/// some virtual machines, both ends would sleep through every answer for ever. So a spin that just missed one makes the next
/// ones longer. (Packets that follow each other in one direction answer nothing; nobody waits for them.)
#[derive(Clone, Copy, Debug)]
struct Spin {
    /// As long as asked for.
    least: Duration,
    now: Duration,
    /// Answers in a row that were missed.
    missed: u32,
}

impl Spin {
    fn new(least: Duration) -> Spin {
        Spin { least, now: least, missed: 0 }
    }

    /// Notes that an answer came `after` what it answers.
    #[inline]
    fn note_answer(&mut self, after: Duration) {
        if after > ANSWER_MAX {
            self.now = self.least;
        } else if after > self.now {
            // A longer spin has to show that it serves: else it is left alone for a while.
            self.missed = (self.missed + 1) % MISSED_ANSWERS_FORGOTTEN;
            let grown = (2 * self.now).min(STRETCHED_SPIN_MAX).max(self.least);
            self.now = if self.missed <= MISSED_ANSWERS_MAX { grown } else { self.least };
        } else {
            self.missed = 0;
            if after <= self.least {
                self.now = self.least.max(self.now - self.now / 8);
            }
        }
    }
}

/// When one of the workers that share this last had bulk traffic: microseconds of their clock.
#[derive(Debug, Default)]
pub struct LastBulk(AtomicU64);

impl LastBulk {
    fn note(&self, now: Duration) {
        self.0.store(now.as_micros() as u64, Relaxed);
    }

    fn is_within(&self, memory: Duration, now: Duration) -> bool {
        now.saturating_sub(Duration::from_micros(self.0.load(Relaxed))) <= memory
    }
}

/// What the last turns brought, as far as it decides on the next. Times are those of one monotonic clock.
#[derive(Debug)]
pub struct Tempo {
    /// For answers from the socket, and from TUN: whoever answers at once may think for long before the next request.
    spins: [Spin; 2],
    last_active: Duration,
    was_from_tun: bool,
    last_bulk: Option<Duration>,
    /// That of any worker.
    last_bulk_of_all: Arc<LastBulk>,
    /// Where the turn of a spin began, if that was one.
    spun_from: Option<Duration>,
    /// When such a turn last took so long that others must have had the core.
    last_crowded: Option<Duration>,
    /// Small packets read from TUN since then.
    window: (Duration, usize),
    is_flood: bool,
}

impl Tempo {
    /// `spin`: how long to look for work before sleeping; up to [`STRETCHED_SPIN_MAX`] where answers come later.
    pub fn new(spin: Duration, last_bulk_of_all: Arc<LastBulk>) -> Tempo {
        Tempo {
            spins: [Spin::new(spin); 2],
            last_active: Duration::ZERO,
            was_from_tun: false,
            last_bulk: None,
            last_bulk_of_all,
            spun_from: None,
            last_crowded: None,
            window: (Duration::ZERO, 0),
            is_flood: false,
        }
    }

    /// Notes what a turn that ended at `now` brought.
    #[inline]
    pub fn note(&mut self, now: Duration, received: &Received) {
        let is_bulk = received.packets >= BULK_PACKETS || received.bytes >= BULK_BYTES;
        // A burst takes long by itself.
        let was_long = self.spun_from.take().is_some_and(|from| now.saturating_sub(from) > CROWDED_TURN);
        if was_long && !is_bulk && self.last_bulk_of_all.is_within(CROWDED_MEMORY, now) {
            self.last_crowded = Some(now);
        }
        if received.packets > 0 {
            let from_tun = received.small_from_tun > 0;
            if from_tun != self.was_from_tun {
                self.spins[usize::from(from_tun)].note_answer(now.saturating_sub(self.last_active));
            }
            self.was_from_tun = from_tun;
            self.last_active = now;
        }
        if is_bulk {
            self.last_bulk = Some(now);
            self.last_bulk_of_all.note(now);
        }
        self.window.1 += received.small_from_tun;
        let elapsed = now.saturating_sub(self.window.0);
        if elapsed >= FLOOD_WINDOW {
            self.is_flood = self.window.1 as f64 >= elapsed.as_secs_f64() * FLOOD_PACKETS_PER_SECOND;
            self.window = (now, 0);
        }
    }

    /// Whether there was bulk traffic a moment ago.
    #[inline]
    fn in_bulk(&self, now: Duration) -> bool {
        self.last_bulk.is_some_and(|last| now.saturating_sub(last) <= BULK_MEMORY)
    }

    /// Whether a spin had to wait for others' turns.
    #[inline]
    fn is_crowded(&self, now: Duration) -> bool {
        self.last_crowded.is_some_and(|last| now.saturating_sub(last) <= CROWDED_MEMORY)
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
        let spin = &self.spins[usize::from(!self.was_from_tun)];
        let spins = !self.in_bulk(now) && !self.is_crowded(now) && now.saturating_sub(self.last_active) < spin.now;
        if spins { Pause::Yield } else { Pause::Sleep }
    }

    /// How the turn after that pause waits.
    #[inline]
    pub fn wait(&mut self, now: Duration, pause: Pause) -> Wait {
        let wait = match pause {
            Pause::Sleep => Wait::Sleep,
            _ if self.in_bulk(now) => Wait::No,
            _ if self.is_crowded(now) => Wait::Single,
            _ => Wait::Spin,
        };
        self.spun_from = (wait == Wait::Spin && pause != Pause::Nap).then_some(now);
        wait
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

    fn tempo(spin: Duration) -> Tempo {
        Tempo::new(spin, Arc::default())
    }

    #[test]
    fn after_a_request_it_spins_for_the_time_given_and_then_sleeps() {
        let mut tempo = tempo(us(50));
        tempo.note(us(10_000), &REQUEST);
        assert_eq!(tempo.pause(us(10_000), &REQUEST, false), Pause::None);
        assert_eq!(tempo.pause(us(10_049), &NOTHING, false), Pause::Yield);
        assert_eq!(tempo.pause(us(10_050), &NOTHING, false), Pause::Sleep);
    }

    /// A request and its answer, each `after` so long; how long it looks for the next request then.
    fn exchange(tempo: &mut Tempo, now: &mut Duration, after: [Duration; 2]) -> Duration {
        const ANSWER: Received = Received { packets: 1, bytes: 100, small_from_tun: 0 };
        for (received, after) in [REQUEST, ANSWER].iter().zip(after) {
            *now += after;
            tempo.note(*now, received);
        }
        let sleeps = |idle: &Duration| tempo.pause(*now + *idle, &NOTHING, false) == Pause::Sleep;
        (0..=1000).map(us).find(sleeps).expect("it sleeps")
    }

    #[test]
    fn it_spins_for_longer_where_answers_come_late_and_no_longer_when_they_come_soon() {
        let (mut tempo, mut now) = (tempo(us(50)), us(10_000));
        let mut exchange = |after| exchange(&mut tempo, &mut now, [us(after); 2]);
        assert_eq!(exchange(20), us(50));
        assert_eq!(exchange(150), us(100), "too late, twice as long");
        assert_eq!(exchange(150), us(200));
        assert_eq!(exchange(390), us(200), "and no longer");
        assert_eq!(exchange(100), us(200), "in time, thanks to the longer spin");
        (0..20).for_each(|_| {
            exchange(30);
        });
        assert_eq!(exchange(30), us(50), "soon for long");
        assert_eq!(exchange(150), us(100));
        assert_eq!(exchange(5000), us(50), "no spin would reach that");
    }

    #[test]
    fn a_longer_spin_that_serves_nothing_is_given_up_for_a_while() {
        let (mut tempo, mut now) = (tempo(us(50)), us(10_000));
        // It answers at once, and thinks for long.
        let spins: Vec<_> = (0..600).map(|_| exchange(&mut tempo, &mut now, [us(350), us(30)])).collect();
        let longer = spins.iter().filter(|spin| **spin > us(50)).count();
        assert!((1..=30).contains(&longer), "{longer} of 600");
        assert_eq!(exchange(&mut tempo, &mut now, [us(40), us(30)]), us(50));
        assert_eq!(exchange(&mut tempo, &mut now, [us(150), us(30)]), us(100), "what came in time is a new start");
    }

    #[test]
    fn who_wants_no_spin_gets_none_and_who_wants_a_longer_one_gets_no_shorter() {
        for spin in [us(0), us(500)] {
            let (mut tempo, mut now) = (tempo(spin), us(10_000));
            (0..5).for_each(|_| assert_eq!(exchange(&mut tempo, &mut now, [us(150); 2]), spin));
        }
    }

    #[test]
    fn packets_in_one_direction_are_no_answers() {
        let mut tempo = tempo(us(50));
        (0..50).for_each(|count| tempo.note(us(10_000 + 100 * count), &REQUEST));
        assert_eq!(tempo.pause(us(14_950), &NOTHING, false), Pause::Sleep);
    }

    #[test]
    fn in_bulk_traffic_it_sleeps_at_once_and_spins_again_when_that_is_over() {
        let mut tempo = tempo(us(50));
        tempo.note(us(10_000), &SUPER_PACKET);
        assert_eq!(tempo.pause(us(10_001), &NOTHING, false), Pause::Sleep);
        tempo.note(us(11_002), &REQUEST);
        assert_eq!(tempo.pause(us(11_010), &NOTHING, false), Pause::Yield);
    }

    #[test]
    fn where_a_spin_waits_for_others_beside_bulk_traffic_it_sleeps_for_a_while() {
        let last_bulk = Arc::new(LastBulk::default());
        let mut tempo = Tempo::new(us(50), last_bulk.clone());
        // What the turn after next does, if the next one takes so long.
        let mut turn_of = |began: u64, took: u64| {
            tempo.note(us(began), &REQUEST);
            assert_eq!(tempo.pause(us(began), &REQUEST, false), Pause::None);
            tempo.wait(us(began), Pause::None);
            tempo.note(us(began + took), &REQUEST);
            let pause = tempo.pause(us(began + took + 1), &NOTHING, false);
            let wait = tempo.wait(us(began + took + 1), Pause::None);
            tempo.wait(us(began + took + 1), Pause::Sleep);
            (pause, wait)
        };
        let (spins, sleeps) = ((Pause::Yield, Wait::Spin), (Pause::Sleep, Wait::Single));
        assert_eq!(turn_of(100_000, 500), spins, "no bulk traffic: it was something else");
        last_bulk.note(us(200_000));
        assert_eq!(turn_of(200_100, 30), spins, "nobody was on the core");
        assert_eq!(turn_of(200_200, 500), sleeps);
        assert_eq!(turn_of(205_000, 30), sleeps);
        assert_eq!(turn_of(211_000, 30), spins, "it is time to try again");
        last_bulk.note(us(300_000));
        assert_eq!(turn_of(311_000, 500), spins, "the bulk traffic is over");
    }

    #[test]
    fn a_burst_that_takes_long_after_a_spin_did_not_wait_for_others() {
        let last_bulk = Arc::new(LastBulk::default());
        let mut tempo = Tempo::new(us(50), last_bulk.clone());
        last_bulk.note(us(100_000));
        tempo.note(us(101_000), &REQUEST);
        tempo.wait(us(101_001), Pause::Yield);
        tempo.note(us(101_100), &SUPER_PACKET);
        // Once the burst is over.
        tempo.note(us(103_000), &REQUEST);
        assert_eq!(tempo.pause(us(103_001), &NOTHING, false), Pause::Yield);
    }

    #[test]
    fn work_that_is_left_is_done_without_a_pause() {
        let mut tempo = tempo(us(50));
        tempo.note(us(10_000), &SUPER_PACKET);
        assert_eq!(tempo.pause(us(10_001), &NOTHING, true), Pause::None);
    }

    #[test]
    fn a_flood_of_small_packets_is_read_in_portions_and_nothing_sleeps_on_work() {
        let mut tempo = tempo(us(50));
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
