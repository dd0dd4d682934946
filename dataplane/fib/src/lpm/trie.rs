//! The match structure over runs, generic over the address width. Laid out and explained in [`super`].

use super::runs::{Address, NONE, Run, runs};

/// Set in an entry that is the index of a [`Node`]; a clear bit means the low 16 bits are the answer.
const CHILD: u32 = 1 << 31;

/// Address bits that one block or node resolves.
const STRIDE: u32 = 6;
const SLOTS: usize = 1 << STRIDE;

/// Blocks that even a table of a few routes may have: 16 x 16 bytes, four cache lines.
const ROOT_BLOCKS_MIN: usize = 16;
/// Most blocks of a root: 2^18 x 16 bytes = 4 MiB resolve an IPv4 table down to /24 with one node-free access.
const ROOT_BLOCKS_MAX: usize = 1 << 18;
/// Blocks granted per run; more make the root finer but leave less of it in cache.
const ROOT_BLOCKS_PER_RUN: usize = 2;

/// Lookups of a batch that go through the levels side by side: enough to cover the latency of the last cache level.
const STAGE_LEN: usize = 32;

/// 64 equal slots of the root.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Bit `i` is set where slot `i` has another entry than slot `i - 1`; bit 0 is clear.
    changes: u64,
    /// Index of slot 0's entry; the others follow in order, one per set bit.
    entries: u32,
}

/// 64 equal slots below a slot of the root or of another node, laid over the part of that slot where runs begin.
/// Addresses before the first slot belong to the first, addresses behind the last slot to the last.
#[derive(Clone, Copy, Debug)]
struct Node<A> {
    /// Where slot 0 begins.
    origin: A,
    /// As in [`Block`].
    changes: u64,
    /// As in [`Block`].
    entries: u32,
    /// Slots are `1 << shift` addresses wide.
    shift: u8,
}

/// Longest-prefix match as a shallow trie over the runs of the prefix set.
#[derive(Debug)]
pub(super) struct Trie<A> {
    /// The address at which block 0 begins; all further positions count from here, modulo the address space.
    base: A,
    /// log2 of the addresses per root slot.
    slot_shift: u32,
    /// The last position that a block covers. Asked first, because comparing wide positions is cheaper than shifting them.
    last: A,
    /// The answer for positions behind `last`.
    outside: u16,
    /// The last one is of `outside`, so that a batch need not ask whether an address lies behind the others.
    blocks: Box<[Block]>,
    nodes: Box<[Node<A>]>,
    entries: Box<[u32]>,
}

impl<A: Address> Trie<A> {
    pub(super) fn build(prefixes: &[(A, u8, u16)]) -> Trie<A> {
        let runs = runs(prefixes);
        let mut builder = Builder { nodes: Vec::new(), entries: Vec::new() };
        let window = Window::over(&runs);
        let mut blocks = builder.root(&window, &window.positions(&runs));
        let (changes, entries) = Group::beginning_with(window.outside.into()).store(&mut builder.entries);
        blocks.push(Block { changes, entries });
        Trie {
            base: window.base,
            slot_shift: window.slot_shift,
            // Without a block it is position zero, which falls into the block of `outside`.
            last: A::from_index(window.block_count)
                .shift_left(window.slot_shift + STRIDE)
                .wrapping_sub(A::from_index(usize::from(window.block_count > 0))),
            outside: window.outside,
            blocks: blocks.into_boxed_slice(),
            nodes: builder.nodes.into_boxed_slice(),
            entries: builder.entries.into_boxed_slice(),
        }
    }

    #[inline]
    pub(super) fn lookup(&self, address: A) -> Option<u16> {
        let position = address.wrapping_sub(self.base);
        if position > self.last {
            return answer(self.outside.into());
        }
        let block = &self.blocks[position.low_bits(self.slot_shift + STRIDE) as usize];
        answer(self.descend(position, self.entries[self.entry_of(block, position)]))
    }

    /// `values[i]` answers `addresses[i]`; the slices are equally long.
    pub(super) fn lookup_batch(&self, addresses: &[A], values: &mut [Option<u16>]) {
        pulp::Arch::new().dispatch(Batch { trie: self, addresses, values });
    }

    /// Up to [`STAGE_LEN`] lookups, each load for all of them before the next. Without a branch that depends on the address
    /// until the rare descent below the root, so that the CPU can run far ahead.
    #[inline(always)]
    fn lookup_stage(&self, addresses: &[A], values: &mut [Option<u16>]) {
        let mut entries = [0; STAGE_LEN];
        for (entry, address) in entries.iter_mut().zip(addresses) {
            let position = address.wrapping_sub(self.base);
            let index = position.shift_right(self.slot_shift + STRIDE).index().min(self.blocks.len() - 1);
            *entry = self.entry_of(&self.blocks[index], position) as u32;
        }
        for entry in &mut entries[..addresses.len()] {
            *entry = self.entries[*entry as usize];
        }
        for ((value, address), entry) in values.iter_mut().zip(addresses).zip(entries) {
            *value = answer(self.descend(address.wrapping_sub(self.base), entry));
        }
    }

