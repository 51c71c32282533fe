//! Wall time of a run.

use std::time::Instant;

/// Wall time of a run over all its resumes.
pub(crate) struct Clock {
    started: Instant,
    before: f64,
}

impl Clock {
    pub fn start() -> Self {
        Self { started: Instant::now(), before: 0.0 }
    }

    pub fn after(self, before: f64) -> Self {
        Self { before, ..self }
    }

    pub fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }
}
