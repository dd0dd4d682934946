//! The lane: a worker with a TUN queue and a UDP socket of its own for sparse flows, so that a request does not wait behind the bulk
//! traffic of other flows, neither in the TUN queue nor in the peer's socket.
//!
//! ```text
//!           .-- queue 0.. --- workers ---- sockets 0.. ------- DSCP 0 --------.
//!   TUN ----|                                                                 |---- UDP port
//!     steering program -- last queue --- lane --- last socket -- DSCP AF21 -- choosing program
//! ```
//!
//! Both programs run in the kernel (eBPF). The steering program takes for sparse:
//!  - TCP packets of up to [`SPARSE_LEN_MAX`] bytes that carry payload, or open or close a connection, of a flow that had
//!    no longer packet for [`BULK_FLOW_MEMORY`];
//!  - ICMP packets up to that length, and UDP packets from or to port 53: questions to a name server, and answers, each of which
//!    stands for itself. (Other UDP flows may be streams, which would get out of order when they become bulk.)
//!
//! Of all kinds no more than [`SPARSE_PACKETS_MAX`] in [`BUDGET_WINDOW`]: what comes beyond is a flood of small packets, for which
//! one thread may not be enough, and its flows count as bulk.
//!
//! Acknowledgements without payload stay with the workers: those of bulk flows come by ten thousands a second, and share sends
//! there. A flow goes one way until it was quiet for so long that nothing of it can be under way, so its packets keep their order, but
//! for the turn of a flow that becomes bulk: there a packet in the lane may be overtaken by what follows.
//!
//! The outer DSCP tells the receiving weftd; a peer that is stock flannel, or has no lane, does not look at it.

use crate::limits::{BUDGET_WINDOW, BULK_FLOW_MEMORY, BULK_FLOW_SLOTS, SPARSE_LEN_MAX, SPARSE_PACKETS_MAX};
use crate::sys::bpf::{Code, FP, Helper, If, Map, Op, Program, Reg, Size};
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// Type of service of the lane's datagrams: DSCP AF21, low-latency data (RFC 4594 section 4.7).
pub const LANE_TOS: u8 = 18 << 2;

// Registers that survive calls.
const SKB: Reg = 6;
const LEN: Reg = 7;
/// Where the transport header begins; from there on, the time.
const TRANSPORT: Reg = 8;
const NOW: Reg = 8;
/// What a map has.
const SLOT: Reg = 9;
/// At the end of either program, where no packet is looked at any more.
const CHOICE: Reg = 6;
/// In the program that chooses a socket.
const SOURCE: Reg = 7;
const SOURCE_PORT: Reg = 9;
const CLASS: Reg = 8;
// The stack, below the frame pointer.
const HEADER: i16 = -64;
const KEY: i16 = -24;
const ADDRESSES: i16 = -16;
const PORTS: i16 = -8;
/// The budget's value: when its window began, in nanoseconds, and the packets since.
const BUDGET_LEN: u32 = 16;

// IP protocols (IANA).
const ICMP: i32 = 1;
const TCP: i32 = 6;
const UDP: i32 = 17;
const ICMPV6: i32 = 58;
/// The port of name servers (RFC 1035 section 4.2.1), as it lies in memory.
const DNS: i32 = u16::from_ne_bytes([0, 53]) as i32;

/// An odd number without pattern (2^31 times the golden ratio's fraction): multiplied by it, every bit reaches the upper half.
const MIX: i32 = 0x4f1b_bcdd;

/// Puts `len` bytes of the packet, from offset 0 or from that in a register, where [`HEADER`] is; packets that are shorter are
/// not looked at further.
fn load_header(code: &mut Code, offset: Option<Reg>, len: i32) {
    code.op_by(Op::Set, 1, SKB);
    match offset {
        Some(offset) => code.op_by(Op::Set, 2, offset),
        None => code.op(Op::Set, 2, 0),
    }
    address(code, 3, HEADER);
    code.op(Op::Set, 4, len);
    code.call(Helper::LoadBytes);
    code.jump_if(If::NotEqual, 0, 0, "worker");
}

/// `target = FP + offset`.
fn address(code: &mut Code, target: Reg, offset: i16) {
    code.op_by(Op::Set, target, FP);
    code.op(Op::Add, target, offset.into());
}

