//! Links, addresses, routes, neighbours, bridge forwarding entries and rate limits of one network namespace.
//!
//! This is the only speaker of netlink in the project. Every call is synchronous: it sends one request and returns when the
//! kernel has acted on it. [`Netlink::open`] binds a connection to the network namespace of the calling thread, for good:
//! the connection may be moved to another thread and still speaks to that namespace.
//!
//! Which calls may be repeated:
//!
//! | verb | when the object is already as asked |
//! |---|---|
//! | `delete_*` | success; the object, or the link it was on, is gone |
//! | `replace_*`, `set_*`, `rename` | success |
//! | `add_address`, `add_route` | success if the existing object is identical, else [`NetlinkError::Exists`] |
//! | `add_link` (vxlan, bridge) | success if kind and all given properties agree, else [`NetlinkError::Exists`] |
//! | `add_link` (veth) | [`NetlinkError::Exists`]: the kernel does not tell where the peer of an existing pair is |
//!
//! [`Events`] reports what changes, as a file descriptor for an event loop.
//!
//! Message layouts: `include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour}.h`, Linux 6.18; RFC 3549.
#![forbid(unsafe_code)]

mod address;
mod error;
mod events;
mod link;
mod mac;
mod neighbour;
mod new_link;
mod qdisc;
mod route;
mod socket;

pub use address::{Address, AddressState};
pub use error::NetlinkError;
pub use events::{Event, Events, Group};
pub use link::{Link, LinkRef};
pub use mac::{MacAddr, MacParseError};
pub use neighbour::{FdbEntry, Neighbour};
pub use new_link::{NewLink, NewLinkKind, Veth, Vxlan};
pub use qdisc::{PacketBucket, TokenBucket};
pub use route::{Resolved, Route, RouteFilter, RouteKind, protocol, table};
pub use socket::Netlink;

/// The result of a netlink call.
pub type Result<T> = std::result::Result<T, NetlinkError>;
