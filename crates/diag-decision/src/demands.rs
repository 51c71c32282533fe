//! What a rule is asked for.

/// What evidence a rule needs before it leaves the plain mean. The values come from
/// simulations; see `docs/method.md` and `examples/simulate.rs`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demands {
    /// Fewest validation cases of a class for a choice of aggregation and temperature.
    pub cases_per_class: usize,
    /// Standard deviation of ln T around 0 before any case is seen, above 0.
    pub log_temperature_sd: f64,
    /// Standard errors that a simpler candidate may be behind the best one.
    pub standard_errors: f64,
}

impl Default for Demands {
    fn default() -> Self {
        Self { cases_per_class: 10, log_temperature_sd: 0.2, standard_errors: 1.0 }
    }
}
