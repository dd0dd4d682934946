//! Messages on weftd's control socket: bytes <-> types. No socket, no clock; never panics on input.
#![forbid(unsafe_code)]
