//! Longest-prefix match structures; values are small integers.

/// IPv4 longest-prefix match. Value 0..=0xFFFE. Built once.
#[derive(Debug)]
pub struct Lpm4 {
    _private: (),
}

impl Lpm4 {
    /// Builds from (address bits in host order, prefix length 0..=32, value); host bits beyond the length are ignored; of equal prefixes the last wins.
    pub fn build(prefixes: &[(u32, u8, u16)]) -> Lpm4 {
        let _ = prefixes;
        todo!()
    }
    /// The value of the longest prefix that covers `address` (host byte order).
    #[inline]
    pub fn lookup(&self, address: u32) -> Option<u16> {
        let _ = address;
        todo!()
    }
    /// Looks up a batch; `values[i]` answers `addresses[i]`. Interleaves memory accesses, so it outruns single lookups on large tables.
    pub fn lookup_batch(&self, addresses: &[u32], values: &mut [Option<u16>]) {
        let _ = (addresses, values);
        todo!()
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        todo!()
    }
}

/// IPv6 longest-prefix match; as [`Lpm4`] with 128-bit addresses, lengths 0..=128.
#[derive(Debug)]
pub struct Lpm6 {
    _private: (),
}

impl Lpm6 {
    /// As [`Lpm4::build`].
    pub fn build(prefixes: &[(u128, u8, u16)]) -> Lpm6 {
        let _ = prefixes;
        todo!()
    }
    /// As [`Lpm4::lookup`].
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<u16> {
        let _ = address;
        todo!()
    }
    /// Heap bytes held.
    pub fn memory(&self) -> usize {
        todo!()
    }
}
