//! From overlapping prefixes to disjoint runs.
//!
//! A set of prefixes cuts the address space into runs of consecutive addresses with one answer each. Runs are what the
//! match structure is built from: nesting, duplicates, default routes and neighbours with equal answers are settled here.

use std::fmt::Debug;

/// The answer where no prefix covers an address.
pub(super) const NONE: u16 = u16::MAX;

/// Unsigned integers that serve as addresses.
pub(super) trait Address: Copy + Ord + Debug + Send + Sync + 'static {
    const BITS: u32;
    /// 32-bit words that hold one.
    const WORDS: usize = Self::BITS as usize / 32;
    const ZERO: Self;
    const MAX: Self;
    fn wrapping_add(self, other: Self) -> Self;
    fn wrapping_sub(self, other: Self) -> Self;
    /// Shifts right; a shift by [`Address::BITS`] yields zero.
    fn shift_right(self, bits: u32) -> Self;
    /// Shifts left; a shift by [`Address::BITS`] yields zero.
    fn shift_left(self, bits: u32) -> Self;
    fn trailing_zeros(self) -> u32;
    /// The value as an index, `usize::MAX` if it is too large for one.
    fn index(self) -> usize;
    fn from_index(index: usize) -> Self;
    /// The low bits of `self >> bits`; for `bits` below [`Address::BITS`], where the caller masks what it needs.
    fn low_bits(self, bits: u32) -> u64;

    /// `self >> bits`, but `max` where that is more; for `bits` below [`Address::BITS`].
    fn shift_right_to(self, bits: u32, max: u32) -> u32;
    /// Which of 64 slots of `1 << shift` addresses from `origin` on `self` falls into: the first if it lies before them,
    /// the last if it lies behind them. The two may be less than half the address space apart.
    fn slot_from(self, origin: Self, shift: u32) -> u64;
    /// From the first [`Address::WORDS`] of `words`, lowest first.
    fn from_words(words: &[u32]) -> Self;
    /// The reverse of [`Address::from_words`].
    fn push_words(self, words: &mut Vec<u32>);

    /// The address with the lowest `bits` bits cleared.
    fn round_down(self, bits: u32) -> Self {
        self.shift_right(bits).shift_left(bits)
    }
}

macro_rules! address {
    ($type:ty, $signed:ty) => {
        impl Address for $type {
            const BITS: u32 = <$type>::BITS;
            const ZERO: Self = 0;
            const MAX: Self = <$type>::MAX;
            #[inline]
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline]
            fn wrapping_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline]
            fn shift_right(self, bits: u32) -> Self {
                self.checked_shr(bits).unwrap_or(0)
            }
            #[inline]
            fn shift_left(self, bits: u32) -> Self {
                self.checked_shl(bits).unwrap_or(0)
            }
            #[inline]
            fn trailing_zeros(self) -> u32 {
                self.trailing_zeros()
            }
            #[inline]
            fn index(self) -> usize {
                usize::try_from(self).unwrap_or(usize::MAX)
            }
            #[inline]
            fn from_index(index: usize) -> Self {
                index as $type
            }
            #[inline]
            fn low_bits(self, bits: u32) -> u64 {
                (self >> (bits % <$type>::BITS)) as u64
            }
            #[inline(always)]
            fn shift_right_to(self, bits: u32, max: u32) -> u32 {
                (self >> (bits % <$type>::BITS)).min(max.into()) as u32
            }
            #[inline(always)]
            fn slot_from(self, origin: Self, shift: u32) -> u64 {
                // Signed, so that before the origin is less than zero, and the bounds are found without a branch.
                let slot = (self.wrapping_sub(origin) as $signed) >> (shift % <$type>::BITS);
                slot.clamp(0, 63) as u64
            }
            #[inline(always)]
            fn from_words(words: &[u32]) -> Self {
                let mut value = 0;
                for index in 0..Self::WORDS {
                    value |= <$type>::from(words[index]) << (32 * index);
                }
                value
            }
            fn push_words(self, words: &mut Vec<u32>) {
                words.extend((0..Self::WORDS).map(|index| (self >> (32 * index)) as u32));
            }
        }
    };
}
address!(u32, i32);
address!(u128, i128);

