//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The endianness story of the crate: a one's-complement sum is byte-order independent up to a swap (RFC 1071 section
//! 2 B). Bulk sums therefore add native words. Arithmetic is modulo 65,535, where swapping the two bytes of a 16-bit
//! word is multiplication by 256, so one shift turns a native sum into a big-endian one. Every `u64` sum that leaves
//! this module has big-endian meaning: header fields as numbers (lengths, protocols, addresses) may be added to it.

use crate::ip::Version;
use pulp::{Arch, Simd, WithSimd};

/// Inputs up to this many bytes are summed by plain 64-bit adds: a header is done before a SIMD call would have begun.
const SHORT_LEN: usize = 64;

/// Unfolded one's-complement sum of `bytes` (an odd last byte is padded with zero), added to `initial`. Values add; fold at the end.
/// Runs at the widest SIMD the CPU has (pulp).
///
/// Sums of consecutive pieces add up to the sum of the whole if every piece but the last has an even length. A carry
/// out of 64 bits is added back, so no `initial` is too large.
#[inline]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    // `Arch::new` is a relaxed load per instruction set once the first call has asked the CPU.
    let native = if bytes.len() <= SHORT_LEN { sum_short(bytes) } else { Arch::new().dispatch(SumLong(bytes)) };
    add(initial, to_big_endian(native))
}

/// As [`sum`], and copies `from` to `to` in the same pass: what is read once need not stay in the first-level cache.
///
/// # Panics
/// If their lengths differ.
#[inline]
pub fn copy(from: &[u8], to: &mut [u8], initial: u64) -> u64 {
    assert_eq!(from.len(), to.len(), "a copy is as long as what it is made from");
    let native = if from.len() <= SHORT_LEN {
        to.copy_from_slice(from);
        sum_short(from)
    } else {
        Arch::new().dispatch(CopyLong(from, to))
    };
    add(initial, to_big_endian(native))
}

/// Folds to 16 bits, big-endian meaning, not complemented.
///
/// Zero only for a sum of zero; other multiples of 65,535 fold to 0xFFFF.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// RFC 1624 equation 3: the checksum after a 16-bit field changed from `old` to `new`.
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(((sum >> 16) + (sum & 0xffff)) as u16)
}

/// Sum of the IPv4 or IPv6 pseudo-header of a checked packet for a transport length (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline]
pub fn pseudo(packet: &[u8], inner: &crate::Inner, transport_len: usize) -> u64 {
    let addresses = match inner.version {
        Version::V4 => u64::from(inner.src4(packet)) + u64::from(inner.dst4(packet)),
        Version::V6 => words_of(inner.src6(packet)) + words_of(inner.dst6(packet)),
    };
    addresses + u64::from(inner.protocol) + transport_len as u64
}

/// Sum of an IPv4 header without options; of a correct one it folds to 0xFFFF.
#[inline]
pub(crate) fn sum_header(header: &[u8; 20]) -> u64 {
    to_big_endian(sum_short(header))
}

/// One's-complement addition in 64 bits: the carry comes back in.
#[inline]
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The sum of an address as four 32-bit numbers, at most 34 bits.
#[inline]
fn words_of(address: u128) -> u64 {
    let (high, low) = ((address >> 64) as u64, address as u64);
    (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff)
}

/// A native-order sum as a big-endian one of at most 41 bits (module documentation).
#[inline]
fn to_big_endian(native: u64) -> u64 {
    let sum = (native >> 32) + (native & 0xffff_ffff);
    if cfg!(target_endian = "little") { sum << 8 } else { sum }
}

/// Native-order sum by 64-bit adds. Wide enough for any slice: at most 2^61 words of 64 bits.
#[inline]
fn sum_short(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut total: u128 = 0;
    for word in words {
        total += u128::from(u64::from_ne_bytes(*word));
    }
    ((total >> 64) as u64) + ((total as u64) >> 32) + (total as u64 & 0xffff_ffff) + sum_tail(rest)
}

/// Native-order sum of the fewer than eight bytes after the last 64-bit word.
#[inline]
fn sum_tail(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let (words, rest) = rest.as_chunks::<2>();
    total += words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum::<u64>();
    if let [last] = rest {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The SIMD loop, written so that the compiler vectorises it for whatever instruction set pulp dispatches to.
struct SumLong<'a>(&'a [u8]);

impl WithSimd for SumLong<'_> {
    type Output = u64;

    /// Adds whole 64-bit words with wrap-around and, apart, their high halves: three operations per vector. The low
    /// halves' sum is what remains: `whole - (high << 32)`, exact modulo 2^64 because it fits. One flat loop, because
    /// the compiler would vectorise across hand-made lanes with gathers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> u64 {
        let (words, rest) = self.0.as_chunks::<8>();
        let mut total = Total::default();
        for word in words {
            total.add(word);
        }
        total.native() + sum_tail(rest)
    }
}

/// The same with a store of each word.
struct CopyLong<'a>(&'a [u8], &'a mut [u8]);

impl WithSimd for CopyLong<'_> {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> u64 {
        let (words, rest) = self.0.as_chunks::<8>();
        let (to_words, to_rest) = self.1.as_chunks_mut::<8>();
        let mut total = Total::default();
        for (word, to) in words.iter().zip(to_words) {
            *to = *word;
            total.add(word);
        }
        to_rest.copy_from_slice(rest);
        total.native() + sum_tail(rest)
    }
}

/// A sum of words, and apart that of their high halves.
#[derive(Default)]
struct Total {
    whole: u64,
    high: u64,
}

impl Total {
    #[inline(always)]
    fn add(&mut self, word: &[u8; 8]) {
        let word = u64::from_ne_bytes(*word);
        self.whole = self.whole.wrapping_add(word);
        self.high = self.high.wrapping_add(word >> 32);
    }

    #[inline(always)]
    fn native(&self) -> u64 {
        self.high + self.whole.wrapping_sub(self.high << 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sum` dispatches to the best set of the machine that runs it; packets meet the others elsewhere.
    #[test]
    fn every_instruction_set_yields_the_same_sum() {
        let bytes: Vec<u8> = (0..2000u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
        let mut copied = [0; 2000];
        for len in 0..bytes.len() {
            let expected = fold(sum_short(&bytes[..len]));
            assert_eq!(
                fold(Simd::vectorize(pulp::Scalar::new(), CopyLong(&bytes[..len], &mut copied[..len]))),
                expected
            );
            assert_eq!(copied[..len], bytes[..len]);
            copied.fill(0);
            assert_eq!(fold(Arch::new().dispatch(CopyLong(&bytes[..len], &mut copied[..len]))), expected);
            assert_eq!(copied[..len], bytes[..len]);
            assert!(copied[len..].iter().all(|byte| *byte == 0));
            copied.fill(0);
            assert_eq!(fold(Simd::vectorize(pulp::Scalar::new(), SumLong(&bytes[..len]))), expected);
            assert_eq!(fold(Arch::new().dispatch(SumLong(&bytes[..len]))), expected);
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                assert_eq!(fold(Simd::vectorize(v3, SumLong(&bytes[..len]))), expected);
            }
        }
    }
}
