//! Waiting for cores that a hypervisor moved ([`core_to_core`]): what hands packets from core to core is slower where they are far
//! apart, and one subject more so than another. So a run waits until they are back, and every sample has their distance.

use std::time::Duration;

use anyhow::Result;
use weft_lab::measure::{Distances, Stop, core_to_core, is_elsewhere, usual};

use crate::result::{Report, Sample};

/// The metric of a sample.
pub const METRIC: &str = "core_to_core";

/// How long to wait before looking again whether they are back.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for cores to be as near each other as they [usually](usual) are in a run, so that all of it is measured alike.
#[derive(Debug)]
pub struct Nearness {
    /// Distances around its measurements, nanoseconds, in ascending order.
    seen: Vec<f64>,
    /// How long it may still wait.
    patience: Duration,
}

impl Nearness {
    /// Waits for so long in all.
    pub fn new(patience: Duration) -> Nearness {
        Nearness { seen: Vec::new(), patience }
    }

    /// Returns the distance once the cores are there, or when patience is over; `None` with one core. `waits` is told each time
    /// that it has to wait.
    ///
    /// # Errors
    /// [`weft_lab::measure::Stopped`], and those of [`core_to_core`].
    pub fn wait(&mut self, stop: &Stop, mut waits: impl FnMut()) -> Result<Option<f64>> {
        let mut distance = core_to_core()?;
        let waited = self.note(distance) && !self.patience.is_zero();
        while self.is_elsewhere(distance) && !self.patience.is_zero() {
            waits();
            stop.sleep(LOOK)?;
            self.patience = self.patience.saturating_sub(LOOK);
            distance = core_to_core()?;
        }
        // Of the looks between, at a place that it does not want, none counts: they are many.
        if waited {
            self.note(distance);
        }
        Ok(distance)
    }

    /// The distance after a measurement, and whether to make it again, because the cores were moved apart meanwhile and
    /// there is patience for `spent` once more.
    ///
    /// # Errors
    /// Those of [`core_to_core`].
    pub fn look_again(&mut self, spent: Duration) -> Result<(Option<f64>, bool)> {
        let distance = core_to_core()?;
        let is_void = self.note(distance) && self.patience >= spent;
        if is_void {
            self.patience -= spent;
        }
        Ok((distance, is_void))
    }

    /// Notes a distance, and returns whether it is an unusual one.
    fn note(&mut self, distance: Option<f64>) -> bool {
        let position = |distance| self.seen.partition_point(|seen| *seen < distance);
        if let Some(distance) = distance {
            self.seen.insert(position(distance), distance);
        }
        self.is_elsewhere(distance)
    }

    fn is_elsewhere(&self, distance: Option<f64>) -> bool {
        distance.zip(usual(&self.seen)).is_some_and(|(distance, usual)| is_elsewhere(usual, distance))
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
    fn cores_are_elsewhere_when_they_are_neither_as_near_nor_as_far_as_usual() {
        let mut nearness = Nearness::new(Duration::ZERO);
        let seen = [
            (150.0, false),
            (26.0, false),
            (45.0, false),
            (90.0, false),
            (28.0, false),
            (27.0, false),
            (60.0, true),
            (12.0, true),
            (27.0, false),
        ];
        for (distance, is_elsewhere) in seen {
            assert_eq!(nearness.note(Some(distance)), is_elsewhere, "{distance} ns");
        }
        assert!(!nearness.note(None));
    }

    #[test]
    fn a_report_tells_how_far_its_cores_were_and_how_often_they_were_moved() {
        let mut report = crate::summary::tests::report();
        assert_eq!(of_report(&report), None);
        for (sample, distance) in report.samples.iter_mut().zip([26.0, 27.0, 151.0, 28.0]) {
            sample.metrics.insert(METRIC.to_owned(), distance);
        }
        let text = of_report(&report).unwrap().to_string();
        assert_eq!(text, "28 ns from each other (26 to 151), moved in 1 of 4 measurements");
    }

    #[test]
    fn a_run_waits_and_repeats_no_longer_than_its_patience() {
        let mut nearness = Nearness { seen: vec![1e-3; 99], patience: Duration::from_millis(250) };
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
