//! From runs to the match structure.

use super::runs::{Address, NONE, Run, runs};
use super::trie::{Block, CHILD, Root, SLOTS, STRIDE, Trie};

/// Blocks that even a table of a few routes may have: 16 x 16 bytes, four cache lines.
const ROOT_BLOCKS_MIN: usize = 16;
/// Most blocks of a root: 2^18 x 16 bytes = 4 MiB resolve an IPv4 table down to /24 with one node-free access.
const ROOT_BLOCKS_MAX: usize = 1 << 18;
/// Blocks granted per run; more make the root finer but leave less of it in cache.
const ROOT_BLOCKS_PER_RUN: usize = 2;

/// Answers that a direct root of few runs may have: 4 KiB, of which lookups touch what they use.
const DIRECT_SLOTS_MIN: usize = 1 << 11;
/// Direct slots granted per run: 32 bytes, as much as blocks may take.
const DIRECT_SLOTS_PER_RUN: usize = 16;

impl<A: Address> Trie<A> {
    pub(super) fn build(prefixes: &[(A, u8, u16)]) -> Trie<A> {
        let runs = runs(prefixes);
        let window = Window::over(&runs);
        let positions = window.positions(&runs);
        let mut builder = Builder::default();
        let root = if window.is_direct {
            Root::Direct(window.answers(&positions))
        } else {
            let mut blocks = builder.root(&window, &positions);
            let (changes, entries) = Group::beginning_with(window.outside.into()).store(&mut builder.entries);
            blocks.push(Block { changes, entries });
            Root::Blocks(blocks.into_boxed_slice(), builder.entries.into_boxed_slice())
        };
        let block_shift = window.slot_shift + STRIDE;
        Trie {
            base: window.base,
            slot_shift: window.slot_shift,
            // Without a block it is position zero, which falls into the block of `outside`.
            last: A::from_index(window.block_count)
                .shift_left(block_shift)
                .wrapping_sub(A::from_index(usize::from(window.block_count > 0))),
            outside: window.outside,
            root,
            arch: pulp::Arch::new(),
            nodes: builder.nodes.into_boxed_slice(),
        }
    }
}

/// Which part of the address space the root lies over.
#[derive(Debug)]
struct Window<A> {
    base: A,
    /// Blocks of the root; the addresses behind them are all in the longest run.
    block_count: usize,
    slot_shift: u32,
    /// An answer per slot is affordable and suffices.
    is_direct: bool,
    outside: u16,
}

impl<A: Address> Window<A> {
    /// Leaves out the longest run, the address space taken as a ring.
    fn over(runs: &[Run<A>]) -> Window<A> {
        let joined = runs.len() > 1 && runs[0].value == runs[runs.len() - 1].value;
        let ring = if joined { &runs[1..] } else { runs };
        let coarsest = A::BITS - STRIDE - 1;
        if ring.len() == 1 {
            let outside = ring[0].value;
            return Window { base: A::ZERO, block_count: 0, slot_shift: coarsest, is_direct: false, outside };
        }
        let next_start = |index: usize| ring[(index + 1) % ring.len()].start;
        let longest = (0..ring.len())
            .max_by_key(|&index| next_start(index).wrapping_sub(ring[index].start))
            .expect("a ring of two runs or more has a longest");
        let (gap, gap_end) = (ring[longest], next_start(longest));

        let finest = ring.iter().map(|run| run.start.trailing_zeros()).min().unwrap_or(0).min(coarsest);
        let blocks_max = (ROOT_BLOCKS_PER_RUN * ring.len()).clamp(ROOT_BLOCKS_MIN, ROOT_BLOCKS_MAX);
        let direct_slots_max = (DIRECT_SLOTS_PER_RUN * ring.len()).max(DIRECT_SLOTS_MIN);
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
            let is_direct = slot_shift == finest && block_count <= direct_slots_max / SLOTS;
            Window { base, block_count, slot_shift, is_direct, outside: gap.value }
        };
        (finest..=coarsest)
            .map(window_at)
            .find(|window| window.is_direct || window.block_count <= blocks_max)
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

    /// The answer of every slot, and `outside`. No run begins inside a slot.
    fn answers(&self, positions: &[Run<A>]) -> Box<[u16]> {
        let count = self.block_count * SLOTS;
        let mut answers = Vec::with_capacity(count + 1);
        for (index, run) in positions.iter().enumerate() {
            let end = positions.get(index + 1).map_or(count, |next| next.start.shift_right(self.slot_shift).index());
            answers.resize(end.min(count), run.value);
        }
        answers.push(self.outside);
        answers.into_boxed_slice()
    }
}

/// Collects what the root leads to.
#[derive(Debug, Default)]
struct Builder {
    nodes: Vec<u32>,
    /// Of the root's blocks.
    entries: Vec<u32>,
}

impl Builder {
    fn root<A: Address>(&mut self, window: &Window<A>, positions: &[Run<A>]) -> Vec<Block> {
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
                let (changes, entries) =
                    self.group(origin, window.slot_shift, value, &rest[..inside]).store(&mut self.entries);
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
    fn group<A: Address>(&mut self, origin: A, shift: u32, value: u16, inside: &[Run<A>]) -> Group {
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
        group
    }

    /// Adds the node for a slot within which the runs `inside` begin (at least one, none at its very start).
    fn node<A: Address>(&mut self, value: u16, inside: &[Run<A>]) -> u32 {
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
        let group = self.group(origin, shift, value, inside);
        let index = u32::try_from(self.nodes.len()).ok().filter(|index| index & CHILD == 0);
        origin.push_words(&mut self.nodes);
        self.nodes.extend([group.changes as u32, (group.changes >> 32) as u32, shift]);
        self.nodes.extend_from_slice(&group.entries[..group.count]);
        index.expect("nodes take less than 8 GiB")
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
