//! Messages on weftd's control socket: bytes <-> types. No socket, no clock; never panics on input.
//!
//! ```text
//! bytes --[frame]--> Frame --[message]--> Request / Reply --[stream]--> RouteSet / Delta
//! ```
//! `docs/control-socket.md` tells the same story for people who write another client.
#![forbid(unsafe_code)]

pub mod digest;
pub mod frame;
pub mod limits;
mod message;
pub mod record;
mod report;
mod stream;
mod table;

pub use digest::Digest;
pub use frame::{Frame, FrameError};
pub use message::{CAPABILITIES, MessageError, PEERS_PER_REPLY, Reply, Request, Transaction};
pub use report::{
    CounterReport, Direction, DropReport, Event, Hello, LogLevel, OffloadReport, PeerReport, Refusal, RefusalCode,
    RouteAnswer, RouteMatch, StatsReport, StatsTotals, StatusReport, WorkerReport,
};
pub use stream::{AssembleError, Assembler, Chunks, RecordRef};
pub use table::{Delta, Installed, PeerSpec, RouteSet, RouteSpec, TableError, canonical_addr};
