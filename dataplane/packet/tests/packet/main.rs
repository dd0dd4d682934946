//! Behaviour of weft-packet, by relations between its functions and against two independent decoders (etherparse,
//! pnet_packet).

mod checksums;
mod coalesce;
mod fragments;
mod header_check;
mod icmp_errors;
mod split;
mod support;
mod totality;
