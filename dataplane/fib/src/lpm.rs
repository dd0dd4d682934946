//! Longest-prefix match structures; values are small integers.
//!
//! # How a lookup goes
//!
//! The prefixes are first flattened into *runs*: consecutive addresses with one answer. The longest run, the address space
//! taken as a ring, is left out; what remains is the window that the root lies over. In a flannel network that is just
//! the overlay network.
//!
//! Where every run begins at a slot's start and the runs pay for it (32 bytes each), the root is *direct*: two bytes per
//! slot, the answer itself. That is the root of a flannel network, whose slots are as wide as a host's subnet. Any other
//! table has a root of *blocks*:
//!
//! ```text
//!   address - base = position ----> behind the last block? ----> the answer of the longest run
//!        |
//!        v  high bits
//!   blocks  [ changes: u64 | entries: u32 ]   64 slots each; bit i: slot i differs from slot i-1
//!        |                         |
//!        |  six bits: slot         |
//!        +--> count the bits of `changes` up to the slot
//!                                  +--> entries [ answer | node index ]
//!                                                            |
//!                     nodes [ origin | changes | shift | entries ... ] --> the next node ... until an answer
//! ```
//!
//! A node is a block that brings its own scale: its 64 slots lie over just that part of the slot above it where runs begin,
//! however deep that is. Chains are therefore short (one node isolates a /32 in an otherwise empty table, or a /128),
//! and never longer than one node per six address bits. Its entries follow it in the same array.
//!
//! The root's slots are as narrow as the number of runs pays for, at most two blocks (32 bytes) per run and 4 MiB in all,
//! which resolves an IPv4 table down to /24. So 256 subnets of one /16 take half a KiB, 10,000 take 20 KiB and 1,000,000
//! take 2 MiB; 1,000,000 prefixes with Internet-like lengths take 11 MiB.
//!
//! # Why this and not another
//!
//! DIR-24-8 answers with one load, out of 32 MiB for any table; here a flannel network has one load too, out of as many
//! bytes as it needs, and a million mixed prefixes have two, out of a third of the size. Poptrie has the same bitmaps at
//! fixed strides of six bits from the top; leaving out the common part and letting nodes choose their scale saves most of
//! its levels.
//!
//! Counting bits is a dozen instructions on the oldest x86-64 and a single one since 2008. [`Lpm4::lookup_batch`] chooses at
//! run time; a choice per single lookup would cost more than it saves. `benches/benches/fib` measures both beside other
//! crates; the figures are in `docs/performance-fib.md`.

mod build;
mod runs;
mod trie;

use trie::Trie;

/// IPv4 longest-prefix match. Value 0..=0xFFFE. Built once.
///
/// ```
/// let lpm = weft_fib::Lpm4::build(&[(0x0af4_0000, 16, 1), (0x0af4_0700, 24, 7)]);
/// assert_eq!(lpm.lookup(0x0af4_0701), Some(7));
/// assert_eq!(lpm.lookup(0x0af4_0801), Some(1));
/// assert_eq!(lpm.lookup(0x0af5_0001), None);
/// ```
#[derive(Debug)]
pub struct Lpm4 {
    trie: Trie<u32>,
}

impl Lpm4 {
    /// Builds from (address bits in host order, prefix length 0..=32, value); host bits beyond the length are ignored; of equal prefixes the last wins.
    ///
    /// # Panics
    /// If a length exceeds 32 or a value is 0xFFFF.
    pub fn build(prefixes: &[(u32, u8, u16)]) -> Lpm4 {
        Lpm4 { trie: Trie::build(prefixes) }
    }
    /// The value of the longest prefix that covers `address` (host byte order).
    #[inline]
    pub fn lookup(&self, address: u32) -> Option<u16> {
        self.trie.lookup(address)
    }
    /// Looks up a batch; `values[i]` answers `addresses[i]`. Interleaves memory accesses and uses
    /// the CPU's bit count, so it outruns single lookups from a few dozen addresses on.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn lookup_batch(&self, addresses: &[u32], values: &mut [Option<u16>]) {
        assert_eq!(addresses.len(), values.len(), "one value slot per address");
        self.trie.lookup_batch(addresses, values);
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        self.trie.memory()
    }
}

/// IPv6 longest-prefix match; as [`Lpm4`] with 128-bit addresses, lengths 0..=128.
#[derive(Debug)]
pub struct Lpm6 {
    trie: Trie<u128>,
}

impl Lpm6 {
    /// As [`Lpm4::build`], with lengths up to 128.
    ///
    /// # Panics
    /// If a length exceeds 128 or a value is 0xFFFF.
    pub fn build(prefixes: &[(u128, u8, u16)]) -> Lpm6 {
        Lpm6 { trie: Trie::build(prefixes) }
    }
    /// As [`Lpm4::lookup`].
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<u16> {
        self.trie.lookup(address)
    }
    /// As [`Lpm4::lookup_batch`].
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn lookup_batch(&self, addresses: &[u128], values: &mut [Option<u16>]) {
        assert_eq!(addresses.len(), values.len(), "one value slot per address");
        self.trie.lookup_batch(addresses, values);
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        self.trie.memory()
    }
}
