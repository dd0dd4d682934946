//! Targets over weft-proto.