    #[inline(always)]
    fn entry_of(&self, block: &Block, position: A) -> usize {
        block.entries as usize + changes_up_to(block.changes, position.low_bits(self.slot_shift) % SLOTS as u64)
    }

    /// Follows `entry` to an answer.
    #[inline(always)]
    fn descend(&self, position: A, mut entry: u32) -> u32 {
        while entry & CHILD != 0 {
            let node = &self.nodes[(entry & !CHILD) as usize];
            let offset = position.saturating_sub(node.origin).shift_right(u32::from(node.shift));
            let slot = offset.index().min(SLOTS - 1) as u64;
            entry = self.entries[node.entries as usize + changes_up_to(node.changes, slot)];
        }
        entry
    }

    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.blocks) + size_of_val(&*self.nodes) + size_of_val(&*self.entries)
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
        for (addresses, values) in self.addresses.chunks(STAGE_LEN).zip(self.values.chunks_mut(STAGE_LEN)) {
            self.trie.lookup_stage(addresses, values);
        }
    }
}

#[inline(always)]
fn answer(entry: u32) -> Option<u16> {
    let value = entry as u16;
    (value != NONE).then_some(value)
}

/// How many slots up to and including `slot` (0..=63) begin a new entry.
#[inline(always)]
fn changes_up_to(changes: u64, slot: u64) -> usize {
    (changes << (SLOTS as u64 - 1 - slot)).count_ones() as usize
}

/// Which part of the address space the root lies over.
#[derive(Debug)]
struct Window<A> {
    base: A,
    /// Blocks of the root; the addresses behind them are all in the longest run.
    block_count: usize,
    slot_shift: u32,
    outside: u16,
}

impl<A: Address> Window<A> {
    /// Leaves out the longest run, the address space taken as a ring.
    fn over(runs: &[Run<A>]) -> Window<A> {
        let joined = runs.len() > 1 && runs[0].value == runs[runs.len() - 1].value;
        let ring = if joined { &runs[1..] } else { runs };
        let coarsest = A::BITS - STRIDE - 1;
        if ring.len() == 1 {
            return Window { base: A::ZERO, block_count: 0, slot_shift: coarsest, outside: ring[0].value };
        }
        let next_start = |index: usize| ring[(index + 1) % ring.len()].start;
        let longest = (0..ring.len())
            .max_by_key(|&index| next_start(index).wrapping_sub(ring[index].start))
            .expect("a ring of two runs or more has a longest");
        let (gap, gap_end) = (ring[longest], next_start(longest));

        let finest = ring.iter().map(|run| run.start.trailing_zeros()).min().unwrap_or(0);
        let blocks_max = (ROOT_BLOCKS_PER_RUN * ring.len()).clamp(ROOT_BLOCKS_MIN, ROOT_BLOCKS_MAX);
        let window_at = |slot_shift: u32| {
            // Aligned blocks keep prefixes from straddling them.
            let base = gap_end.round_down(slot_shift + STRIDE);
            let gap_keeps_base = gap_end.wrapping_sub(base) <= gap_end.wrapping_sub(gap.start);
            let (base, last) = if gap_keeps_base {
                (base, gap.start.wrapping_sub(A::from_index(1)).wrapping_sub(base))
            } else {
                (A::ZERO, A::MAX)
            };
            let block_count = last.shift_right(slot_shift + STRIDE).index().saturating_add(1);
            Window { base, block_count, slot_shift, outside: gap.value }
        };
        (finest.min(coarsest)..=coarsest)
            .map(window_at)
            .find(|window| window.block_count <= blocks_max)
            .expect("two blocks cover the address space")
    }

    /// The runs as positions, from the one that covers the base on. The gap comes last and may begin behind every block.
    fn positions(&self, runs: &[Run<A>]) -> Vec<Run<A>> {
        let first = runs.partition_point(|run| run.start < self.base);
        let before = if first == 0 { runs.len() - 1 } else { first - 1 };
        let mut positions = Vec::with_capacity(runs.len() + 1);
        positions.push(Run { start: A::ZERO, value: runs[before].value });
        for run in runs[first..].iter().chain(&runs[..first]) {
            let start = run.start.wrapping_sub(self.base);
            let previous = positions.last_mut().expect("never empty");
            if start == A::ZERO {
                previous.value = run.value;
            } else if run.value != previous.value {
                positions.push(Run { start, value: run.value });
            }
        }
        positions
    }
}

