//! How well a map agrees with a known lesion, and with another map.

use diag_data::heatmaps::Agreement;
use diag_model::explain::Map;

/// Lesions of a smaller share of the picture are not asked for: no map is fine enough.
const SMALLEST_LESION: f64 = 0.002;

/// Agreement with a square lesion mask over the whole picture; `None` for a
/// lesion that is too small or fills everything.
pub(super) fn agreement(map: &Map, mask: &[bool]) -> Option<Agreement> {
    let side = mask.len().isqrt();
    let n_lesion = mask.iter().filter(|lesion| **lesion).count();
    let lesion_share = n_lesion as f64 / mask.len() as f64;
    if lesion_share < SMALLEST_LESION || n_lesion == mask.len() {
        return None;
    }
    let values = map.resized(side, side).values;
    Some(Agreement {
        lesion_share: lesion_share as f32,
        pointing: highest_part(&values, mask, 1) as f32,
        mass: mass(&values, mask).unwrap_or(lesion_share) as f32,
        overlap: highest_part(&values, mask, n_lesion) as f32,
    })
}

/// Share of the `n` highest cells that are lesion. Cells that are equally high at
/// the limit count in proportion, so that a flat map gets what chance would give.
fn highest_part(values: &[f64], mask: &[bool], n: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let limit = sorted[n - 1];
    let count = |keep: &dyn Fn(f64) -> bool| {
        let kept = values.iter().zip(mask).filter(|(value, _)| keep(**value));
        kept.fold((0usize, 0usize), |(n, n_lesion), (_, lesion)| (n + 1, n_lesion + usize::from(*lesion)))
    };
    let (n_above, n_hit) = count(&|value| value > limit);
    let (n_equal, n_equal_hit) = count(&|value| value == limit);
    let of_equal = (n - n_above) as f64 * n_equal_hit as f64 / n_equal as f64;
    (n_hit as f64 + of_equal) / n as f64
}

/// Share of the map's sum within the lesion; `None` for an empty map.
fn mass(values: &[f64], mask: &[bool]) -> Option<f64> {
    let all: f64 = values.iter().sum();
    let within: f64 = values.iter().zip(mask).filter(|(_, lesion)| **lesion).map(|(value, _)| value).sum();
    (all > 0.0).then(|| within / all)
}

/// Spearman's rank correlation, ties by their mean rank; `None` when one map is flat.
pub(super) fn rank_correlation(a: &Map, b: &Map) -> Option<f64> {
    let (a, b) = (ranks(&a.values), ranks(&b.values));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (sum(&a, &a) * sum(&b, &b)).sqrt();
    (scale > 0.0).then(|| sum(&a, &b) / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for equal in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = start as f64 + (equal.len() as f64 - 1.0) / 2.0;
        equal.iter().for_each(|&i| ranks[i] = rank);
        start += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: &[f64]) -> Map {
        let side = values.len().isqrt();
        Map { height: side, width: side, values: values.to_vec() }
    }

    #[track_caller]
    fn check(values: &[f64], mask: &[u8], want: [f32; 4]) {
        let mask: Vec<bool> = mask.iter().map(|&m| m == 1).collect();
        let got = agreement(&map(values), &mask).unwrap();
        assert_eq!([got.lesion_share, got.pointing, got.mass, got.overlap], want);
    }

    #[test]
    fn a_perfect_map_and_its_opposite() {
        check(&[3.0, 1.0, 0.0, 0.0], &[1, 1, 0, 0], [0.5, 1.0, 1.0, 1.0]);
        check(&[0.0, 0.0, 1.0, 3.0], &[1, 1, 0, 0], [0.5, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_flat_or_empty_map_gets_what_chance_gives() {
        for level in [0.0, 2.0] {
            check(&[level; 4], &[1, 0, 0, 0], [0.25; 4]);
        }
    }

    #[test]
    fn equal_heights_count_in_proportion() {
        // Two cells of the lesion's area: the 5 is certain, one of three 2s follows.
        check(&[5.0, 2.0, 2.0, 2.0], &[0, 1, 1, 0], [0.5, 0.0, 4.0 / 11.0, 1.0 / 3.0]);
    }

    #[test]
    fn a_speck_is_not_asked_for() {
        let mut mask = vec![false; 32 * 32];
        mask[0] = true;
        assert!(agreement(&map(&[1.0; 4]), &mask).is_none());
        assert!(agreement(&map(&[1.0; 4]), &[true; 4]).is_none());
    }

    #[test]
    fn ranks_correlate_as_scipy_says() {
        // scipy.stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4]).statistic
        let near = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-12;
        assert!(near(
            rank_correlation(&map(&[1.0, 2.0, 2.0, 4.0]), &map(&[1.0, 3.0, 2.0, 4.0])),
            0.948_683_298_050_513_9
        ));
        assert!(near(rank_correlation(&map(&[1.0, 2.0, 3.0, 4.0]), &map(&[9.0, 5.0, 2.0, 1.0])), -1.0));
        assert_eq!(rank_correlation(&map(&[1.0; 4]), &map(&[9.0, 5.0, 2.0, 1.0])), None);
    }
}
