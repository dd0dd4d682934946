//! How many reads an engine asks for in a turn, and into which frames: as many as the last turns found data for, of the
//! frames at hand those used last, and no more bytes than stay in the processor's second-level cache.

use crate::limits::{PACKET_LEN_MAX, TURN_BYTES_MAX};
use crate::pool::FrameId;

/// Reads that may be asked for however much each brings: as many of the longest packets as a turn may bring.
const COUNT_MIN: usize = TURN_BYTES_MAX.div_ceil(PACKET_LEN_MAX + 1);

/// Reads by which a turn may ask for more than the last one did: those that find nothing cost, too.
const GROWTH_MAX: usize = 8;

/// Reads of one kind: from TUN, or from the socket.
#[derive(Debug)]
pub struct Reads {
    /// Frames at hand, the last used at the end.
    free: Vec<FrameId>,
    /// Reads to ask for in the next turn.
    wanted: usize,
    /// Reads asked for and not yet answered.
    asked: usize,
    /// Reads of this turn, and those of them that brought something.
    turn: (usize, usize),
    /// Bytes that a read brings, an average that forgets slowly, in 1/16 bytes.
    filled16: usize,
}

impl Reads {
    /// For `frames` frames, none of them at hand.
    pub fn new(frames: usize) -> Reads {
        Reads { free: Vec::with_capacity(frames), wanted: 1, asked: 0, turn: (0, 0), filled16: 0 }
    }

    /// Takes a frame back that nobody holds any more.
    #[inline]
    pub fn keep(&mut self, frame: FrameId) {
        self.free.push(frame);
    }

    /// Whether a frame is at hand.
    pub fn has_frames(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether the kernel has reads that it did not answer.
    pub fn in_flight(&self) -> bool {
        self.asked > 0
    }

    /// Begins a turn: how many reads to ask for, each into a frame that [`Self::ask`] gives.
    #[inline]
    pub fn begin(&mut self) -> usize {
        let (asked, found) = std::mem::take(&mut self.turn);
        if asked > 0 {
            // All that were asked for found data: there may be much more. Otherwise one more than there was.
            self.wanted = if found == asked { asked + asked.min(GROWTH_MAX) } else { found + 1 };
        }
        let warm = (TURN_BYTES_MAX / (self.filled16 / 16).max(1)).max(COUNT_MIN);
        self.turn.0 = self.wanted.min(warm).min(self.free.len());
        self.turn.0
    }

    /// The frame for a read.
    #[inline]
    pub fn ask(&mut self) -> FrameId {
        self.asked += 1;
        self.free.pop().expect("no more is asked for than there are frames")
    }

    /// A frame for a read that is made at once, by a call of its own.
    #[inline]
    pub fn take(&mut self) -> Option<FrameId> {
        self.free.pop()
    }

    /// A read brought `len` bytes.
    #[inline]
    pub fn filled(&mut self, len: usize) {
        self.asked -= 1;
        self.turn.1 += 1;
        self.filled16 += len;
        self.filled16 -= self.filled16 / 16;
    }

    /// A read brought nothing; its frame is at hand again.
    #[inline]
    pub fn empty(&mut self, frame: FrameId) {
        self.asked -= 1;
        self.free.push(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn in which `ready` packets of `len` bytes wait; how many reads were asked for.
    fn turn(reads: &mut Reads, ready: usize, len: usize) -> usize {
        let count = reads.begin();
        let frames: Vec<_> = (0..count).map(|_| reads.ask()).collect();
        for (index, frame) in frames.into_iter().enumerate() {
            if index < ready {
                reads.filled(len);
                reads.keep(frame);
            } else {
                reads.empty(frame);
            }
        }
        assert!(!reads.in_flight());
        count
    }

    fn reads() -> Reads {
        let mut reads = Reads::new(128);
        (0..128).for_each(|id| reads.keep(FrameId(id)));
        reads
    }

    #[test]
    fn it_asks_for_one_more_than_there_was_and_for_up_to_eight_more_when_all_found_something() {
        let mut reads = reads();
        let asked = [0, 1, 100, 100, 100, 100, 5, 0, 0].map(|ready| turn(&mut reads, ready, 100));
        assert_eq!(asked, [1, 1, 2, 4, 8, 16, 24, 6, 1]);
    }

    #[test]
    fn super_packets_are_not_read_beyond_what_stays_in_the_cache() {
        let mut reads = reads();
        (0..40).for_each(|_| _ = turn(&mut reads, 128, 65_000));
        assert_eq!(turn(&mut reads, 128, 65_000), 8);
    }

    #[test]
    fn it_asks_for_no_more_than_there_are_frames() {
        let mut reads = Reads::new(4);
        assert_eq!(reads.begin(), 0);
        reads.keep(FrameId(1));
        assert!(reads.has_frames());
        (0..4).for_each(|_| _ = turn(&mut reads, 9, 100));
        assert_eq!(turn(&mut reads, 9, 100), 1);
    }
}
