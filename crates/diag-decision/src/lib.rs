//! The decided rule: from the slice predictions of a case to a class, calibrated
//! probabilities, a set of classes and a call.
//!
//! **In:** slice probabilities of validation cases ([`fit`]), or of any case together with a
//! rule ([`Decision::apply`]). **Out:** the rule with all that it rests on, in one file
//! (`decision.json`, [`Decision::read`] and [`Decision::write`]), and what it decides.
//! Everything that shows a case to a person calls [`Decision::apply`], so that what is
//! published is what runs.
//! **Not known here:** tensors, networks, pictures, command lines.
//!
//! A rule is as simple as the validation cases allow ([`Demands`]): below a stated number of
//! cases it is the mean over the slices, uncalibrated, without threshold and sets, and it
//! says so. `docs/method.md` derives it and names the sources.
//!
//! ```
//! use diag_data::case::{CaseId, Label, LabelSet, Split};
//! use diag_decision::{Case, FitSpec, fit};
//!
//! let labels = LabelSet::new(vec!["sick".into(), "well".into()])?;
//! let spec = FitSpec::new(labels, "hash of the weights");
//! let case = Case {
//!     case_id: CaseId::new("a")?,
//!     split: Split::Validation,
//!     label: Label(0),
//!     slice_nk: vec![vec![0.8, 0.2], vec![0.6, 0.4]],
//! };
//! let decision = fit(&[case], &spec)?;
//! let decided = decision.apply(&[[0.9, 0.1], [0.5, 0.5]])?;
//! assert_eq!(decided.class, 0);
//! assert_eq!(decided.probability_k, decided.mean_probability_k);
//! // One case of a class carries no threshold and no sets.
//! assert_eq!((decided.call, decided.set), (None, None));
//! assert_eq!(decision.terms().threshold_in_words(), "not fixed: needs 19 validation cases of sick, has 1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cases;
mod choice;
mod cut;
mod decision;
mod demands;
mod error;
mod fit;
mod measure;
mod temperature;
mod terms;

pub use cases::{Case, cases_of};
pub use cut::cases_needed;
pub use decision::{CaseDecision, Decision};
pub use demands::Demands;
pub use diag_data::case_predictions::Call;
pub use diag_metrics::Aggregation;
pub use error::DecisionError;
pub use fit::{FitSpec, fit};
pub use measure::{DecisionMetrics, SetMetrics, ThresholdMetrics};
pub use terms::{
    Basis, Candidate, CaseCount, ConformalSets, Coverage, FORMAT_VERSION, FittedOn, PriorCorrection,
    RuleInWords, Terms,
};
