//! Measures of order: how well a score puts positives before negatives.

use serde::Serialize;

/// One operating point of a ROC curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RocPoint {
    /// Scores at or above it are called positive; `None` for the start, where nothing is.
    pub threshold: Option<f64>,
    /// 1 - specificity, 0 to 1.
    pub false_positive_rate: f64,
    /// Sensitivity, 0 to 1.
    pub sensitivity: f64,
}

/// One operating point of a precision-recall curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrPoint {
    /// Scores at or above it are called positive.
    pub threshold: f64,
    /// Sensitivity, 0 to 1.
    pub recall: f64,
    /// Positive predictive value, 0 to 1.
    pub precision: f64,
}

/// Area under the ROC curve: the chance that a random positive scores above a
/// random negative, ties counting half (Mann-Whitney). 0 to 1; `None` when a
/// side is absent or the lengths differ.
pub fn auroc(score_n: &[f64], positive_n: &[bool]) -> Option<f64> {
    Ranking::new(score_n, positive_n)?.auroc(|_| 1)
}

/// Area under the precision-recall curve as average precision: the sum over
/// thresholds of the step in recall times the precision there, without
/// interpolation. 0 to 1; `None` when there is no positive or the lengths differ.
pub fn average_precision(score_n: &[f64], positive_n: &[bool]) -> Option<f64> {
    Ranking::new(score_n, positive_n)?.average_precision(|_| 1)
}

/// ROC curve from (0, 0) to (1, 1), one point a distinct score, highest first.
/// `None` when a side is absent or the lengths differ.
pub fn roc_curve(score_n: &[f64], positive_n: &[bool]) -> Option<Vec<RocPoint>> {
    let ranking = Ranking::new(score_n, positive_n)?;
    let (n_pos, n_neg) = ranking.totals(|_| 1);
    if n_pos == 0 || n_neg == 0 {
        return None;
    }
    let mut curve = vec![RocPoint { threshold: None, false_positive_rate: 0.0, sensitivity: 0.0 }];
    let (mut found, mut wrong) = (0, 0);
    for group in ranking.groups(|_| 1) {
        found += group.pos;
        wrong += group.neg;
        curve.push(RocPoint {
            threshold: Some(group.score),
            false_positive_rate: wrong as f64 / n_neg as f64,
            sensitivity: found as f64 / n_pos as f64,
        });
    }
    Some(curve)
}

/// Precision-recall curve, one point a distinct score, highest first. `None`
/// when there is no positive or the lengths differ.
pub fn pr_curve(score_n: &[f64], positive_n: &[bool]) -> Option<Vec<PrPoint>> {
    let ranking = Ranking::new(score_n, positive_n)?;
    let (n_pos, _) = ranking.totals(|_| 1);
    if n_pos == 0 {
        return None;
    }
    let (mut found, mut wrong) = (0, 0);
    let curve = ranking.groups(|_| 1).map(|group| {
        found += group.pos;
        wrong += group.neg;
        PrPoint {
            threshold: group.score,
            recall: found as f64 / n_pos as f64,
            precision: found as f64 / (found + wrong) as f64,
        }
    });
    Some(curve.collect())
}

/// Items sorted once by score, so that each resample costs one pass: a resample
/// is a whole-number weight for every item.
#[derive(Clone, Debug)]
pub(crate) struct Ranking {
    /// Highest score first.
    items: Vec<Ranked>,
}

#[derive(Clone, Copy, Debug)]
struct Ranked {
    score: f64,
    positive: bool,
    row: usize,
}

/// Items of one score.
struct Group {
    score: f64,
    pos: u64,
    neg: u64,
}

impl Ranking {
    pub(crate) fn new(score_n: &[f64], positive_n: &[bool]) -> Option<Self> {
        if score_n.len() != positive_n.len() || score_n.iter().any(|s| s.is_nan()) {
            return None;
        }
        let pairs = score_n.iter().zip(positive_n).enumerate();
        let mut items: Vec<Ranked> =
            pairs.map(|(row, (&score, &positive))| Ranked { score, positive, row }).collect();
        items.sort_by(|a, b| b.score.total_cmp(&a.score));
        Some(Self { items })
    }

