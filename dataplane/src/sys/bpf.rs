//! bpf(2), as far as weftd needs it: programs that see a packet and choose its queue, and a map for what they remember
//! (linux/bpf.h).

use super::check;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A register: 0 is results, 1 to 5 are arguments and lost by a call, 6 to 9 survive it, 10 is the frame pointer.
pub type Reg = u8;
/// The frame pointer: 512 bytes of stack lie below it.
pub const FP: Reg = 10;

/// Bytes that a load moves (BPF_LDX | BPF_MEM).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Size {
    /// One.
    Byte = 0x71,
    /// Two, in host order.
    Half = 0x69,
    /// Four, in host order.
    Word = 0x61,
    /// Eight, in host order.
    Double = 0x79,
}

/// Arithmetic on 64 bits (the operation of BPF_ALU64).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Op {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Or = 0x40,
    And = 0x50,
    Shl = 0x60,
    Shr = 0x70,
    Mod = 0x90,
    Xor = 0xa0,
    Set = 0xb0,
}

/// Comparisons of 64 bits, unsigned (the operation of BPF_JMP).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "their names say it")]
pub enum If {
    Equal = 0x10,
    Above = 0x20,
    AtLeast = 0x30,
    NotEqual = 0x50,
    Below = 0xa0,
}

/// Functions of the kernel that a socket filter may call.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Helper {
    /// `(map, key) -> value or 0`.
    MapLookup = 1,
    /// `() -> nanoseconds of CLOCK_MONOTONIC`.
    Now = 5,
    /// `(skb, offset, to, len) -> 0 or an error`: from where the program's packet begins.
    LoadBytes = 26,
    /// `(skb, offset, to, len, 1) -> 0 or an error`: from where the IP header begins (Linux 4.18).
    LoadBytesRelative = 68,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A program being written: instructions, and labels that jumps name.
#[derive(Debug, Default)]
pub struct Code {
    instructions: Vec<Instruction>,
    labels: HashMap<&'static str, usize>,
    jumps: Vec<(usize, &'static str)>,
}

// The operation codes of linux/bpf_common.h and linux/bpf.h that are not in an enum above.
const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const BY_REGISTER: u8 = 0x08;
const STORE_DOUBLE: u8 = 0x7b;
const LOAD_IMMEDIATE: u8 = 0x18;
const MAP_BY_FD: Reg = 1;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

impl Code {
    fn push(&mut self, code: u8, target: Reg, source: Reg, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers: target | source << 4, offset, immediate });
    }

    /// Names the next instruction.
    pub fn label(&mut self, name: &'static str) {
        self.labels.insert(name, self.instructions.len());
    }

    /// `target op= value`.
    pub fn op(&mut self, op: Op, target: Reg, value: i32) {
        self.push(ALU64 | op as u8, target, 0, 0, value);
    }

    /// `target op= source`.
    pub fn op_by(&mut self, op: Op, target: Reg, source: Reg) {
        self.push(ALU64 | BY_REGISTER | op as u8, target, source, 0, 0);
    }

    /// `target = *(base + offset)`.
    pub fn load(&mut self, size: Size, target: Reg, base: Reg, offset: i16) {
        self.push(size as u8, target, base, offset, 0);
    }

    /// `*(base + offset) = source`, eight bytes.
    pub fn store(&mut self, base: Reg, offset: i16, source: Reg) {
        self.push(STORE_DOUBLE, base, source, offset, 0);
    }

    /// Goes to a label further down.
    pub fn jump(&mut self, to: &'static str) {
        self.jumps.push((self.instructions.len(), to));
        self.push(JUMP, 0, 0, 0, 0);
    }

    /// The same, if `register` compares so with `value`.
    pub fn jump_if(&mut self, comparison: If, register: Reg, value: i32, to: &'static str) {
        self.jumps.push((self.instructions.len(), to));
        self.push(JUMP | comparison as u8, register, 0, 0, value);
    }

    /// The same with two registers.
    pub fn jump_if_by(&mut self, comparison: If, register: Reg, other: Reg, to: &'static str) {
        self.jumps.push((self.instructions.len(), to));
        self.push(JUMP | BY_REGISTER | comparison as u8, register, other, 0, 0);
    }

    /// Calls a function of the kernel; register 0 has its result.
    pub fn call(&mut self, helper: Helper) {
        self.push(CALL, 0, 0, 0, helper as i32);
    }

    /// `target = map`.
    pub fn map(&mut self, target: Reg, map: &Map) {
        self.push(LOAD_IMMEDIATE, target, MAP_BY_FD, 0, map.fd.as_raw_fd());
        self.push(0, 0, 0, 0, 0);
    }

    /// Ends the program with register 0 as its result.
    pub fn exit(&mut self) {
        self.push(EXIT, 0, 0, 0, 0);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, to) in self.jumps {
            let distance = self.labels[to] - at - 1;
            self.instructions[at].offset = i16::try_from(distance).expect("a program of some hundred instructions");
        }
        self.instructions
    }
}

