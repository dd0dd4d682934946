//! Longest-prefix match structures; values are small integers.

mod runs;
mod trie;

use trie::Trie;

/// IPv4 longest-prefix match. Value 0..=0xFFFE. Built once.
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
    /// Looks up a batch; `values[i]` answers `addresses[i]`. Interleaves memory accesses, so it outruns single lookups on large tables.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn lookup_batch(&self, addresses: &[u32], values: &mut [Option<u16>]) {
        assert_eq!(addresses.len(), values.len(), "one value slot per address");
        for (address, value) in addresses.iter().zip(values) {
            *value = self.trie.lookup(*address);
        }
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
    pub fn build(prefixes: &[(u128, u8, u16)]) -> Lpm6 {
        Lpm6 { trie: Trie::build(prefixes) }
    }
    /// As [`Lpm4::lookup`].
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<u16> {
        self.trie.lookup(address)
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        self.trie.memory()
    }
}
