//! The Mann-Whitney test, exact: how often chance alone puts two groups as far apart as they are.
//!
//! The values are ranked together, equal ones sharing the mean of their ranks. Under chance every choice of ranks for
//! the first group is equally likely; the choices are counted by their sum, not listed. statrs has this test, but its
//! exact branch (0.19) answers 1 for wholly separate groups of equal size, and its other branch is an approximation for
//! many values, where benchmarks have four to ten.

/// Values of a group beyond these are left out, to bound the work: some 30 choices out of 60 are counted in a moment.
pub const GROUP_MAX: usize = 30;

/// Probability, by chance alone, of a difference between the groups at least as large as this one, in either direction.
/// `None` if a group is empty.
pub fn probability(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (&a[..a.len().min(GROUP_MAX)], &b[..b.len().min(GROUP_MAX)]);
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let ranks = doubled_ranks(a, b);
    let total: usize = ranks.iter().sum();
    let observed: usize = ranks[..a.len()].iter().sum();

    // ways[k][s]: in how many ways k of the ranks seen so far sum to s. Counts stay below 2^60, where an f64 is exact
    // enough for a probability.
    let mut ways = vec![vec![0.0f64; total + 1]; a.len() + 1];
    ways[0][0] = 1.0;
    for rank in &ranks {
        for count in (1..=a.len()).rev() {
            let (fewer, more) = ways.split_at_mut(count);
            for (sum, way) in more[0].iter_mut().enumerate().skip(*rank) {
                *way += fewer[count - 1][sum - rank];
            }
        }
    }
    // Distance from the middle, in units that stay whole: sum * groups' size against total * size of the first group.
    let distance = |sum: usize| (sum * ranks.len()).abs_diff(total * a.len());
    let far: f64 = ways[a.len()]
        .iter()
        .enumerate()
        .filter(|(sum, _)| distance(*sum) >= distance(observed))
        .map(|(_, way)| way)
        .sum();
    Some(far / ways[a.len()].iter().sum::<f64>())
}

/// Twice the rank of each value, so that the mean of two ranks is whole; those of `a` come first.
fn doubled_ranks(a: &[f64], b: &[f64]) -> Vec<usize> {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let rank = |value: &f64| {
        let below = all.iter().filter(|other| other.total_cmp(value).is_lt()).count();
        let equal = all.iter().filter(|other| other.total_cmp(value).is_eq()).count();
        2 * below + equal + 1
    };
    all.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_near(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-6, "{found:?} where {expected} was expected");
    }

    #[test]
    fn separate_groups_are_two_choices_out_of_all() {
        assert_near(probability(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 2.0 / 20.0);
        assert_near(probability(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]), 2.0 / 70.0);
        assert_near(probability(&[6.0, 7.0, 8.0, 9.0, 10.0], &[1.0, 2.0, 3.0, 4.0, 5.0]), 2.0 / 252.0);
    }

    #[test]
    fn the_example_of_scipy_has_the_probability_that_scipy_gives() {
        // scipy.stats.mannwhitneyu, documentation: U = 17, p = 0.1111.
        let male = [19.0, 22.0, 16.0, 29.0, 24.0];
        let female = [20.0, 11.0, 17.0, 12.0];
        assert_near(probability(&male, &female), 14.0 / 126.0);
    }

    #[test]
    fn equal_values_are_no_difference() {
        assert_near(probability(&[1.0; 5], &[1.0; 5]), 1.0);
        assert_near(probability(&[1.0, 2.0], &[1.0, 2.0]), 1.0);
        assert_eq!(probability(&[], &[1.0]), None);
    }

    #[test]
    fn many_values_are_bounded_and_still_told_apart() {
        let low: Vec<f64> = (0..200).map(f64::from).collect();
        let high: Vec<f64> = (200..400).map(f64::from).collect();
        assert!(probability(&low, &high).unwrap() < 1e-9);
    }
}
