//! A byte stream whose every position is known, so that a receiver can compare instead of hash.

/// The stream repeats after this many bytes. A prime, so that no segment, page or buffer size divides it: data that
/// was lost, repeated or swapped by whole segments shows.
const PERIOD: usize = 65_521;

/// Bytes compared at either end of a piece that is not compared in full.
const EDGE_LEN: usize = 64;

/// The stream, with a window that slides over it without copying.
#[derive(Debug)]
pub struct Pattern {
    bytes: Vec<u8>,
    len_max: usize,
}

impl Pattern {
    /// A pattern that gives slices of up to `len_max` bytes.
    pub fn new(len_max: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let period: Vec<u8> = std::iter::repeat_with(|| {
            // xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 56) as u8
        })
        .take(PERIOD)
        .collect();
        Self { bytes: period.iter().copied().cycle().take(PERIOD + len_max).collect(), len_max }
    }

    /// `len` bytes of the stream from `position`.
    ///
    /// # Panics
    /// If `len` is more than the pattern was made for.
    pub fn at(&self, position: u64, len: usize) -> &[u8] {
        assert!(len <= self.len_max, "{len} bytes of a pattern for {}", self.len_max);
        let start = (position % PERIOD as u64) as usize;
        &self.bytes[start..start + len]
    }

    /// True if `bytes` are those of the stream from `position`.
    pub fn matches(&self, position: u64, bytes: &[u8]) -> bool {
        self.at(position, bytes.len()) == bytes
    }

    /// As [`Pattern::matches`], but looks at the first and last 64 bytes only. Cheap enough for every read of a
    /// throughput measurement, and enough to notice that something is missing.
    pub fn matches_at_edges(&self, position: u64, bytes: &[u8]) -> bool {
        if bytes.len() <= 2 * EDGE_LEN {
            return self.matches(position, bytes);
        }
        let last = bytes.len() - EDGE_LEN;
        self.matches(position, &bytes[..EDGE_LEN]) && self.matches(position + last as u64, &bytes[last..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_continue_each_other_over_the_period() {
        let pattern = Pattern::new(1000);
        let start = PERIOD as u64 - 300;
        let (whole, first, second) = (pattern.at(start, 1000), pattern.at(start, 400), pattern.at(start + 400, 600));
        assert_eq!(whole, [first, second].concat());
    }

    #[test]
    fn a_shift_by_a_segment_or_a_page_shows_at_the_edges() {
        let pattern = Pattern::new(1 << 16);
        for shift in [1, 64, 1432, 1460, 4096, 32_768, 65_536] {
            let bytes = pattern.at(shift, 8192);
            assert!(pattern.matches_at_edges(shift, bytes));
            assert!(!pattern.matches_at_edges(0, bytes), "{shift}");
        }
    }

    #[test]
    fn one_wrong_byte_shows_in_full_comparison() {
        let pattern = Pattern::new(8192);
        let mut bytes = pattern.at(7, 8192).to_vec();
        bytes[4000] ^= 1;
        assert!(!pattern.matches(7, &bytes));
    }
}
