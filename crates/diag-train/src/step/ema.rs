//! Exponential moving average of the weights (Polyak and Juditsky 1992).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use diag_model::Network;

/// The average so far, of weights and running statistics.
pub(crate) struct Ema {
    decay: f64,
    state: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Starts at the network's current weights.
    pub fn new(decay: f64, network: &Network) -> Result<Self> {
        let state = network.state()?.into_iter().map(|(name, tensor)| (name, tensor.detach()));
        Ok(Self { decay, state: state.collect() })
    }

    /// Updates the average with the current weights. The decay is at most (1 + n) / (10 + n),
    /// so that the random initial weights are forgotten soon.
    pub fn update(&mut self, network: &Network, n_steps: u64) -> Result<()> {
        let n = n_steps as f64;
        let decay = self.decay.min((1.0 + n) / (10.0 + n));
        for (name, now) in network.state()? {
            if let Some(average) = self.state.get_mut(&name) {
                // Detached: a graph over the steps would keep the weights of each of them.
                // Running statistics start on the CPU and move to the device that uses them.
                let before = average.detach().to_device(now.device())?;
                *average = ((before * decay)? + (now.detach() * (1.0 - decay))?)?;
            }
        }
        Ok(())
    }

    pub fn state(&self) -> &BTreeMap<String, Tensor> {
        &self.state
    }

    /// Restores what [`state`](Self::state) returned.
    pub fn load_state(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        if !state.keys().eq(self.state.keys()) {
            candle_core::bail!("the averaged weights are those of another network");
        }
        for (name, tensor) in state {
            if let Some(average) = self.state.get_mut(&name) {
                *average = tensor.to_device(average.device())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use diag_model::{Backbone, Fusion, NetworkSpec, SideStages};

    use super::*;

    #[test]
    fn the_average_keeps_no_graph() {
        let spec = NetworkSpec {
            backbone: Backbone::Tiny,
            n_classes: 2,
            deep_supervision: false,
            side_stages: SideStages::default(),
            fusion: Fusion::default(),
            dropout: 0.0,
        };
        let network = Network::new(&spec, 1).unwrap();
        let mut average = Ema::new(0.9, &network).unwrap();
        for n_steps in 1..=2 {
            average.update(&network, n_steps).unwrap();
            assert!(average.state().values().all(|tensor| !tensor.track_op()), "after step {n_steps}");
        }
    }
}
