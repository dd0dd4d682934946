//! A bound on everything, with its reason.

use std::time::Duration;

/// Peers a table may hold: ids index per-worker counter arrays.
pub const PEERS_MAX: usize = 65_535;
/// Routes a table may hold (design contract).
pub const ROUTES_MAX: usize = 1_000_000;
/// Workers: one TUN queue each (the kernel allows MAX_TAP_QUEUES = 256; more than cores is useless).
pub const WORKERS_MAX: usize = 64;

/// Largest inner packet: an IPv4 total length, and what an IPv6 packet without jumbo payload cannot exceed by more than
/// its header.
pub const PACKET_LEN_MAX: usize = 65_535;
/// Largest UDP payload over IPv4: 65,535 - 20 - 8. IPv6 would allow 20 more; one bound for both is simpler.
pub const UDP_PAYLOAD_MAX: usize = 65_507;
/// Datagrams per UDP GSO send (UDP_MAX_SEGMENTS is 64 before Linux 6.9, 128 since; receivers coalesce up to 64).
pub const SEGMENTS_MAX: usize = 64;
/// Packets per coalesced TUN write; more than a UDP GRO buffer holds, so that two buffers of small segments can join.
pub const WRITE_PACKETS_MAX: usize = 128;
/// Bytes of a packet that weft itself makes (ICMP errors).
pub const SCRATCH_LEN: usize = weft_packet::icmp::ERROR_LEN_MAX;

/// Frames for TUN reads per worker: a burst of [`SEGMENTS_MAX`] small packets twice over. A power of two (buffer ring).
pub const TUN_FRAMES: usize = 128;
/// Frames for UDP receives per worker: each may hold 64 datagrams. A power of two (buffer ring).
pub const UDP_FRAMES: usize = 32;
/// Bytes read from TUN, or from the socket, in one turn before they are worked on: half of a second-level cache of 1 MiB.
pub const TURN_BYTES_MAX: usize = 8 << 16;
/// Bytes before the data of a frame: keeps the IP header aligned behind a 10-byte virtio-net header.
pub const HEADROOM: usize = 64;
/// Bytes per frame: headroom, the ring's receive header (16 + 28 + 24), one whole packet; whole pages, and an odd number of
/// them so that frames do not share cache sets.
pub const FRAME_LEN: usize = 17 * 4096;
/// UDP sends that may be queued or in flight per worker: a burst of [`TUN_FRAMES`] single packets.
pub const SEND_OPS: usize = 128;
/// TUN writes that may be queued or in flight per worker.
pub const WRITE_OPS: usize = 256;
/// Peers with an open batch at the same time within one turn; more are sent in smaller batches.
pub const OPEN_BATCHES_MAX: usize = 8;

/// A turn that received so many packets (a super-packet counts as one) is bulk traffic, ...
pub const BULK_PACKETS: usize = 16;
/// ... and so is one that received so many bytes: more than requests and their responses usually have.
pub const BULK_BYTES: usize = 16 << 10;
/// How long after bulk traffic a worker sleeps without spinning.
pub const BULK_MEMORY: Duration = Duration::from_millis(1);
/// A turn of a spin that takes longer was waiting for others, for whom it yields the core; alone it is done in a few microseconds.
pub const CROWDED_TURN: Duration = Duration::from_micros(50);
/// How long a worker that met them beside bulk traffic sleeps instead: a hundred requests or more, so that few of them are late.
pub const CROWDED_MEMORY: Duration = Duration::from_millis(10);
/// An answer that comes later than this is not waited for: a spin would be mostly in vain. One that a spin missed by less makes the next
/// spins longer, ...
pub const ANSWER_MAX: Duration = Duration::from_micros(400);
/// ... up to this: enough for two cores to be woken on the slowest machine measured, one after the other (60 us each), ...
pub const STRETCHED_SPIN_MAX: Duration = Duration::from_micros(200);
/// ... unless so many were missed in a row, ...
pub const MISSED_ANSWERS_MAX: u32 = 8;
/// ... of each so many: a longer spin may serve by then.
pub const MISSED_ANSWERS_FORGOTTEN: u32 = 256;
/// Packets up to this length from TUN are small: single datagrams of a sender that does not segment.
pub const SMALL_LEN_MAX: usize = 2048;
/// So many small packets a second from TUN are a flood: no request waits for its response among so many.
pub const FLOOD_PACKETS_PER_SECOND: f64 = 100_000.0;
/// How long they are counted before they are judged.
pub const FLOOD_WINDOW: Duration = Duration::from_millis(1);
/// A turn of a flood that read so many packets has filled half a send: no nap is needed to make it worth while.
pub const NAP_PACKETS_MAX: usize = SEGMENTS_MAX / 2;
/// How long a worker naps between turns of a flood: the TUN queue (500 packets without backpressure) takes in millions a second.
pub const NAP: Duration = Duration::from_micros(50);

