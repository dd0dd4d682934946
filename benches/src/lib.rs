//! The end-to-end harness behind `weft-bench`: subjects side by side between two network namespaces.
//!
//! - [`spec`] and [`workload`] read what stands on the command line.
//! - [`subject`] sets the subjects up, [`campaign`] measures them in rounds, [`meter`] and [`proc`] read counters beside,
//!   [`distance`] waits for cores that were moved.
//! - [`summary`] draws medians and ratios, [`table`] shows them; [`result`] is the schema of the JSON, [`metric`] names
//!   what is measured.
//! - [`report`] draws pictures and the HTML page, [`compare`] tells what changed between two runs, [`targets`] holds what
//!   weft wants to reach.
//! - [`iperf3`] is a witness; [`host`] knows the machine, [`progress`] tells how far a run is.
#![forbid(unsafe_code)]

pub mod campaign;
pub mod compare;
pub mod distance;
pub mod host;
pub mod iperf3;
pub mod meter;
pub mod metric;
pub mod proc;
pub mod progress;
pub mod report;
pub mod result;
pub mod spec;
pub mod subject;
pub mod summary;
pub mod table;
pub mod targets;
pub mod workload;
