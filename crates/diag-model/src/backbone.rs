//! Residual backbones for one-channel images (He et al., CVPR 2016).

use candle_core::Result;
use candle_train_ops::{Act, Activation, max_pool2d};
use serde::{Deserialize, Serialize};

use crate::parameters::{Builder, ConvNorm};

/// Which feature extractor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// Four stages of one block, 16 to 96 channels: for tests and smoke runs.
    Tiny,
    /// ResNet-18 with torchvision's parameter names and a one-channel stem.
    ResNet18,
}

impl Backbone {
    /// Name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::ResNet18 => "resnet18",
        }
    }

    /// Channels of each stage's output, shallowest first.
    pub fn stage_channels(self) -> [usize; 4] {
        match self {
            // Multiples of 16: the vector kernels work on blocks of 16 channels.
            Self::Tiny => [16, 32, 64, 96],
            Self::ResNet18 => [64, 128, 256, 512],
        }
    }

    fn blocks_per_stage(self) -> usize {
        match self {
            Self::Tiny => 1,
            Self::ResNet18 => 2,
        }
    }
}

/// A stem and four stages.
pub(crate) struct ResidualNet {
    stem: ConvNorm,
    pools: bool,
    stages: Vec<Vec<BasicBlock>>,
}

impl ResidualNet {
    pub fn new(backbone: Backbone, builder: &mut Builder) -> Result<Self> {
        let channels = backbone.stage_channels();
        // Both stems divide the image by 4: the tiny one by its stride, so that no
        // full-resolution map is ever made; ResNet's by stride 2 and a pool.
        let pools = backbone == Backbone::ResNet18;
        let stride = if pools { 2 } else { 4 };
        let stem = builder.conv_norm(("conv1", "bn1"), (1, channels[0]), 7, stride)?;
        let mut stages = Vec::new();
        let mut inputs = channels[0];
        for (s, &outputs) in channels.iter().enumerate() {
            let mut blocks = Vec::new();
            for b in 0..backbone.blocks_per_stage() {
                let stride = if s > 0 && b == 0 { 2 } else { 1 };
                let name = format!("layer{}.{b}", s + 1);
                blocks.push(BasicBlock::new(builder, &name, (inputs, outputs), stride)?);
                inputs = outputs;
            }
            stages.push(blocks);
        }
        Ok(Self { stem, pools, stages })
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        let stage = |stage: &Vec<BasicBlock>| stage.iter().map(BasicBlock::folded).collect();
        let stages = self.stages.iter().map(stage).collect::<Result<_>>()?;
        Ok(Self { stem: self.stem.folded()?, pools: self.pools, stages })
    }

    /// The output of every stage, at 1/4, 1/8, 1/16 and 1/32 of the image.
    pub fn forward(&self, x: &Activation, train: bool) -> Result<Vec<Activation>> {
        let mut x = self.stem.forward(x, None, Act::Relu, train)?;
        if self.pools {
            x = max_pool2d(&x, 3, 2, 1)?;
        }
        let mut outputs = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            for block in stage {
                x = block.forward(&x, train)?;
            }
            outputs.push(x.clone());
        }
        Ok(outputs)
    }
}

struct BasicBlock {
    first: ConvNorm,
    second: ConvNorm,
    downsample: Option<ConvNorm>,
}

impl BasicBlock {
    fn new(builder: &mut Builder, name: &str, io: (usize, usize), stride: usize) -> Result<Self> {
        let (inputs, outputs) = io;
        let names = |conv: &str, norm: &str| (format!("{name}.{conv}"), format!("{name}.{norm}"));
        let mut layer = |(conv, norm): (String, String), io, kernel, stride| {
            builder.conv_norm((&conv, &norm), io, kernel, stride)
        };
        let first = layer(names("conv1", "bn1"), (inputs, outputs), 3, stride)?;
        let second = layer(names("conv2", "bn2"), (outputs, outputs), 3, 1)?;
        let downsample = if stride > 1 || inputs != outputs {
            Some(layer(names("downsample.0", "downsample.1"), (inputs, outputs), 1, stride)?)
        } else {
            None
        };
        Ok(Self { first, second, downsample })
    }

    fn folded(&self) -> Result<Self> {
        Ok(Self {
            first: self.first.folded()?,
            second: self.second.folded()?,
            downsample: self.downsample.as_ref().map(ConvNorm::folded).transpose()?,
        })
    }

    fn forward(&self, x: &Activation, train: bool) -> Result<Activation> {
        let y = self.first.forward(x, None, Act::Relu, train)?;
        let shortcut = match &self.downsample {
            Some(downsample) => downsample.forward(x, None, Act::Identity, train)?,
            None => x.clone(),
        };
        self.second.forward(&y, Some(&shortcut), Act::Relu, train)
    }
}
