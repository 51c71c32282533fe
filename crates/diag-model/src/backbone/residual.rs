//! Residual networks (He et al., CVPR 2016) with torchvision's parameter names.

use candle_core::Result;
use candle_train_ops::{Act, Activation, max_pool2d};

use super::{Backbone, Features};
use crate::network::Pass;
use crate::parameters::{Builder, ConvNorm};

/// A stem and four stages.
pub(crate) struct ResidualNet {
    stem: ConvNorm,
    pools: bool,
    stages: Vec<Vec<Block>>,
}

impl ResidualNet {
    pub fn new(backbone: Backbone, builder: &mut Builder) -> Result<Self> {
        let channels = backbone.stage_channels();
        let (blocks_per_stage, bottleneck) = match backbone {
            Backbone::ResNet34 => ([3, 4, 6, 3], false),
            Backbone::ResNet50 => ([3, 4, 6, 3], true),
            Backbone::ResNet18 => ([2; 4], false),
            _ => ([1; 4], false),
        };
        // Both stems divide the image by 4: the tiny one by its stride, so that no
        // full-resolution map is ever made; ResNet's by stride 2 and a pool.
        let pools = backbone != Backbone::Tiny;
        let (width, stride) = if pools { (64, 2) } else { (channels[0], 4) };
        builder.part = 0;
        let stem = builder.conv_norm(("conv1", "bn1"), (1, width), 7, stride)?;
        let mut stages = Vec::new();
        let mut inputs = width;
        for (s, &outputs) in channels.iter().enumerate() {
            builder.part = s + 1;
            let mut blocks = Vec::new();
            for b in 0..blocks_per_stage[s] {
                let stride = if s > 0 && b == 0 { 2 } else { 1 };
                let name = format!("layer{}.{b}", s + 1);
                blocks.push(Block::new(builder, &name, (inputs, outputs), stride, bottleneck)?);
                inputs = outputs;
            }
            stages.push(blocks);
        }
        Ok(Self { stem, pools, stages })
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        let stage = |stage: &Vec<Block>| stage.iter().map(Block::folded).collect();
        let stages = self.stages.iter().map(stage).collect::<Result<_>>()?;
        Ok(Self { stem: self.stem.folded()?, pools: self.pools, stages })
    }

    pub fn forward(&self, x: &Activation, pass: Pass) -> Result<Features> {
        let mut x = self.stem.forward(x, None, Act::Relu, pass.trains(0))?;
        if self.pools {
            x = max_pool2d(&x, 3, 2, 1)?;
        }
        x = pass.cut(0, x);
        let mut stages = Vec::with_capacity(self.stages.len());
        for (s, stage) in self.stages.iter().enumerate() {
            for block in stage {
                x = block.forward(&x, pass.trains(s + 1))?;
            }
            x = pass.cut(s + 1, x);
            stages.push(x.clone());
        }
        Ok(Features { stages, last: x })
    }
}

/// Two 3x3 convolutions, or a 3x3 between two 1x1, and the way around them.
struct Block {
    layers: Vec<ConvNorm>,
    downsample: Option<ConvNorm>,
}

impl Block {
    fn new(
        builder: &mut Builder,
        name: &str,
        (inputs, outputs): (usize, usize),
        stride: usize,
        bottleneck: bool,
    ) -> Result<Self> {
        let mut layer = |conv: &str, norm: &str, io, kernel, stride| {
            builder.conv_norm((&format!("{name}.{conv}"), &format!("{name}.{norm}")), io, kernel, stride)
        };
        let layers = if bottleneck {
            let width = outputs / 4;
            vec![
                layer("conv1", "bn1", (inputs, width), 1, 1)?,
                layer("conv2", "bn2", (width, width), 3, stride)?,
                layer("conv3", "bn3", (width, outputs), 1, 1)?,
            ]
        } else {
            vec![
                layer("conv1", "bn1", (inputs, outputs), 3, stride)?,
                layer("conv2", "bn2", (outputs, outputs), 3, 1)?,
            ]
        };
        let changes = stride > 1 || inputs != outputs;
        let downsample = changes
            .then(|| layer("downsample.0", "downsample.1", (inputs, outputs), 1, stride))
            .transpose()?;
        Ok(Self { layers, downsample })
    }

    fn folded(&self) -> Result<Self> {
        Ok(Self {
            layers: self.layers.iter().map(ConvNorm::folded).collect::<Result<_>>()?,
            downsample: self.downsample.as_ref().map(ConvNorm::folded).transpose()?,
        })
    }

    fn forward(&self, x: &Activation, train: bool) -> Result<Activation> {
        let shortcut = match &self.downsample {
            Some(downsample) => downsample.forward(x, None, Act::Identity, train)?,
            None => x.clone(),
        };
        let Some((last, first)) = self.layers.split_last() else {
            return Ok(shortcut);
        };
        let mut y = x.clone();
        for layer in first {
            y = layer.forward(&y, None, Act::Relu, train)?;
        }
        last.forward(&y, Some(&shortcut), Act::Relu, train)
    }
}