/// The workers that flows are shared by: those in use, of as many as there are. Both programs look here for each packet.
#[derive(Debug)]
pub struct Workers {
    count: usize,
    in_use: AtomicUsize,
    /// The same, for the programs.
    map: Map,
}

impl Workers {
    /// `count` workers, of which the first `in_use` share the flows. EPERM without CAP_BPF where `kernel.unprivileged_bpf_disabled` is set.
    pub fn new(count: usize, in_use: usize) -> io::Result<Workers> {
        let workers = Workers { count, in_use: AtomicUsize::new(0), map: Map::array(8, 1)? };
        workers.use_first(in_use)?;
        Ok(workers)
    }

    /// As many as there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// As many as share the flows.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Relaxed)
    }

    /// From the next packet on the first `in_use` share the flows.
    pub fn use_first(&self, in_use: usize) -> io::Result<()> {
        assert!((1..=self.count).contains(&in_use), "{in_use} of {}", self.count);
        self.map.set(0, in_use as u64)?;
        self.in_use.store(in_use, Relaxed);
        Ok(())
    }
}

/// The program that chooses a TUN queue (TUNSETSTEERINGEBPF): for packets of sparse flows the one behind those of `workers`
/// workers, and one of theirs, by flow, for the rest.
pub fn steering(workers: &Workers) -> io::Result<Program> {
    let bulk_flows = Map::array(8, BULK_FLOW_SLOTS)?;
    let budget = Map::array(BUDGET_LEN, 1)?;
    let mut code = Code::default();
    code.op_by(Op::Set, SKB, 1);
    // `struct __sk_buff` begins with the length of the packet. No link-layer header: the packet begins with that of IP.
    code.load(Size::Word, LEN, SKB, 0);
    code.op(Op::Set, 0, 0);
    code.store(FP, ADDRESSES, 0);
    code.store(FP, PORTS, 0);
    load_header(&mut code, None, 20);
    code.load(Size::Byte, 1, FP, HEADER);
    code.op_by(Op::Set, TRANSPORT, 1);
    code.op(Op::Shr, 1, 4);
    code.jump_if(If::Equal, 1, 4, "ipv4");
    code.jump_if(If::NotEqual, 1, 6, "worker");

    load_header(&mut code, None, 40);
    code.op(Op::Set, TRANSPORT, 40);
    // Both addresses, mixed down to eight bytes.
    code.load(Size::Double, 1, FP, HEADER + 8);
    for offset in [16, 24, 32] {
        code.op(Op::Mul, 1, MIX);
        code.load(Size::Double, 2, FP, HEADER + offset);
        code.op_by(Op::Xor, 1, 2);
    }
    code.store(FP, ADDRESSES, 1);
    // An extension header is neither of these.
    code.load(Size::Byte, 1, FP, HEADER + 6);
    code.jump_if(If::Equal, 1, ICMPV6, "each for itself");
    code.jump("protocol");

    code.label("ipv4");
    code.op(Op::And, TRANSPORT, 0x0f);
    code.op(Op::Shl, TRANSPORT, 2);
    code.load(Size::Word, 1, FP, HEADER + 12);
    code.op(Op::Shl, 1, 32);
    code.load(Size::Word, 2, FP, HEADER + 16);
    code.op_by(Op::Or, 1, 2);
    code.store(FP, ADDRESSES, 1);
    // Fragments, the first among them, go by addresses: more fragments, or an offset.
    code.load(Size::Half, 1, FP, HEADER + 6);
    code.op(Op::And, 1, u16::from_ne_bytes([0x3f, 0xff]).into());
    code.jump_if(If::NotEqual, 1, 0, "worker");
    code.load(Size::Byte, 1, FP, HEADER + 9);
    code.jump_if(If::Equal, 1, ICMP, "each for itself");

    code.label("protocol");
    code.jump_if(If::Equal, 1, TCP, "tcp");
    code.jump_if(If::NotEqual, 1, UDP, "worker");
    load_header(&mut code, Some(TRANSPORT), 8);
    code.load(Size::Word, 1, FP, HEADER);
    code.store(FP, PORTS, 1);
    for port in [HEADER, HEADER + 2] {
        code.load(Size::Half, 1, FP, port);
        code.jump_if(If::Equal, 1, DNS, "each for itself");
    }
    code.jump("worker");

    code.label("each for itself");
    code.jump_if(If::Above, LEN, SPARSE_LEN_MAX as i32, "worker");
    look_up_flow(&mut code, &bulk_flows);
    code.jump("sparse");

    code.label("tcp");
    load_header(&mut code, Some(TRANSPORT), 20);
    code.load(Size::Word, 1, FP, HEADER);
    code.store(FP, PORTS, 1);
    code.jump_if(If::Above, LEN, SPARSE_LEN_MAX as i32, "long segment");
    code.load(Size::Byte, 1, FP, HEADER + 13);
    // FIN, SYN, RST.
    code.op(Op::And, 1, 0x07);
    code.jump_if(If::NotEqual, 1, 0, "if quiet");
    // The data offset in words is the upper half of its byte; where the header ends, payload begins.
    code.load(Size::Byte, 1, FP, HEADER + 12);
    code.op(Op::Shr, 1, 4);
    code.op(Op::Shl, 1, 2);
    code.op_by(Op::Add, 1, TRANSPORT);
    code.jump_if_by(If::AtLeast, 1, LEN, "worker");
    code.label("if quiet");
    look_up_flow(&mut code, &bulk_flows);
    code.load(Size::Double, 1, SLOT, 0);
    code.op_by(Op::Set, 2, NOW);
    code.op_by(Op::Sub, 2, 1);
    code.jump_if(If::Below, 2, BULK_FLOW_MEMORY.as_nanos() as i32, "worker");
    code.label("sparse");
    spend(&mut code, &budget, "bulk");
    code.jump("lane");

    code.label("long segment");
    look_up_flow(&mut code, &bulk_flows);
    code.label("bulk");
    code.store(SLOT, 0, NOW);
    code.label("worker");
    code.load(Size::Double, 0, FP, ADDRESSES);
    code.load(Size::Double, 1, FP, PORTS);
    choose(&mut code, workers, None);
    code.label("lane");
    code.op(Op::Set, 0, workers.count as i32);
    code.exit();
    Program::load(code)
}

