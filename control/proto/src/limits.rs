//! A bound on everything that crosses the control socket, with its reason.

use std::time::Duration;

/// Version of the protocol. Both ends must speak the same one: a mismatch is refused in the hello, before anything else.
pub const PROTOCOL_VERSION: u16 = 1;

/// First bytes of both hellos: tells a stranger on the wrong socket apart from a peer of another version.
pub const MAGIC: [u8; 8] = *b"weft-ctl";

/// Whole frame, header included. One frame is the most that either end buffers before it looks at the contents; 64 KiB
/// holds some 2,700 IPv4 routes, so that the frame overhead of a large table vanishes.
pub const FRAME_LEN_MAX: usize = 64 * 1024;

/// Routes in one table (design contract).
pub const ROUTES_MAX: usize = 1_000_000;

/// Peers in one table: peer ids are 16 bits wide and one value is reserved by the lookup structure.
pub const PEERS_MAX: usize = 65_535;

/// Further underlay addresses of one peer. A host behind several uplinks and NATs has a handful; the bound keeps one peer
/// record, and one peer in a JSON reply, far below a frame.
pub const ALIASES_MAX: usize = 32;

/// Bytes in a peer's name: the longest DNS name (RFC 1035 section 2.3.4, without the trailing dot).
pub const NAME_LEN_MAX: usize = 253;

/// Changes in one delta. A larger change is cheaper as a swap, and the transaction's memory stays that of one table.
pub const DELTA_MAX: usize = ROUTES_MAX;

/// Bytes of free text in a message (client names, error texts): longer texts are cut at this length.
pub const TEXT_LEN_MAX: usize = 2048;

/// A begun frame must be complete after this time, and a begun transaction must make progress (another complete frame)
/// within it: a healthy local client needs milliseconds.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// A transaction or a streamed reply must end after this time, however steadily it trickles: both pin memory in weftd.
pub const STREAM_TIMEOUT: Duration = Duration::from_secs(60);

/// How long weftd waits for its workers after a drain before it exits all the same.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at once. A controller, a few shells and a metrics reader; each may pin a snapshot of a large table.
pub const CLIENTS_MAX: usize = 16;

/// Connections at once from users that may only read, so that they cannot keep the controller out.
pub const READERS_MAX: usize = 12;

/// Bytes waiting for a slow reader before it is disconnected (events) or its stream pauses (replies).
pub const OUT_QUEUE_LEN_MAX: usize = 256 * 1024;

const _: () = assert!(READERS_MAX < CLIENTS_MAX, "the controller keeps a way in");
const _: () = assert!(OUT_QUEUE_LEN_MAX >= 2 * FRAME_LEN_MAX, "a full frame fits while another is being written");
const _: () = assert!(PEERS_MAX < u16::MAX as usize + 1, "peer ids are 16 bits");