    pub(crate) fn auroc(&self, weight: impl Fn(usize) -> u64) -> Option<f64> {
        // Twice the number of pairs in the right order, so that ties stay whole numbers.
        let (mut twice_right, mut pos_above, mut n_neg) = (0u64, 0u64, 0u64);
        for group in self.groups(weight) {
            twice_right += group.neg * (2 * pos_above + group.pos);
            pos_above += group.pos;
            n_neg += group.neg;
        }
        let n_pairs = pos_above * n_neg;
        (n_pairs > 0).then(|| twice_right as f64 / (2 * n_pairs) as f64)
    }

    pub(crate) fn average_precision(&self, weight: impl Fn(usize) -> u64) -> Option<f64> {
        let (mut sum, mut found, mut wrong) = (0.0, 0u64, 0u64);
        for group in self.groups(weight) {
            found += group.pos;
            wrong += group.neg;
            if group.pos > 0 {
                sum += group.pos as f64 * found as f64 / (found + wrong) as f64;
            }
        }
        (found > 0).then(|| sum / found as f64)
    }

    /// Highest sensitivity at a false positive rate of at most each of `rates`
    /// (ascending); `None` when a side is absent.
    pub(crate) fn sensitivity_at(&self, rates: &[f64], weight: impl Fn(usize) -> u64) -> Option<Vec<f64>> {
        let (n_pos, n_neg) = self.totals(&weight);
        if n_pos == 0 || n_neg == 0 {
            return None;
        }
        let mut reached = vec![0.0; rates.len()];
        let (mut found, mut wrong, mut first_open) = (0u64, 0u64, 0);
        for group in self.groups(weight) {
            found += group.pos;
            wrong += group.neg;
            let rate = wrong as f64 / n_neg as f64;
            // The tiny slack lets a grid point equal a rate that binary fractions miss.
            while first_open < rates.len() && rates[first_open] + 1e-12 < rate {
                first_open += 1;
            }
            for value in &mut reached[first_open..] {
                *value = found as f64 / n_pos as f64;
            }
        }
        Some(reached)
    }

    /// Precision at the highest score that reaches each of `recalls` (ascending, above 0);
    /// `None` when a side is absent.
    pub(crate) fn precision_at(
        &self,
        recalls: &[f64],
        weight: impl Fn(usize) -> u64,
    ) -> Option<Vec<Option<f64>>> {
        let (n_pos, n_neg) = self.totals(&weight);
        if n_pos == 0 || n_neg == 0 {
            return None;
        }
        let mut precision = vec![None; recalls.len()];
        let (mut found, mut wrong, mut first_open) = (0u64, 0u64, 0);
        for group in self.groups(weight) {
            found += group.pos;
            wrong += group.neg;
            // The slack is that of `sensitivity_at`.
            while first_open < recalls.len() && recalls[first_open] <= found as f64 / n_pos as f64 + 1e-12 {
                precision[first_open] = Some(found as f64 / (found + wrong) as f64);
                first_open += 1;
            }
        }
        Some(precision)
    }

    fn totals(&self, weight: impl Fn(usize) -> u64) -> (u64, u64) {
        self.items.iter().fold((0, 0), |(pos, neg), item| {
            let w = weight(item.row);
            if item.positive { (pos + w, neg) } else { (pos, neg + w) }
        })
    }

    fn groups<'a>(&'a self, weight: impl Fn(usize) -> u64 + 'a) -> impl Iterator<Item = Group> + 'a {
        self.items.chunk_by(|a, b| a.score == b.score).map(move |tied| {
            let mut group = Group { score: tied[0].score, pos: 0, neg: 0 };
            for item in tied {
                let side = if item.positive { &mut group.pos } else { &mut group.neg };
                *side += weight(item.row);
            }
            group
        })
    }
}
