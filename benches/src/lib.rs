//! The end-to-end harness behind `weft-bench`: subjects side by side between two network namespaces.
//!
//! [`result`] is the schema of what a run writes; [`metric`] names what is measured.
#![forbid(unsafe_code)]

pub mod compare;
pub mod metric;
pub mod report;
pub mod result;
pub mod targets;
