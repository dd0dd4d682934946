//! Waiting for cores that a hypervisor moved apart ([`core_to_core`]): what hands packets from core to core is slower then, and one
//! subject more so than another. So a run waits until they are near, and every sample has their distance.

use std::time::Duration;

use anyhow::Result;
use weft_lab::measure::{Distances, Stop, are_apart, core_to_core};

use crate::result::{Report, Sample};

/// The metric of a sample.
pub const METRIC: &str = "core_to_core";

/// How long to wait before looking again whether they are near.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for cores to be as near each other as they have been in a run, so that all of it is measured alike.
#[derive(Debug)]
pub struct Nearness {
    /// The shortest distance seen, nanoseconds.
    nearest: f64,
    /// How long it may still wait.
    patience: Duration,
}

impl Nearness {
    /// Waits for so long in all.
    pub fn new(patience: Duration) -> Nearness {
        Nearness { nearest: f64::INFINITY, patience }
    }

    /// Returns the distance once the cores are near, or when patience is over; `None` with one core. `waits` is told each time
    /// that it has to wait.
    ///
    /// # Errors
    /// [`weft_lab::measure::Stopped`], and those of [`core_to_core`].
    pub fn wait(&mut self, stop: &Stop, mut waits: impl FnMut()) -> Result<Option<f64>> {
        loop {
            let distance = core_to_core()?;
            if !self.is_apart(distance) || self.patience.is_zero() {
                return Ok(distance);
            }
            waits();
            stop.sleep(LOOK)?;
            self.patience = self.patience.saturating_sub(LOOK);
        }
    }

    /// The distance after a measurement, and whether to make it again, because the cores were moved apart meanwhile and
    /// there is patience for `spent` once more.
    ///
    /// # Errors
    /// Those of [`core_to_core`].
    pub fn look_again(&mut self, spent: Duration) -> Result<(Option<f64>, bool)> {
        let distance = core_to_core()?;
        let is_void = self.is_apart(distance) && self.patience >= spent;
        if is_void {
            self.patience -= spent;
        }
        Ok((distance, is_void))
    }

    fn is_apart(&mut self, distance: Option<f64>) -> bool {
        let Some(distance) = distance else { return false };
        self.nearest = self.nearest.min(distance);
        are_apart(self.nearest, distance)
    }
}

/// The distances of a report; `None` if it has none.
pub fn of_report(report: &Report) -> Option<Distances> {
    let distance = |sample: &Sample| sample.metrics.get(METRIC).copied();
    Distances::of(report.samples.iter().filter_map(distance).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_apart_when_they_were_nearer_before() {
        let mut nearness = Nearness::new(Duration::ZERO);
        let seen = [(150.0, false), (26.0, false), (45.0, false), (90.0, true), (22.0, false), (45.0, true)];
        for (distance, is_apart) in seen {
            assert_eq!(nearness.is_apart(Some(distance)), is_apart, "{distance} ns");
        }
        assert!(!nearness.is_apart(None));
    }

    #[test]
    fn a_report_tells_how_far_its_cores_were_and_how_often_they_were_apart() {
        let mut report = crate::summary::tests::report();
        assert_eq!(of_report(&report), None);
        for (sample, distance) in report.samples.iter_mut().zip([26.0, 27.0, 151.0, 28.0]) {
            sample.metrics.insert(METRIC.to_owned(), distance);
        }
        let text = of_report(&report).unwrap().to_string();
        assert_eq!(text, "28 ns from each other (26 to 151), apart in 1 of 4 measurements");
    }

    #[test]
    fn a_run_waits_and_repeats_no_longer_than_its_patience() {
        let mut nearness = Nearness { nearest: 1e-3, patience: Duration::from_millis(250) };
        if core_to_core().unwrap().is_none() {
            return;
        }
        assert!(!nearness.look_again(Duration::from_secs(1)).unwrap().1);
        assert!(nearness.look_again(Duration::from_millis(50)).unwrap().1);
        let mut waits = 0;
        assert!(nearness.wait(&Stop::default(), || waits += 1).unwrap().is_some());
        assert_eq!(waits, 2);
        assert_eq!(nearness.patience, Duration::ZERO);
    }
}