/// `NOW`, and `SLOT` = where the time of the packet's flow is.
fn look_up_flow(code: &mut Code, bulk_flows: &Map) {
    code.call(Helper::Now);
    code.op_by(Op::Set, NOW, 0);
    code.load(Size::Double, 0, FP, ADDRESSES);
    code.load(Size::Double, 1, FP, PORTS);
    mix(code);
    code.op(Op::And, 0, BULK_FLOW_SLOTS as i32 - 1);
    code.store(FP, KEY, 0);
    code.map(1, bulk_flows);
    address(code, 2, KEY);
    code.call(Helper::MapLookup);
    // Cannot be, but the verifier wants to see it said.
    code.jump_if(If::Equal, 0, 0, "worker");
    code.op_by(Op::Set, SLOT, 0);
}

/// Takes a packet from the budget, or goes to `beyond`. Processors that do it at once may lose each other's count.
fn spend(code: &mut Code, budget: &Map, beyond: &'static str) {
    code.op(Op::Set, 1, 0);
    code.store(FP, KEY, 1);
    code.map(1, budget);
    address(code, 2, KEY);
    code.call(Helper::MapLookup);
    code.jump_if(If::Equal, 0, 0, "worker");
    code.op_by(Op::Set, 2, NOW);
    code.load(Size::Double, 1, 0, 0);
    code.op_by(Op::Sub, 2, 1);
    code.load(Size::Double, 1, 0, 8);
    code.jump_if(If::Below, 2, BUDGET_WINDOW.as_nanos() as i32, "same window");
    code.store(0, 0, NOW);
    code.op(Op::Set, 1, 0);
    code.label("same window");
    code.op(Op::Add, 1, 1);
    code.store(0, 8, 1);
    code.jump_if(If::Above, 1, SPARSE_PACKETS_MAX as i32, beyond);
}

/// Register 0 = a number of 32 bits out of what is in registers 0 and 1.
fn mix(code: &mut Code) {
    code.op(Op::Mul, 1, MIX);
    code.op_by(Op::Xor, 0, 1);
    code.op(Op::Mul, 0, MIX);
    code.op(Op::Shr, 0, 32);
}