/// From `start` on, up to the start of the next run, the answer is `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run<A> {
    pub(super) start: A,
    pub(super) value: u16,
}

/// The runs of `prefixes` in address order. The first starts at address zero; neighbours differ in value.
pub(super) fn runs<A: Address>(prefixes: &[(A, u8, u16)]) -> Vec<Run<A>> {
    let mut sorted: Vec<(A, u8, u16)> = prefixes
        .iter()
        .map(|&(address, len, value)| {
            assert!(u32::from(len) <= A::BITS, "prefix length {len} of {address:x?} exceeds {}", A::BITS);
            assert!(value != NONE, "value 0xffff of {address:x?}/{len} is reserved for `no route`");
            (address.round_down(A::BITS - u32::from(len)), len, value)
        })
        .collect();
    // Stable, so that of equal prefixes the last given comes last.
    sorted.sort_by_key(|&(address, len, _)| (address, len));

    let mut runs = Vec::with_capacity(2 * sorted.len() + 1);
    runs.push(Run { start: A::ZERO, value: NONE });
    // The prefixes around the current address, outermost first: last address and value.
    let mut covering: Vec<(A, u16)> = Vec::new();
    for &(start, len, value) in &sorted {
        let last = last_address(start, len);
        close_until(Some(start), &mut covering, &mut runs);
        covering.push((last, value));
        begin_run(start, value, &mut runs);
    }
    close_until(None, &mut covering, &mut runs);
    runs.shrink_to_fit();
    runs
}

fn last_address<A: Address>(start: A, len: u8) -> A {
    let size_less_one = A::MAX.shift_right(u32::from(len));
    start.wrapping_add(size_less_one)
}

/// Ends every covering prefix that lies wholly before `next`, or all of them.
fn close_until<A: Address>(next: Option<A>, covering: &mut Vec<(A, u16)>, runs: &mut Vec<Run<A>>) {
    while let Some(&(last, _)) = covering.last() {
        if next.is_some_and(|next| last >= next) {
            return;
        }
        covering.pop();
        if last < A::MAX {
            let value = covering.last().map_or(NONE, |&(_, value)| value);
            begin_run(last.wrapping_add(A::from_index(1)), value, runs);
        }
    }
}

fn begin_run<A: Address>(start: A, value: u16, runs: &mut Vec<Run<A>>) {
    if runs.last().is_some_and(|run| run.start == start) {
        runs.pop();
    }
    if runs.last().is_none_or(|run| run.value != value) {
        runs.push(Run { start, value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u32, value: u16) -> Run<u32> {
        Run { start, value }
    }

    #[test]
    fn no_prefix_is_one_run_without_an_answer() {
        assert_eq!(runs::<u32>(&[]), [run(0, NONE)]);
    }

    #[test]
    fn default_route_is_one_run() {
        assert_eq!(runs(&[(0xdead_beef_u32, 0, 7)]), [run(0, 7)]);
    }

    #[test]
    fn nested_prefixes_interrupt_the_outer_run() {
        assert_eq!(
            runs(&[(0x0a00_0000, 8, 1), (0x0a01_0000, 16, 2), (0x0a01_00ff, 32, 3)]),
            [
                run(0, NONE),
                run(0x0a00_0000, 1),
                run(0x0a01_0000, 2),
                run(0x0a01_00ff, 3),
                run(0x0a01_0100, 2),
                run(0x0a02_0000, 1),
                run(0x0b00_0000, NONE),
            ]
        );
    }

    #[test]
    fn neighbours_with_equal_values_are_one_run() {
        assert_eq!(runs(&[(0, 1, 4), (0x8000_0000, 1, 4)]), [run(0, 4)]);
        assert_eq!(runs(&[(0, 0, 4), (0x8000_0000, 8, 4)]), [run(0, 4)]);
    }

    #[test]
    fn of_equal_prefixes_the_last_wins() {
        assert_eq!(runs(&[(0, 1, 4), (0x7fff_ffff, 1, 5)]), [run(0, 5), run(0x8000_0000, NONE)]);
    }

    #[test]
    fn the_last_address_of_the_space_can_be_a_run() {
        assert_eq!(runs(&[(u128::MAX, 128, 9)]), [Run { start: 0, value: NONE }, Run { start: u128::MAX, value: 9 }]);
    }
}