#[derive(Debug)]
struct Builder<A> {
    nodes: Vec<Node<A>>,
    entries: Vec<u32>,
}

impl<A: Address> Builder<A> {
    fn root(&mut self, window: &Window<A>, positions: &[Run<A>]) -> Vec<Block> {
        let block_shift = window.slot_shift + STRIDE;
        let mut rest = positions;
        let mut value = NONE;
        (0..window.block_count)
            .map(|index| {
                let origin = A::from_index(index).shift_left(block_shift);
                if rest.first().is_some_and(|run| run.start == origin) {
                    value = rest[0].value;
                    rest = &rest[1..];
                }
                let inside = rest.iter().take_while(|run| run.start.shift_right(block_shift).index() == index).count();
                let (changes, entries) = self.group(origin, window.slot_shift, value, &rest[..inside]);
                if inside > 0 {
                    value = rest[inside - 1].value;
                    rest = &rest[inside..];
                }
                Block { changes, entries }
            })
            .collect()
    }

    /// Lays out the entries of 64 slots of `1 << shift` positions from `origin` on. `value` is the answer where they
    /// begin, `inside` the runs that begin further on.
    fn group(&mut self, origin: A, shift: u32, value: u16, inside: &[Run<A>]) -> (u64, u32) {
        let mut group = Group::beginning_with(value.into());
        let mut value = value;
        let mut rest = inside;
        while let Some(run) = rest.first() {
            let offset = run.start.wrapping_sub(origin);
            let slot = offset.shift_right(shift).index();
            let count =
                rest.iter().take_while(|run| run.start.wrapping_sub(origin).shift_right(shift).index() == slot).count();
            let (mut inner, behind) = rest.split_at(count);
            let last_value = inner[count - 1].value;
            if offset.round_down(shift) == offset {
                value = run.value;
                inner = &inner[1..];
            }
            if inner.is_empty() {
                group.put(slot, value.into());
            } else {
                group.put(slot, CHILD | self.node(value, inner));
                group.put(slot + 1, last_value.into());
            }
            value = last_value;
            rest = behind;
        }
        group.store(&mut self.entries)
    }

    /// Adds the node for a slot within which the runs `inside` begin (at least one, none at its very start).
    fn node(&mut self, value: u16, inside: &[Run<A>]) -> u32 {
        let (first, last) = (inside[0].start, inside[inside.len() - 1].start);
        let finest = inside.iter().map(|run| run.start.trailing_zeros()).min().unwrap_or(0);
        let origin_at = |shift: u32| {
            let origin = first.round_down(shift);
            // Slot 0 has to begin before the first run does.
            if origin == first { first.wrapping_sub(A::from_index(1).shift_left(shift)) } else { origin }
        };
        let fits = |&shift: &u32| last.wrapping_sub(origin_at(shift)).shift_right(shift).index() < SLOTS;
        let shift = if fits(&finest) {
            finest
        } else {
            // The narrowest slots separate best, but the nodes below should rather be full than many.
            (finest + STRIDE..A::BITS).find(fits).expect("64 slots of half the address space cover it")
        };
        let origin = origin_at(shift);
        let (changes, entries) = self.group(origin, shift, value, inside);
        let index = u32::try_from(self.nodes.len()).expect("nodes are fewer than runs");
        self.nodes.push(Node { origin, changes, entries, shift: shift as u8 });
        index
    }
}

/// The entries of one block or node while they are collected.
struct Group {
    changes: u64,
    entries: [u32; SLOTS],
    count: usize,
    /// The slot that the last entry began at.
    slot: usize,
}

impl Group {
    fn beginning_with(entry: u32) -> Group {
        let mut entries = [0; SLOTS];
        entries[0] = entry;
        Group { changes: 0, entries, count: 1, slot: 0 }
    }

    /// From `slot` on the entry is `entry`; replaces what began at the same slot. A slot behind the last is ignored.
    fn put(&mut self, slot: usize, entry: u32) {
        if slot == SLOTS {
            return;
        }
        if slot != self.slot {
            self.changes |= 1 << slot;
            self.slot = slot;
            self.count += 1;
        }
        self.entries[self.count - 1] = entry;
    }

    /// Appends to `all`, sharing its last entry where the group begins with the same.
    fn store(&self, all: &mut Vec<u32>) -> (u64, u32) {
        let shared = usize::from(all.last() == Some(&self.entries[0]));
        let start = all.len() - shared;
        all.extend_from_slice(&self.entries[shared..self.count]);
        (self.changes, u32::try_from(start).expect("entries are fewer than 2^31"))
    }
}
