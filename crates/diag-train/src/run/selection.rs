//! Which epoch's weights are kept, and when training stops early.

use diag_data::run::Epoch;

use super::checkpoint::{Best, Position};
use crate::recipe::{Selection, TrainSpec};

/// Whether an epoch is the best so far; if so, `position` remembers it.
pub(crate) fn is_best(rule: Selection, epoch: &Epoch, position: &mut Position) -> bool {
    let (score, tie_break) = score(rule, epoch);
    let better = position.best.is_none_or(|best| (score, tie_break) > (best.score, best.tie_break));
    if better {
        position.best = Some(Best { epoch: epoch.epoch, score, tie_break });
    }
    better
}

/// What is compared, and what decides between equal scores; of both, higher is better.
fn score(rule: Selection, epoch: &Epoch) -> (f64, f64) {
    let Some(validation) = &epoch.validation else {
        return (f64::from(epoch.epoch), 0.0);
    };
    let final_head = validation.loss.heads.get(diag_model::FINAL_HEAD);
    let cross_entropy = final_head.and_then(|terms| terms.get("cross_entropy")).copied();
    let cross_entropy = cross_entropy.unwrap_or(f64::INFINITY);
    match rule {
        Selection::MacroF1 => (validation.case_macro_f1, -cross_entropy),
        Selection::MacroAuroc => (validation.case_macro_auroc.unwrap_or_default(), -cross_entropy),
        Selection::ValidationLoss => (-cross_entropy, 0.0),
        Selection::Last => (f64::from(epoch.epoch), 0.0),
    }
}

/// Whether `patience` epochs have passed since the best one.
pub(crate) fn out_of_patience(recipe: &TrainSpec, position: &Position) -> bool {
    match (recipe.patience, position.best) {
        (Some(patience), Some(best)) => position.epoch - best.epoch >= patience,
        _ => false,
    }
}
