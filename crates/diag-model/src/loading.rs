//! Weights of others: taken over where they fit, explained where they do not.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Result, Tensor};

use crate::Network;
use crate::backbone::published;

/// What a partial load did, line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The network's tensors that were taken over.
    pub loaded: Vec<Loaded>,
    /// Names of the network's tensors that kept their values, with the reason.
    pub kept: Vec<(String, String)>,
    /// Names of the file's tensors that have no place in the network.
    pub unused: Vec<String>,
}

/// A tensor that was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name in the network.
    pub name: String,
    /// Its name in the file.
    pub source: String,
    /// Whether its three input channels were summed to one.
    pub folded: bool,
}

impl LoadReport {
    /// The report in words: a summary, then a line for every tensor that was
    /// folded, kept or not used.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} tensors taken over, {} kept as they were, {} of the file not used",
            self.loaded.len(),
            self.kept.len(),
            self.unused.len()
        )];
        let folded = self.loaded.iter().filter(|loaded| loaded.folded);
        lines.extend(
            folded.map(|l| format!("{}: three input channels of {} summed to one", l.name, l.source)),
        );
        lines.extend(self.kept.iter().map(|(name, why)| format!("{name} starts at random: it {why}")));
        lines.extend(self.unused.iter().map(|name| format!("{name} of the file has no place")));
        lines
    }
}

impl Network {
    /// Takes over every tensor whose name and shape match, for weights under the
    /// names that a backbone is published with: torchvision's and timm's for
    /// ResNet and DenseNet, EfficientNet-PyTorch's and timm's for EfficientNet. A
    /// stem for three channels is summed over them, which gives a grey image the
    /// response of its three equal channels.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn load_matching(&self, tensors: &BTreeMap<String, Tensor>) -> Result<LoadReport> {
        let mut report = LoadReport::default();
        let mut seen = BTreeSet::new();
        let mut find = |own: &str| {
            let names = published::names(self.spec().backbone, own);
            let found = names.into_iter().find_map(|name| tensors.get_key_value(&name))?;
            seen.insert(found.0.clone());
            Some(found)
        };
        for (name, var) in &self.parameters.vars {
            let Some((source, tensor)) = find(name) else {
                report.kept.push((name.clone(), "is missing".to_owned()));
                continue;
            };
            let folded = published::is_stem(name) && matches!(tensor.dims(), [_, 3, _, _]);
            let tensor = tensor.to_dtype(var.dtype())?;
            let tensor = if folded { tensor.sum_keepdim(1)? } else { tensor };
            if tensor.dims() != var.dims() {
                let reason = format!("has shape {:?}, not {:?}", tensor.dims(), var.dims());
                report.kept.push((name.clone(), reason));
                continue;
            }
            var.set(&tensor.contiguous()?.to_device(var.device())?)?;
            report.loaded.push(Loaded { name: name.clone(), source: source.clone(), folded });
        }
        for (name, stats) in &self.parameters.stats {
            let own = ["running_mean", "running_var"].map(|part| format!("{name}.{part}"));
            let n_channels = stats.channels();
            let [mean, var] =
                own.each_ref().map(|own| find(own).filter(|(_, tensor)| tensor.dims() == [n_channels]));
            if let (Some(mean), Some(var)) = (mean, var) {
                let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_vec1();
                stats.set(values(mean.1)?, values(var.1)?)?;
                for (name, (source, _)) in own.into_iter().zip([mean, var]) {
                    report.loaded.push(Loaded { name, source: source.clone(), folded: false });
                }
            } else {
                report.kept.push((own[0].clone(), "is missing or of another shape".to_owned()));
            }
        }
        // PyTorch's count of training steps says nothing about the weights.
        let says_something = |name: &&String| !name.ends_with(".num_batches_tracked");
        report.unused =
            tensors.keys().filter(says_something).filter(|name| !seen.contains(*name)).cloned().collect();
        Ok(report)
    }
}
