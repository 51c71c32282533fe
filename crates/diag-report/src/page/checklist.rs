//! The reporting checklist and the definitions.

use diag_metrics::Measure;
use maud::{Markup, html};

use super::Context;
use crate::Options;
use crate::card::ITEMS;

/// What this program computes: question, and the section that answers it.
const COMPUTED: [(&str, &str); 17] = [
    ("Cases and slices per class and partition", "data"),
    ("Flow of inclusion and exclusion with counts", "data"),
    ("Architecture, initialisation and number of weights", "provenance"),
    ("Loss, optimiser and hyper-parameters", "provenance"),
    ("Training course and rule for choosing the weights", "training"),
    ("Seeds, software versions and hardware", "provenance"),
    ("Confusion matrix by case", "performance"),
    ("Sensitivity, specificity, PPV and NPV per class", "performance"),
    ("Predictive values at stated prevalences", "calibration"),
    ("AUROC, AUPRC, balanced accuracy, MCC", "performance"),
    ("Confidence intervals by case", "performance"),
    ("Reliability diagram, Brier score, ECE, slope and intercept", "calibration"),
    ("Net benefit, with acting on everybody and nobody", "calibration"),
    ("Model card", "model-card"),
    ("Unit of analysis stated with every number", "summary"),
    ("Warning where a class has few cases", "summary"),
    ("Failure cases shown", "failures"),
];

/// What the shards and the heat maps answer when they are at hand.
const FROM_SHARDS: [(&str, &str); 7] = [
    ("Scanner, kernel and slice thickness per partition", "data"),
    ("Subgroups by scanner, kernel and slice thickness", "performance"),
    ("Leakage evidence between partitions: patient, study, series, pixels", "data"),
    ("Chain of hashes from the source files to the predictions", "provenance"),
    ("Age and sex per partition", "data"),
    ("Heat maps, with a check on random weights", "explanations"),
    ("Heat maps against true lesions; subgroups by lesion load", "explanations"),
];

/// What the evaluation answers when it had validation cases.
const OPERATING_POINT: &str = "Operating point fixed on validation cases";

/// What no part of this program computes yet.
const NOT_COMPUTED: [&str; 1] = ["Robustness: noise, dose and scanner shift"];

pub(crate) fn section(context: &Context) -> Markup {
    let link = |id: &str| format!("#{}{id}", context.anchor);
    let shards = context.run.shards.as_ref().ok();
    let has_demographics = shards.is_some_and(|shards| {
        shards.cases.iter().any(|case| case.patient_age_years.is_some() || case.patient_sex.is_some())
    });
    let maps = context.run.maps.as_ref().ok();
    let has_truth = maps.is_some_and(|maps| !maps.how.lesion_share.is_empty());
    let at_hand = shards.is_some();
    let has_threshold = context.numbers.operating_point.threshold.is_some();
    let from_shards = [at_hand, at_hand, at_hand, at_hand, has_demographics, maps.is_some(), has_truth];
    html! {
        p {
            "Items that reporting guidelines for diagnostic AI ask for (after CLAIM, STARD-AI, TRIPOD+AI and Metrics Reloaded). "
            "Each is marked as computed by this program, supplied by the authors, or missing. "
            "This list claims no compliance with any guideline."
        }
        div.scroll {
            table.checklist {
                thead { tr { th { "Item" } th { "State" } th { "Where, or text" } } }
                tbody {
                    @for (item, id) in COMPUTED { (computed(item, &link(id), id)) }
                    @for ((item, id), there) in FROM_SHARDS.into_iter().zip(from_shards) {
                        @if there { (computed(item, &link(id), id)) } @else { (missing(item)) }
                    }
                    @if has_threshold { (computed(OPERATING_POINT, &link("calibration"), "calibration")) }
                    @else { (missing(OPERATING_POINT)) }
                    @for (key, item) in ITEMS {
                        @match context.options.card.get(key) {
                            Some(text) => tr { td { (item) } td { span.state.supplied { "◆ supplied" } } td { (text) } },
                            None => (missing(item)),
                        }
                    }
                    @for item in NOT_COMPUTED { (missing(item)) }
                }
            }
        }
    }
}

fn computed(item: &str, href: &str, id: &str) -> Markup {
    html! { tr { td { (item) } td { span.state.computed { "● computed" } } td { a href=(href) { (id) } } } }
}

fn missing(item: &str) -> Markup {
    html! { tr { td { (item) } td { span.state.missing { "○ missing" } } td { "–" } } }
}

