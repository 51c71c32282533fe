//! The learning rate of every step.

use crate::recipe::ScheduleSpec;

/// Share of the highest learning rate at `step` (from 0) of `n_steps`: a linear
/// rise over the warm-up, then half a cosine (Loshchilov and Hutter 2017).
pub(crate) fn share(spec: &ScheduleSpec, step: u64, steps_per_epoch: u64, n_steps: u64) -> f64 {
    let warmup = spec.warmup_epochs * steps_per_epoch as f64;
    let done = step as f64;
    if done < warmup {
        return (done + 1.0) / (warmup + 1.0);
    }
    if !spec.cosine {
        return 1.0;
    }
    let progress = ((done - warmup) / (n_steps as f64 - warmup).max(1.0)).min(1.0);
    let falling = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    spec.final_share + (1.0 - spec.final_share) * falling
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(warmup_epochs: f64, cosine: bool, step: u64, want: f64) {
        let spec = ScheduleSpec { warmup_epochs, cosine, final_share: 0.1 };
        let got = share(&spec, step, 10, 100);
        assert!((got - want).abs() < 1e-12, "step {step}: {got}, expected {want}");
    }

    #[test]
    fn the_first_step_already_moves() {
        check(1.0, true, 0, 1.0 / 11.0);
    }

    #[test]
    fn the_warm_up_ends_at_the_full_rate() {
        check(1.0, true, 10, 1.0);
    }

    #[test]
    fn the_cosine_is_halfway_in_the_middle_and_ends_at_its_final_share() {
        check(0.0, true, 50, 0.55);
        check(0.0, true, 100, 0.1);
    }

    #[test]
    fn without_a_cosine_the_rate_stays() {
        check(1.0, false, 99, 1.0);
    }
}