// Commands of bpf(2).
const MAP_CREATE: u32 = 0;
const MAP_UPDATE: u32 = 2;
const PROGRAM_LOAD: u32 = 5;
const PROGRAM_TEST_RUN: u32 = 10;
// Kinds of maps and programs.
const ARRAY: u32 = 2;
const SOCKET_FILTER: u32 = 1;

/// bpf(2) with the part of `union bpf_attr` that the command reads.
fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<usize> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of `attributes`, which is exclusively borrowed; every caller
    // keeps what it points to alive through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) })
}

fn descriptor(fd: usize) -> OwnedFd {
    // SAFETY: bpf(2) has just returned this descriptor, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// What a program remembers. EPERM without CAP_BPF where `kernel.unprivileged_bpf_disabled` is set.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    value_len: u32,
}

impl Map {
    /// `count` values, zero at first, under keys of four bytes from 0 (BPF_MAP_TYPE_ARRAY).
    pub fn array(value_len: u32, count: u32) -> io::Result<Map> {
        bpf(MAP_CREATE, &mut [ARRAY, 4, value_len, count]).map(|fd| Map { fd: descriptor(fd), value_len })
    }

    /// Changes a value, which must be of eight bytes; programs that run see the old one or the new one.
    pub fn set(&self, key: u32, value: u64) -> io::Result<()> {
        // The kernel reads as many.
        assert_eq!(self.value_len as usize, size_of_val(&value));
        let mut attributes = UpdateAttributes {
            map: self.fd.as_raw_fd() as u32,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        bpf(MAP_UPDATE, &mut attributes).map(drop)
    }
}

/// A program in the kernel, verified. It keeps its maps, and what it is attached to keeps it.
#[derive(Debug)]
pub struct Program(OwnedFd);

#[repr(C)]
struct UpdateAttributes {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttributes {
    program: u32,
    result: u32,
    len_in: u32,
    len_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

impl Program {
    /// Loads a program that sees a packet as a socket filter does: register 1 is its `struct __sk_buff`.
    pub fn load(code: Code) -> io::Result<Program> {
        let instructions = code.finish();
        let mut attributes = LoadAttributes {
            kind: SOCKET_FILTER,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"".as_ptr() as u64,
            log_level: 0,
            log_len: 0,
            log: 0,
        };
        bpf(PROGRAM_LOAD, &mut attributes).map(descriptor).map(Program)
    }

    /// What the program makes of an IP packet, without a device (BPF_PROG_TEST_RUN, Linux 4.12): for tests. `is_ipv6` says what
    /// the packet is to pass for.
    pub fn run(&self, packet: &[u8], is_ipv6: bool) -> io::Result<u32> {
        let mut frame = vec![0; 12];
        frame.extend(if is_ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        frame.extend(packet);
        let mut attributes = TestRunAttributes {
            program: self.0.as_raw_fd() as u32,
            len_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            ..TestRunAttributes::default()
        };
        bpf(PROGRAM_TEST_RUN, &mut attributes)?;
        Ok(attributes.result)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