pub(crate) fn definitions(options: &Options) -> Markup {
    let measures = Measure::OVERALL.into_iter().chain(Measure::of_class(0));
    html! {
        dl {
            dt { "Case, slice" }
            dd { "A case is one CT series of one patient; a slice is one axial image of it. A case's probability is that of the decided rule, which joins its slices and calibrates (see Operating point); in the other columns it is the mean over its slices, or the mean of its three highest slice probabilities per class, scaled to sum to 1. The called class is the most probable one; nothing was tuned on this part." }
            dt { "95 % CI" }
            dd {
                "By patient where all are known, else by case; of slices, too. Wilson's score interval where a measure is a share of independent cases (accuracy, sensitivity, specificity, precision, NPV). "
                "Else the variance is that of leaving out one patient at a time (jackknife within strata of equal classes), and Wilson's interval is taken at the number of independent trials that would have it; "
                "where leaving out any changes nothing, at the number of patients. MCC and kappa are mapped to a share; Brier score, log loss and ECE have an interval on the logarithmic scale with Student's t. "
                "No random numbers take part. No interval is given where a measure is undefined without one patient, or a class has but one."
            }
            dt { "Band, paired test" }
            dd { "By " (options.n_resamples) " bootstrap samples (seed " (options.seed) "): cases are drawn with replacement within their class and keep all their slices." }
            @for measure in measures { dt { (measure.title()) } dd { (measure.definition()) } }
            dt { "Pointing game, mass in lesion, overlap" }
            dd { "Of a heat map and a true lesion mask of the same slice: whether the map's highest point lies in the lesion (several equally high points count in proportion); the share of the map's sum within the lesion; the Dice overlap of the lesion with the map's highest part of equal area, which needs no threshold. Unit: case, the mean over its slices." }
            dt { "Anywhere in the lungs, usual place of lesions" }
            dd { "Maps that look at no network: every point between aerated lung alike; the mean lesion mask of the cases outside this part. What a heat map adds to them is what it is worth." }
            dt { "ROC band" }
            dd { "Pointwise 95 % band of the sensitivity at each false positive rate, from the same bootstrap." }
            dt { "Precision-recall band, band of a decision curve" }
            dd { "Pointwise 95 % bands of the precision at the highest threshold that reaches each recall, and of the net benefit at each threshold, from the same bootstrap. Resamples keep the class sizes, so that acting on everybody has no band." }
            dt { "Reliability" }
            dd { "Of the cases whose probability of a class lies in a bin: their mean probability, and the share that is of the class, with its Wilson score interval, 95 %. Unit: case." }
            dt { "Predictive values at another share" }
            dd { "PPV and NPV by Bayes' rule from sensitivity and specificity on these cases, where the class has the stated share; intervals from those of the two, each at the level 0.95 to the power one half. They hold only if sensitivity and specificity do there, too." }
            dt { "Rank correlation of heat maps" }
            dd { "Spearman's, over the points of two maps of the same slice. Unit: case, the mean over its maps." }
            dt { "Peak of a heat map, probability by a head" }
            dd { "The map's highest value before it was scaled, in the units of its method: score of the class for Grad-CAM, loss of probability for occlusion. Unit: slice." }
            dt { "Operating point, temperature, sets of classes" }
            dd { "Fitted on validation cases only: the highest threshold that finds the wanted share of the class; the power 1 / T of the probabilities with the lowest log loss (Guo et al. 2017); conformal sets by class, which hold the true class with the wanted chance (Vovk et al. 2005). A set of several classes is a case that the model leaves to a reader. Unit: case." }
            dt { "Lesion load" }
            dd { "Share of the lungs that is lesion, from the known truth. Unit: case." }
            dt { "Slices voting" }
            dd { "Of one case: slices whose most probable class is the true one, the one the case was called, or another." }
            dt { "Learning rate, class weights, head weights" }
            dd { "Step size of the optimiser; factors of each class and of each head in the loss. Unit: epoch." }
            dt { "Slope, intercept, calibration in the large" }
            dd { "Logistic regression of the class on the logit of its probability (Cox 1958): a slope below 1 means predictions that are too extreme; calibration in the large is the intercept with the slope held at 1. The slope's interval is from its standard error." }
            dt { "Net benefit" }
            dd { "TP/n − FP/n · t/(1 − t) at threshold probability t (Vickers and Elkin 2006); acting on nobody is worth 0." }
            dt { "DeLong, McNemar, paired bootstrap, Holm" }
            dd { "Two runs on the same cases: DeLong's test for two AUROCs; McNemar's for two error counts, exact with fewer than 25 discordant cases; paired bootstrap for any measure; p values adjusted together by Holm's step-down method." }
            dt { "Cross entropy, reverse cross entropy, alpha, beta" }
            dd { "Parts and learned weights of the self-adaptive auxiliary loss: the negative log probability of the label; a bounded loss that a wrong label cannot dominate; the overlap between neighbouring slices in the effective number of samples; the weight of the reverse cross entropy in each head." }
        }
    }
}