/// Ends the program with one of the workers in use by what is in registers 0 and 1, so many further as `steps` says.
fn choose(code: &mut Code, workers: &Workers, steps: Option<Reg>) {
    if workers.count > 1 {
        mix(code);
        if let Some(steps) = steps {
            code.op_by(Op::Add, 0, steps);
        }
        code.op_by(Op::Set, CHOICE, 0);
        code.op(Op::Set, 1, 0);
        code.store(FP, KEY, 1);
        code.map(1, &workers.map);
        address(code, 2, KEY);
        code.call(Helper::MapLookup);
        code.jump_if(If::Equal, 0, 0, "first");
        code.load(Size::Double, 1, 0, 0);
        code.op_by(Op::Mod, CHOICE, 1);
        code.op_by(Op::Set, 0, CHOICE);
        code.exit();
        code.label("first");
    }
    code.op(Op::Set, 0, 0);
    code.exit();
}

/// The program that chooses among sockets of one port (SO_ATTACH_REUSEPORT_EBPF): for the lane's datagrams the one behind those
/// of `workers` workers, and one of theirs for the rest: the next one for the next source port of the same address.
pub fn choosing(workers: &Workers) -> io::Result<Program> {
    let budget = Map::array(BUDGET_LEN, 1)?;
    let mut code = Code::default();
    code.op_by(Op::Set, SKB, 1);
    code.op(Op::Set, SOURCE, 0);
    code.op(Op::Set, SOURCE_PORT, 0);
    // As much of an IPv6 header as reaches the end of its source, or an IPv4 header and the ports of UDP.
    load_relative(&mut code, 0, 24);
    code.jump_if(If::NotEqual, 0, 0, "worker");
    code.load(Size::Byte, 1, FP, HEADER);
    code.op(Op::Shr, 1, 4);
    code.jump_if(If::Equal, 1, 4, "ipv4");
    // The traffic class lies across two bytes: 4 bits of version, 8 of class, 20 of flow label.
    code.load(Size::Byte, 1, FP, HEADER);
    code.op(Op::Shl, 1, 4);
    code.load(Size::Byte, 2, FP, HEADER + 1);
    code.op(Op::Shr, 2, 4);
    code.op_by(Op::Or, 1, 2);
    code.load(Size::Word, SOURCE, FP, HEADER + 20);
    code.op_by(Op::Set, CLASS, 1);
    load_relative(&mut code, 40, 2);
    code.jump_if(If::NotEqual, 0, 0, "class");
    load_port(&mut code, HEADER);
    code.jump("class");
    code.label("ipv4");
    code.load(Size::Byte, CLASS, FP, HEADER + 1);
    code.load(Size::Word, SOURCE, FP, HEADER + 12);
    load_port(&mut code, HEADER + 20);
    code.label("class");
    // Without the two bits of ECN.
    code.op(Op::And, CLASS, 0xfc);
    code.jump_if(If::NotEqual, CLASS, LANE_TOS.into(), "worker");
    code.call(Helper::Now);
    code.op_by(Op::Set, NOW, 0);
    spend(&mut code, &budget, "worker");
    code.op(Op::Set, 0, workers.count as i32);
    code.exit();
    code.label("worker");
    code.op_by(Op::Set, 0, SOURCE);
    code.op(Op::Set, 1, 0);
    choose(&mut code, workers, Some(SOURCE_PORT));
    Program::load(code)
}

/// Puts `len` bytes of the outer packet, from `offset`, where [`HEADER`] is; register 0 = 0 if it has as many.
fn load_relative(code: &mut Code, offset: i32, len: i32) {
    code.op_by(Op::Set, 1, SKB);
    code.op(Op::Set, 2, offset);
    address(code, 3, HEADER);
    code.op(Op::Set, 4, len);
    code.op(Op::Set, 5, 1);
    code.call(Helper::LoadBytesRelative);
}

/// `SOURCE_PORT` = the two bytes of the network's order at `HEADER`, or further up.
fn load_port(code: &mut Code, at: i16) {
    code.load(Size::Byte, SOURCE_PORT, FP, at);
    code.op(Op::Shl, SOURCE_PORT, 8);
    code.load(Size::Byte, 2, FP, at + 1);
    code.op_by(Op::Or, SOURCE_PORT, 2);
}