/// How long a worker measures its load before it judges: much longer than a thread's turn at a core (some 3 ms).
pub const LOAD_WINDOW: Duration = Duration::from_millis(100);
/// A worker that fills so much of a core has no room for more traffic; where threads share cores, it does not come so far.
pub const FULL_SHARE: f64 = 0.85;
/// One worker less will do when the rest would fill no more than this of a core each, ...
pub const CALM_SHARE: f64 = 0.6;
/// ... and has been for so long.
pub const CALM_MIN: Duration = Duration::from_secs(1);

/// Longest packet of a sparse flow, bytes: requests, short responses, handshakes.
pub const SPARSE_LEN_MAX: usize = 512;
/// How long after a longer packet a TCP flow counts as bulk: longer than its packets are under way, so that none is overtaken.
pub const BULK_FLOW_MEMORY: Duration = Duration::from_millis(100);
/// Slots for the times of bulk flows, by a hash of addresses and ports, 8 bytes each. A power of two. A flow that shares its slot with a
/// bulk flow passes for bulk, too.
pub const BULK_FLOW_SLOTS: u32 = 1 << 16;
/// So many packets may enter the lane, from the TUN and from peers each, ...
pub const SPARSE_PACKETS_MAX: u32 = 100;
/// ... in this time. Some 100,000 a second: a quarter of what a thread carries.
pub const BUDGET_WINDOW: Duration = Duration::from_millis(1);
/// Turns at a core of threads that never have much to do at a time, the lane and the one that grants: the shortest that the kernel
/// knows.
pub const SHORT_SLICE: Duration = Duration::from_micros(100);

/// Packets that each queue of the TUN holds (its txqueuelen): as many as a sender makes while two other threads have their turns at
/// the worker's core (some 3 ms each), so that neither waits for the other.
pub const TUN_QUEUE_LEN: usize = 3000;
/// Packets that wait before it, in the bucket: those of so many grants, for many senders at once, ...
pub const BUCKET_GRANTS: usize = 16;
/// ... and at most so many. Those that this host forwards have no socket that could wait: they are dropped beyond.
pub const BUCKET_MAX: usize = 4000;
/// Packets that may enter a worker's queue by one grant. Two grants fit.
pub const GRANT_MAX: usize = TUN_QUEUE_LEN / 2;
/// The same for super-packets, by their bytes: what two grants bring stays in a cache of 4 MiB, ...
pub const GRANT_BYTES: usize = 2 << 20;
/// ... and no fewer than a turn or two reads.
pub const GRANT_MIN: usize = 16;
/// How often a packet may enter a worker's queue without a grant, and how late a grant may serve those who wait: several times a
/// millisecond, a timer each.
pub const TRICKLE: Duration = Duration::from_micros(200);

/// ICMP errors per second to one source, and its burst (RFC 4443 section 2.4 f names 10 and 10).
pub const ICMP_PER_SOURCE: u32 = 10;
/// ICMP errors per second of one weftd (Linux icmp_msgs_per_sec).
pub const ICMP_PER_SECOND: u32 = 1000;
/// Burst of the above (Linux icmp_msgs_burst).
pub const ICMP_BURST: u32 = 50;
/// How long a learnt path MTU is trusted before the kernel is asked again, milliseconds.
pub const PATH_MTU_FRESH_MS: u64 = 1000;
/// How long a port, or a TUN, that nobody visible holds may take to become free: what a killed process had in an io_uring.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two looks at it.
pub const RELEASE_PAUSE: Duration = Duration::from_millis(5);
/// Socket buffers, bytes each way: several hundred GRO buffers; forced beyond rmem_max where permitted.
pub const SOCKET_BUFFER_LEN: i32 = 8 << 20;

const _: () = assert!(FRAME_LEN >= HEADROOM + 16 + 28 + 24 + PACKET_LEN_MAX);
const _: () = assert!(2 * GRANT_MAX <= TUN_QUEUE_LEN && GRANT_MIN <= GRANT_MAX);
const _: () = assert!(TUN_FRAMES.is_power_of_two() && UDP_FRAMES.is_power_of_two());
const _: () = assert!(SEND_OPS >= TUN_FRAMES && SEND_OPS + WRITE_OPS < u16::MAX as usize);
const _: () = assert!(FRAME_LEN >= UDP_PAYLOAD_MAX);
const _: () = assert!(TUN_FRAMES + UDP_FRAMES + SEND_OPS <= u16::MAX as usize);
