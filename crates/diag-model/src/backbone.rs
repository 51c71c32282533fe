//! The feature extractors: a stem and four stages each, for one-channel images.

mod densenet;
mod efficientnet;
pub(crate) mod published;
mod residual;

use candle_core::Result;
use candle_train_ops::Activation;
use serde::{Deserialize, Serialize};

use crate::network::Pass;
use crate::parameters::Builder;

/// Which feature extractor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// Four stages of one block, 16 to 96 channels: for tests and smoke runs.
    Tiny,
    /// ResNet-18 (He et al., CVPR 2016) with torchvision's parameter names.
    ResNet18,
    /// ResNet-34, likewise.
    ResNet34,
    /// ResNet-50, likewise; the stride is in the 3x3 convolution, as in torchvision.
    ResNet50,
    /// EfficientNet-Lite0 (Tan and Le, ICML 2019; without squeeze-and-excitation and
    /// with ReLU6) with the parameter names of EfficientNet-PyTorch.
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0,
    /// DenseNet-121 (Huang et al., CVPR 2017) with torchvision's parameter names.
    DenseNet121,
}

impl Backbone {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Tiny,
        Self::ResNet18,
        Self::ResNet34,
        Self::ResNet50,
        Self::EfficientNetLite0,
        Self::DenseNet121,
    ];

    /// Name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::ResNet18 => "resnet18",
            Self::ResNet34 => "resnet34",
            Self::ResNet50 => "resnet50",
            Self::EfficientNetLite0 => "efficientnet-lite0",
            Self::DenseNet121 => "densenet121",
        }
    }

    /// Channels of each stage's output, shallowest first, at 1/4, 1/8, 1/16 and 1/32 of the image.
    pub fn stage_channels(self) -> [usize; 4] {
        match self {
            // Multiples of 16: the vector kernels work on blocks of 16 channels.
            Self::Tiny => [16, 32, 64, 96],
            Self::ResNet18 | Self::ResNet34 => [64, 128, 256, 512],
            Self::ResNet50 => [256, 512, 1024, 2048],
            Self::EfficientNetLite0 => [24, 40, 112, 320],
            Self::DenseNet121 => [256, 512, 1024, 1024],
        }
    }

    /// Channels of the features that the final head reads.
    pub fn feature_channels(self) -> usize {
        match self {
            Self::EfficientNetLite0 => 1280,
            _ => self.stage_channels()[3],
        }
    }
}

/// What a backbone makes of images.
pub(crate) struct Features {
    /// The output of every stage.
    pub stages: Vec<Activation>,
    /// What the final head reads.
    pub last: Activation,
}

/// A backbone with its weights.
pub(crate) enum Extractor {
    Residual(residual::ResidualNet),
    Efficient(efficientnet::EfficientNet),
    Dense(densenet::DenseNet),
}

impl Extractor {
    pub fn new(backbone: Backbone, builder: &mut Builder) -> Result<Self> {
        match backbone {
            Backbone::Tiny | Backbone::ResNet18 | Backbone::ResNet34 | Backbone::ResNet50 => {
                residual::ResidualNet::new(backbone, builder).map(Self::Residual)
            }
            Backbone::EfficientNetLite0 => efficientnet::EfficientNet::new(builder).map(Self::Efficient),
            Backbone::DenseNet121 => densenet::DenseNet::new(builder).map(Self::Dense),
        }
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        match self {
            Self::Residual(net) => net.folded().map(Self::Residual),
            Self::Efficient(net) => net.folded().map(Self::Efficient),
            Self::Dense(net) => net.folded().map(Self::Dense),
        }
    }

    pub fn forward(&self, x: &Activation, pass: Pass) -> Result<Features> {
        match self {
            Self::Residual(net) => net.forward(x, pass),
            Self::Efficient(net) => net.forward(x, pass),
            Self::Dense(net) => net.forward(x, pass),
        }
    }

    /// What the final head reads, from the outputs of the stages, with the running statistics.
    pub fn last(&self, stages: &[Activation]) -> Result<Activation> {
        match (self, stages.last()) {
            (Self::Efficient(net), Some(deepest)) => net.last(deepest, Pass::Evaluate),
            (_, Some(deepest)) => Ok(deepest.clone()),
            (_, None) => candle_core::bail!("a backbone without stages has no final head"),
        }
    }
}
