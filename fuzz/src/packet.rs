//! Targets over weft-packet.
