//! The match structure over runs, generic over the address width. Laid out and explained in [`super`].

use super::runs::{Address, NONE};

/// Set in an entry that is the index of a node; a clear bit means the low 16 bits are the answer.
pub(super) const CHILD: u32 = 1 << 31;

/// Address bits that one block or node resolves.
pub(super) const STRIDE: u32 = 6;
pub(super) const SLOTS: usize = 1 << STRIDE;

/// Lookups of a batch that go through the levels side by side: enough to cover the latency of the last cache level.
const STAGE_LEN: usize = 32;

/// 64 equal slots of the root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Bit `i` is set where slot `i` has another entry than slot `i - 1`; bit 0 is clear.
    pub(super) changes: u64,
    /// Index of slot 0's entry; the others follow in order, one per set bit.
    pub(super) entries: u32,
}

/// What lies over the window of the address space that has more than one run. Its last answer is the longest run's, so
/// that a batch need not ask whether an address lies behind the others.
#[derive(Debug)]
pub(super) enum Root {
    /// An answer per slot, where no run begins inside a slot and the runs pay for all slots.
    Direct(Box<[u16]>),
    /// Blocks of slots, and the entries that they share out.
    Blocks(Box<[Block]>, Box<[u32]>),
}

/// Longest-prefix match as a shallow trie over the runs of the prefix set.
#[derive(Debug)]
pub(super) struct Trie<A> {
    /// The address at which slot 0 begins; all further positions count from here, modulo the address space.
    pub(super) base: A,
    /// log2 of the addresses per root slot.
    pub(super) slot_shift: u32,
    /// The last position that a slot covers. Asked first, because comparing wide positions is cheaper than shifting them.
    pub(super) last: A,
    /// The answer for positions behind `last`.
    pub(super) outside: u16,
    pub(super) root: Root,
    /// What the CPU can do, asked once: lookups only match on it.
    pub(super) arch: pulp::Arch,
    /// One after another: origin, `changes` (low half first), shift, entries. A node's 64 slots are `1 << shift` addresses
    /// wide and lie, from its origin on, over the part of the slot above where runs begin. Addresses before the first
    /// slot belong to the first, addresses behind the last slot to the last. Header and entries lie together, because a
    /// lookup needs both and large tables miss the cache for each line.
    pub(super) nodes: Box<[u32]>,
}

impl<A: Address> Trie<A> {
    #[inline]
    pub(super) fn lookup(&self, address: A) -> Option<u16> {
        let position = address.wrapping_sub(self.base);
        if position > self.last {
            return answer(self.outside);
        }
        match &self.root {
            Root::Direct(answers) => answer(answers[position.low_bits(self.slot_shift) as usize]),
            Root::Blocks(blocks, entries) => self.arch.dispatch(Single { trie: self, blocks, entries, position }),
        }
    }

    /// `values[i]` answers `addresses[i]`; the slices are equally long.
    pub(super) fn lookup_batch(&self, addresses: &[A], values: &mut [Option<u16>]) {
        self.arch.dispatch(Batch { trie: self, addresses, values });
    }

    /// From the entry of a node's parent, which has [`CHILD`] set, to the node's own entry for `position`.
    #[inline(always)]
    fn step(&self, position: A, entry: u32) -> u32 {
        let node = &self.nodes[(entry & !CHILD) as usize..];
        let (header, entries) = node.split_at(A::WORDS + 3);
        let changes = u64::from(header[A::WORDS]) | u64::from(header[A::WORDS + 1]) << 32;
        entries[changes_up_to(changes, position.slot_from(A::from_words(header), header[A::WORDS + 2]))]
    }

    pub(super) fn memory(&self) -> usize {
        let root = match &self.root {
            Root::Direct(answers) => size_of_val(&**answers),
            Root::Blocks(blocks, entries) => size_of_val(&**blocks) + size_of_val(&**entries),
        };
        root + size_of_val(&*self.nodes)
    }
}

/// One call of [`Trie::lookup_batch`]. A type and not a closure: a closure's `call_once` is not always inlined into the
/// function that enables the CPU features, and then it is compiled without them.
struct Batch<'a, A> {
    trie: &'a Trie<A>,
    addresses: &'a [A],
    values: &'a mut [Option<u16>],
}

impl<A: Address> pulp::WithSimd for Batch<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let (stages, rest) = self.addresses.as_chunks::<STAGE_LEN>();
        let (values, values_rest) = self.values.as_chunks_mut::<STAGE_LEN>();
        match &self.trie.root {
            Root::Direct(answers) => {
                for (addresses, values) in stages.iter().zip(values) {
                    self.trie.direct_stage(answers, addresses, values);
                }
            }
            Root::Blocks(blocks, entries) => {
                for (addresses, values) in stages.iter().zip(values) {
                    self.trie.block_stage(blocks, entries, addresses, values);
                }
            }
        }
        for (value, &address) in values_rest.iter_mut().zip(rest) {
            *value = self.trie.lookup(address);
        }
    }
}

