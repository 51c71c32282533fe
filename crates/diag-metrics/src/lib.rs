//! Predictions in, statistics out.
//!
//! **In:** class probabilities and labels, checked once by [`Scores::new`].
//! **Out:** [`Measures`] (one number each), curves, intervals and paired tests.
//! **Not known here:** files, tensors, names of classes or cases, and how the
//! probabilities were made. Everything is plain `f64`.
//!
//! Two rules hold throughout:
//!
//! - A value that is not defined (AUROC with one class absent, precision of a
//!   class that was never predicted) is `None`, never NaN and never 0.
//! - A *unit* is whatever is independent: a case, not a slice. Intervals of
//!   slice measures are made by resampling whole cases ([`summarise`]).
//!
//! ```
//! use diag_metrics::{Measure, Scores, evaluate};
//!
//! let probs = [0.7, 0.2, 0.1, 0.1, 0.8, 0.1, 0.3, 0.3, 0.4];
//! let scores = Scores::new(&probs, 3, &[0, 1, 2])?;
//! let measures = evaluate(&scores);
//! assert_eq!(measures.get(Measure::Accuracy), Some(1.0));
//! # Ok::<(), diag_metrics::MetricsError>(())
//! ```

mod bands;
mod benefit;
mod bootstrap;
mod calibration;
mod cases;
mod compare;
mod confusion;
mod crossed;
mod delong;
mod error;
mod intervals;
mod means;
mod measure;
mod normal;
mod paired;
mod ranking;
mod scores;

pub use bands::{Bounds, NetBenefitBandPoint, PrBandPoint, net_benefit_band, precision_recall_band};
pub use benefit::{NetBenefitPoint, net_benefit_curve};
pub use bootstrap::{
    Bootstrap, Estimate, IntervalMethod, RocBandPoint, Summary, bca_interval, percentile_interval, roc_band,
    summarise, summarise_by_patient, wilson_interval,
};
pub use calibration::{
    PROBABILITY_FLOOR, Recalibration, ReliabilityBin, brier_score, expected_calibration_error, log_loss,
    recalibrate, reliability,
};
pub use cases::{Aggregation, CaseScores, aggregate, join_slices};
pub use compare::{
    Comparison, McNemar, PairedDifference, holm, mcnemar, paired_bootstrap, predictive_value_bounds,
    predictive_values,
};
pub use confusion::{ClassCounts, ConfusionMatrix};
pub use crossed::{CrossedDifference, CrossedPlan, CrossedRuns, crossed_bootstrap, patients_needed};
pub use delong::{Delong, DelongDifference, delong, delong_paired};
pub use error::MetricsError;
pub use intervals::{IntervalKind, MeasuredInterval, UnitSummary, summarise_units};
pub use means::mean_by_case;
pub use measure::{ClassMeasures, Measure, Measures, evaluate};
pub use normal::{normal_cdf, normal_quantile};
pub use paired::{PairedTest, paired_test};
pub use ranking::{PrPoint, RocPoint, auroc, average_precision, pr_curve, roc_curve};
pub use scores::Scores;
