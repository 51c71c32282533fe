//! The one order statistic behind the threshold and the sets.

/// Fewest cases of a class from which a cut can be taken that a further case of the class
/// passes with a chance of at least `level`, in (0, 1): ceil(level / (1 - level)).
///
/// ```
/// use diag_decision::cases_needed;
/// assert_eq!((cases_needed(0.9), cases_needed(0.95), cases_needed(0.5)), (9, 19, 1));
/// ```
pub fn cases_needed(level: f64) -> usize {
    let odds = level / (1.0 - level);
    // A hair less: 0.9 / (1 - 0.9) is more than 9 in binary.
    (odds - 1e-9 * odds.max(1.0)).ceil() as usize
}

/// The highest cut on `prob_n` that a further event passes (`p >= cut`) with a chance of at
/// least `level`, if events are exchangeable: of n events the one at rank
/// floor((n + 1)(1 - level)) from below. It is then lowered to the middle between that
/// probability and the next lower one of any item, so that rounding in the last digit moves
/// no item across it. `None` with fewer events than [`cases_needed`].
pub(crate) fn cut(prob_n: &[f64], event_n: &[bool], level: f64) -> Option<f64> {
    let events = prob_n.iter().zip(event_n).filter(|(_, event)| **event);
    let mut of_events: Vec<f64> = events.map(|(prob, _)| *prob).collect();
    of_events.sort_by(f64::total_cmp);
    let rank = ((of_events.len() + 1) as f64 * (1.0 - level) + 1e-9).floor() as usize;
    let passing = *of_events.get(rank.checked_sub(1)?)?;
    let below = prob_n.iter().copied().filter(|prob| *prob < passing).fold(0.0, f64::max);
    Some(0.5 * (passing + below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(of_events: &[f64], others: &[f64], level: f64, want: Option<f64>) {
        let prob_n = [of_events, others].concat();
        let event_n: Vec<bool> = (0..prob_n.len()).map(|i| i < of_events.len()).collect();
        assert_eq!(cut(&prob_n, &event_n, level), want);
    }

    #[test]
    fn too_few_events_give_no_cut() {
        check(&[0.9; 8], &[0.1], 0.9, None);
        check(&[], &[0.1], 0.5, None);
    }

    #[test]
    fn just_enough_events_all_pass() {
        check(&[0.9, 0.8, 0.7, 0.9, 0.8, 0.75, 0.9, 0.8, 0.95], &[0.3], 0.9, Some(0.5));
    }

    #[test]
    fn of_nineteen_events_one_may_miss_at_nine_in_ten() {
        let events: Vec<f64> = (1..=19).map(|i| f64::from(i) / 32.0).collect();
        check(&events, &[], 0.9, Some(1.5 / 32.0));
        check(&events, &[], 0.95, Some(0.5 / 32.0));
    }

    #[test]
    fn a_tie_with_another_item_is_passed_by_both() {
        check(&[0.5; 9], &[0.5, 0.25], 0.9, Some(0.375));
    }

    #[test]
    fn the_lowest_of_all_is_halved() {
        check(&[0.5; 9], &[0.75], 0.9, Some(0.25));
    }
}