/// One lookup below a root of blocks. It counts bits twice or more often, which pays for the call of a function that may use
/// the CPU's own instruction for it.
struct Single<'a, A> {
    trie: &'a Trie<A>,
    blocks: &'a [Block],
    entries: &'a [u32],
    position: A,
}

impl<A: Address> pulp::WithSimd for Single<'_, A> {
    type Output = Option<u16>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) -> Option<u16> {
        let Single { trie, blocks, entries, position } = self;
        let block = &blocks[position.low_bits(trie.slot_shift + STRIDE) as usize];
        let slot = position.low_bits(trie.slot_shift) % SLOTS as u64;
        let mut entry = entries[block.entries as usize + changes_up_to(block.changes, slot)];
        while entry & CHILD != 0 {
            entry = trie.step(position, entry);
        }
        answer(entry as u16)
    }
}

/// [`STAGE_LEN`] lookups, each load for all of them before the next. No branch depends on an address, so that the CPU can
/// run far ahead, and what needs no load is left to vectors.
impl<A: Address> Trie<A> {
    #[inline(always)]
    fn direct_stage(&self, answers: &[u16], addresses: &[A; STAGE_LEN], values: &mut [Option<u16>; STAGE_LEN]) {
        let slots = self.indexes(addresses, self.slot_shift, answers.len());
        for (value, slot) in values.iter_mut().zip(slots) {
            *value = answer(answers[slot as usize]);
        }
    }

    #[inline(always)]
    fn block_stage(
        &self,
        blocks: &[Block],
        entries: &[u32],
        addresses: &[A; STAGE_LEN],
        values: &mut [Option<u16>; STAGE_LEN],
    ) {
        let indexes = self.indexes(addresses, self.slot_shift + STRIDE, blocks.len());
        let mut found = [0u32; STAGE_LEN];
        for i in 0..STAGE_LEN {
            let slot = addresses[i].wrapping_sub(self.base).low_bits(self.slot_shift) % SLOTS as u64;
            let block = &blocks[indexes[i] as usize];
            found[i] = block.entries + changes_up_to(block.changes, slot) as u32;
        }
        for entry in &mut found {
            *entry = entries[*entry as usize];
        }
        if !self.nodes.is_empty() {
            self.descend_stage(addresses, &mut found);
        }
        for (value, entry) in values.iter_mut().zip(found) {
            *value = answer(entry as u16);
        }
    }

    /// Follows those of `found` that lead to nodes, level by level. Which ones do is written down without a branch: a
    /// guess per lookup would be wrong half the time in a table of mixed lengths.
    #[inline(always)]
    fn descend_stage(&self, addresses: &[A; STAGE_LEN], found: &mut [u32; STAGE_LEN]) {
        let mut pending = [0u8; STAGE_LEN];
        let mut count = 0;
        for (i, entry) in found.iter().enumerate() {
            pending[count % STAGE_LEN] = i as u8;
            count += usize::from(entry & CHILD != 0);
        }
        while count > 0 {
            let mut left = 0;
            for at in 0..count {
                let i = usize::from(pending[at]) % STAGE_LEN;
                found[i] = self.step(addresses[i].wrapping_sub(self.base), found[i]);
                pending[left] = i as u8;
                left += usize::from(found[i] & CHILD != 0);
            }
            count = left;
        }
    }

    /// Which of `count` slots or blocks of `1 << shift` addresses the addresses fall into; behind all means into the last.
    #[inline(always)]
    fn indexes(&self, addresses: &[A; STAGE_LEN], shift: u32, count: usize) -> [u32; STAGE_LEN] {
        let last = (count - 1) as u32;
        let mut indexes = [0; STAGE_LEN];
        // Not `map`, which is a call of a function compiled without the CPU features.
        for (index, address) in indexes.iter_mut().zip(addresses) {
            *index = address.wrapping_sub(self.base).shift_right_to(shift, last);
        }
        indexes
    }
}

#[inline(always)]
fn answer(value: u16) -> Option<u16> {
    (value != NONE).then_some(value)
}

/// How many slots up to and including `slot` (0..=63) begin a new entry.
#[inline(always)]
fn changes_up_to(changes: u64, slot: u64) -> usize {
    (changes << (SLOTS as u64 - 1 - slot)).count_ones() as usize
}
