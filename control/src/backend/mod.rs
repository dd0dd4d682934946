//! What makes desired routes true. A backend knows tables and nothing of where they come from.

pub mod host_gw;
mod peers;
pub mod routes;
pub mod udp;
pub mod udp_tunnel;
mod underlay;
pub mod vxlan;
