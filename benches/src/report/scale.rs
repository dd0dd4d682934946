//! From values to coordinates: linear, logarithmic, and stretched at both ends for distributions.
//!
//! A [`Scale`] answers for every value, also for zero, infinity and NaN: what lies outside is drawn at the edge, and
//! [`Scale::is_outside`] tells that it is.

/// How values are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spacing {
    Linear,
    Log,
    /// Logarithm of the odds, `p / (1 - p)`: 1, 10, 50, 90, 99 percent are about equally far apart.
    Odds,
}

/// An axis: values from `low` to `high` on coordinates from `from` to `to` (which may be the smaller one).
#[derive(Clone, Debug)]
pub struct Scale {
    spacing: Spacing,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

/// Ratios further from 1 than this factor are drawn at the edge of the axis, so that one of 30 leaves room to tell 0.7
/// from 0.9.
const RATIO_MAX: f64 = 5.0;

/// Ratios nearer to 1 than this factor do not make the axis shorter.
const RATIO_MIN: f64 = 2.0;

impl Scale {
    /// From 0 to a round number at or above every value.
    pub fn from_zero(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Scale {
        let high = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max).min(1e300);
        let high = if high > 0.0 { high } else { 1.0 };
        let step = round_step(high / 4.0);
        Scale { spacing: Spacing::Linear, low: 0.0, high: (high / step).ceil() * step, from, to }
    }

    /// Exactly from `low` to `high`, evenly.
    pub fn linear(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        Scale { spacing: Spacing::Linear, low, high, from, to }
    }

    /// Ratios around 1, logarithmic and equally far to both sides: 0.5 is as far from 1 as 2.
    pub fn ratio(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Scale {
        let far = values
            .into_iter()
            .filter(|value| value.is_finite() && *value > 0.0)
            .map(|value| value.max(1.0 / value))
            .fold(RATIO_MIN, f64::max)
            .min(RATIO_MAX);
        // A tenth more than the farthest, so that its whisker has an end that is seen.
        let far = (far * 1.1).min(RATIO_MAX);
        Scale { spacing: Spacing::Log, low: 1.0 / far, high: far, from, to }
    }

    /// Positive values, logarithmic, with a little air at both ends.
    pub fn log(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Scale {
        let (low, high) = values
            .into_iter()
            .filter(|value| (1e-9..=1e15).contains(value))
            .fold((f64::INFINITY, 0.0), |(low, high), value| (f64::min(low, value), f64::max(high, value)));
        let (low, high) = if low <= high { (low / 1.1, high * 1.1) } else { (1.0, 10.0) };
        Scale { spacing: Spacing::Log, low, high, from, to }
    }

    /// Parts of a whole from 1 % to 99.9 %.
    pub fn odds(from: f64, to: f64) -> Scale {
        Scale { spacing: Spacing::Odds, low: 0.01, high: 0.999, from, to }
    }

    /// Where a value is drawn; always between the ends of the axis.
    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = (self.spaced(self.low), self.spaced(self.high));
        let part = (self.spaced(value) - low) / (high - low);
        let part = if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) };
        self.from + part * (self.to - self.from)
    }

    /// A value is drawn at the edge, because the axis ends before it.
    pub fn is_outside(&self, value: f64) -> bool {
        !(self.low..=self.high).contains(&value)
    }

    /// Values at which to draw a line and a label, at most a dozen.
    pub fn ticks(&self) -> Vec<f64> {
        let inside = |value: &f64| !self.is_outside(*value);
        match self.spacing {
            Spacing::Linear => {
                let step = round_step((self.high - self.low) / 4.0);
                (0..12).map(|index| (self.low / step).ceil() * step + f64::from(index) * step).filter(inside).collect()
            }
            Spacing::Odds => [0.01, 0.1, 0.5, 0.9, 0.99, 0.999].into_iter().filter(inside).collect(),
            Spacing::Log if self.high / self.low > 1e5 => {
                (-9..16).map(|power| 10f64.powi(power)).filter(inside).step_by(2).collect()
            }
            Spacing::Log => {
                let wide = self.high / self.low > 100.0;
                let steps: &[f64] = if wide { &[1.0, 3.0] } else { &[1.0, 2.0, 5.0] };
                (-9..16)
                    .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
                    .filter(inside)
                    .collect()
            }
        }
    }

    /// Powers of two inside, for ratios.
    pub fn powers_of_two(&self) -> Vec<f64> {
        (-2..=2).map(|power| 2f64.powi(power)).filter(|value| !self.is_outside(*value)).collect()
    }

    fn spaced(&self, value: f64) -> f64 {
        match self.spacing {
            Spacing::Linear => value,
            Spacing::Log => value.ln(),
            Spacing::Odds => (value / (1.0 - value)).ln(),
        }
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-300).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|round| *round >= step * 0.999_999)
        .unwrap_or(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_and_doubles_are_equally_far_from_one() {
        let scale = Scale::ratio([0.3, 1.2], 100.0, 300.0);
        assert_eq!(scale.at(1.0), 200.0);
        assert!((200.0 - scale.at(0.5) - (scale.at(2.0) - 200.0)).abs() < 1e-9);
        assert_eq!(scale.powers_of_two(), [0.5, 1.0, 2.0]);
    }

    #[test]
    fn what_is_beyond_the_axis_is_drawn_at_its_edge() {
        let scale = Scale::ratio([1000.0], 0.0, 100.0);
        assert_eq!((scale.at(1000.0), scale.is_outside(1000.0)), (100.0, true));
        assert_eq!((scale.at(0.0), scale.is_outside(0.0)), (0.0, true));
        assert_eq!((scale.at(f64::NAN), scale.is_outside(f64::NAN)), (0.0, true));
    }

    #[test]
    fn linear_axes_end_on_a_round_number_and_have_round_ticks() {
        let scale = Scale::from_zero([9.3], 0.0, 1.0);
        assert_eq!(scale.ticks(), [0.0, 5.0, 10.0]);
        assert_eq!(Scale::from_zero([0.37], 0.0, 1.0).ticks().len(), 5);
        assert_eq!(Scale::from_zero([], 0.0, 1.0).ticks().last(), Some(&1.0));
    }

    #[test]
    fn logarithmic_axes_have_labels_at_one_two_and_five() {
        assert_eq!(Scale::log([20.0, 600.0], 0.0, 1.0).ticks(), [20.0, 50.0, 100.0, 200.0, 500.0]);
    }

    proptest! {
        #[test]
        fn every_value_has_a_place_on_every_axis(values in prop::collection::vec(prop::num::f64::ANY, 0..6), value in prop::num::f64::ANY) {
            for scale in [
                Scale::from_zero(values.clone(), 10.0, 90.0),
                Scale::ratio(values.clone(), 10.0, 90.0),
                Scale::log(values.clone(), 10.0, 90.0),
                Scale::odds(10.0, 90.0),
            ] {
                prop_assert!((10.0..=90.0).contains(&scale.at(value)));
                let ticks = scale.ticks();
                prop_assert!(ticks.len() <= 12, "{ticks:?}");
                prop_assert!(ticks.iter().all(|tick| tick.is_finite()));
            }
        }
    }
}
