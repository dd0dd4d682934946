//! Drawings of a run: one HTML file that needs nothing beside itself, and one picture that stands alone.
//!
//! The page has no script: what is under the pointer is told by `<title>`, what is long is folded by `<details>`, and
//! light or dark is the reader's choice by `prefers-color-scheme`. [`markup`] escapes and [`scale`] bounds whatever a
//! report may hold.

mod bars;
mod costs;
mod data;
mod lines;
pub mod markup;
mod page;
mod ratios;
pub mod scale;
mod tables;

pub use data::{Link, OnLink, Samples, median};
pub use ratios::{chief, times};

use crate::result::Report;

/// The report as one HTML file.
pub fn html(report: &Report) -> String {
    page::html(report)
}
