//! A running average of the weights (Polyak and Juditsky 1992), exponential.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use diag_model::Network;

/// The average so far, of weights and running statistics alike.
pub(crate) struct Average {
    decay: f64,
    state: BTreeMap<String, Tensor>,
}

impl Average {
    /// Starts at the network's present weights.
    pub fn new(decay: f64, network: &Network) -> Result<Self> {
        let state = network.state()?.into_iter().map(|(name, tensor)| (name, tensor.detach()));
        Ok(Self { decay, state: state.collect() })
    }

    /// Moves towards the present weights. Early on it forgets faster, so that the
    /// random start does not linger: the decay is (1 + n) / (10 + n) at most.
    pub fn update(&mut self, network: &Network, n_steps: u64) -> Result<()> {
        let n = n_steps as f64;
        let decay = self.decay.min((1.0 + n) / (10.0 + n));
        for (name, now) in network.state()? {
            if let Some(average) = self.state.get_mut(&name) {
                // Detached: a graph from step to step would keep the weights of every one.
                // Running statistics start on the CPU and go where they are used.
                let before = average.detach().to_device(now.device())?;
                *average = ((before * decay)? + (now.detach() * (1.0 - decay))?)?;
            }
        }
        Ok(())
    }

    pub fn state(&self) -> &BTreeMap<String, Tensor> {
        &self.state
    }

    /// Goes on where [`state`](Self::state) was taken.
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
        let mut average = Average::new(0.9, &network).unwrap();
        for n_steps in 1..=2 {
            average.update(&network, n_steps).unwrap();
            assert!(average.state().values().all(|tensor| !tensor.track_op()), "after step {n_steps}");
        }
    }
}
