//! From slices to cases.

use serde::{Deserialize, Serialize};

use crate::{MetricsError, Scores};

/// How the slices of a case become one prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Mean probability over all slices.
    Mean,
    /// For each class the mean of its `k` highest slice probabilities (fewer in
    /// a shorter case), then scaled to sum to 1: a focal disease is not drowned
    /// by the slices that do not show it.
    TopKMean {
        /// Number of slices, at least 1.
        k: usize,
    },
}

/// Predictions by case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseScores {
    /// One row a case, in order of the case's number.
    pub scores: Scores,
    /// Number of slices of each case.
    pub n_slices: Vec<usize>,
}

/// Joins slices to cases.
///
/// # Shapes
/// - `slices`: `[N, K]`
/// - `case_n`: `[N]`, the case of each slice, numbered 0, 1, 2 and so on without gaps
///
/// # Errors
/// When the lengths differ, a number is skipped, a case has two labels, or `k` is 0.
pub fn aggregate(slices: &Scores, case_n: &[usize], how: Aggregation) -> Result<CaseScores, MetricsError> {
    if case_n.len() != slices.len() {
        let (got, want) = (case_n.len(), slices.len());
        return Err(MetricsError::WrongLength { what: "case numbers", got, want });
    }
    if how == (Aggregation::TopKMean { k: 0 }) {
        return Err(MetricsError::OutOfRange { what: "k", got: 0.0, range: "at least 1" });
    }
    let rows_of_case = rows_of_case(case_n)?;
    let mut labels = Vec::with_capacity(rows_of_case.len());
    let mut probs = Vec::with_capacity(rows_of_case.len() * slices.n_classes());
    for (case, rows) in rows_of_case.iter().enumerate() {
        labels.push(label_of(slices, case, rows)?);
        let slice_nk: Vec<&[f64]> = rows.iter().map(|&row| slices.row(row)).collect();
        probs.extend(join_slices(&slice_nk, how));
    }
    let n_slices = rows_of_case.iter().map(Vec::len).collect();
    Ok(CaseScores { scores: Scores::new(&probs, slices.n_classes(), &labels)?, n_slices })
}

/// Rows of every case; refuses a skipped number.
pub(crate) fn rows_of_case(case_n: &[usize]) -> Result<Vec<Vec<usize>>, MetricsError> {
    let n_cases = case_n.iter().max().map_or(0, |max| max.saturating_add(1));
    // More cases than rows means a skipped number; found before memory is spent on it.
    let limit = n_cases.min(case_n.len() + 1);
    let mut rows_of_case = vec![Vec::new(); limit];
    for (row, &case) in case_n.iter().enumerate() {
        if let Some(rows) = rows_of_case.get_mut(case) {
            rows.push(row);
        }
    }
    match rows_of_case.iter().position(Vec::is_empty) {
        Some(case) => Err(MetricsError::EmptyCase { case }),
        None => Ok(rows_of_case),
    }
}

pub(crate) fn label_of(scores: &Scores, case: usize, rows: &[usize]) -> Result<usize, MetricsError> {
    let first = scores.labels()[rows[0]];
    match rows.iter().map(|&row| scores.labels()[row]).find(|&label| label != first) {
        Some(second) => Err(MetricsError::MixedLabels { case, first, second }),
        None => Ok(first),
    }
}

/// Joins the slices of one case, `[n][K]` with n at least 1, to `[K]`, which sums to 1.
/// Slices count in the order given, so that the same slices give the same bits.
///
/// ```
/// use diag_metrics::{Aggregation, join_slices};
/// let joined = join_slices(&[&[0.5, 0.5], &[1.0, 0.0]], Aggregation::Mean);
/// assert_eq!(joined, [0.75, 0.25]);
/// ```
pub fn join_slices(slice_nk: &[&[f64]], how: Aggregation) -> Vec<f64> {
    let of_class = |class: usize| slice_nk.iter().map(move |prob_k| prob_k[class]);
    let value = |class: usize| match how {
        Aggregation::Mean => of_class(class).sum::<f64>() / slice_nk.len() as f64,
        Aggregation::TopKMean { k } => {
            let mut probs: Vec<f64> = of_class(class).collect();
            probs.sort_by(|a, b| b.total_cmp(a));
            probs.truncate(k);
            probs.iter().sum::<f64>() / probs.len() as f64
        }
    };
    let n_classes = slice_nk.first().map_or(0, |prob_k| prob_k.len());
    let joined: Vec<f64> = (0..n_classes).map(value).collect();
    let sum: f64 = joined.iter().sum();
    joined.into_iter().map(|p| (p / sum).clamp(0.0, 1.0)).collect()
}
