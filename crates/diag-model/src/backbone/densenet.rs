//! DenseNet-121 (Huang et al., CVPR 2017) with torchvision's parameter names.

use candle_core::Result;
use candle_train_ops::{Act, Activation, avg_pool2d, concat_channels, max_pool2d};

use super::Features;
use crate::network::Pass;
use crate::parameters::{Builder, Conv, ConvNorm, Norm};

const LAYERS_PER_BLOCK: [usize; 4] = [6, 12, 24, 16];
const STEM_CHANNELS: usize = 64;
const GROWTH: usize = 32;
/// Channels of a layer's 1x1 convolution.
const WIDTH: usize = 4 * GROWTH;

pub(crate) struct DenseNet {
    stem: ConvNorm,
    blocks: Vec<Vec<Layer>>,
    /// Between the blocks: one fewer than blocks.
    transitions: Vec<(Norm, Conv)>,
    last_norm: Norm,
}

impl DenseNet {
    pub fn new(builder: &mut Builder) -> Result<Self> {
        builder.part = 0;
        let stem = builder.conv_norm(("features.conv0", "features.norm0"), (1, STEM_CHANNELS), 7, 2)?;
        let (mut blocks, mut transitions) = (Vec::new(), Vec::new());
        let mut channels = STEM_CHANNELS;
        for (b, &n_layers) in LAYERS_PER_BLOCK.iter().enumerate() {
            builder.part = b + 1;
            let mut layers = Vec::new();
            for l in 0..n_layers {
                let name = format!("features.denseblock{}.denselayer{}", b + 1, l + 1);
                layers.push(Layer::new(builder, &name, channels)?);
                channels += GROWTH;
            }
            blocks.push(layers);
            if b + 1 < LAYERS_PER_BLOCK.len() {
                let name = format!("features.transition{}", b + 1);
                let norm = builder.norm(&format!("{name}.norm"), channels)?;
                let conv = builder.conv(&format!("{name}.conv"), (channels, channels / 2), 1, 1)?;
                transitions.push((norm, conv));
                channels /= 2;
            }
        }
        let last_norm = builder.norm("features.norm5", channels)?;
        Ok(Self { stem, blocks, transitions, last_norm })
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        let block = |block: &Vec<Layer>| block.iter().map(Layer::folded).collect();
        Ok(Self {
            stem: self.stem.folded()?,
            blocks: self.blocks.iter().map(block).collect::<Result<_>>()?,
            transitions: self.transitions.iter().map(|(n, c)| (n.detached(), c.detached())).collect(),
            last_norm: self.last_norm.detached(),
        })
    }

    pub fn forward(&self, x: &Activation, pass: Pass) -> Result<Features> {
        let x = self.stem.forward(x, None, Act::Relu, pass.trains(0))?;
        let mut x = pass.cut(0, max_pool2d(&x, 3, 2, 1)?);
        let mut stages = Vec::with_capacity(self.blocks.len());
        for (b, block) in self.blocks.iter().enumerate() {
            let train = pass.trains(b + 1);
            for layer in block {
                x = concat_channels(&x, &layer.forward(&x, train)?)?;
            }
            if b + 1 == self.blocks.len() {
                x = self.last_norm.forward(&x, None, Act::Relu, train)?;
            }
            stages.push(pass.cut(b + 1, x.clone()));
            if let Some((norm, conv)) = self.transitions.get(b) {
                let y = conv.forward(&norm.forward(&x, None, Act::Relu, train)?)?;
                x = pass.cut(b + 1, avg_pool2d(&y, 2, 2, 0)?);
            }
        }
        let last = pass.cut(self.blocks.len(), x);
        Ok(Features { stages, last })
    }
}

/// Normalise, 1x1, normalise, 3x3: adds [`GROWTH`] channels.
struct Layer {
    norm1: Norm,
    conv1: ConvNorm,
    conv2: Conv,
}

impl Layer {
    fn new(builder: &mut Builder, name: &str, channels: usize) -> Result<Self> {
        let norm1 = builder.norm(&format!("{name}.norm1"), channels)?;
        let names = (format!("{name}.conv1"), format!("{name}.norm2"));
        let conv1 = builder.conv_norm((&names.0, &names.1), (channels, WIDTH), 1, 1)?;
        let conv2 = builder.conv(&format!("{name}.conv2"), (WIDTH, GROWTH), 3, 1)?;
        Ok(Self { norm1, conv1, conv2 })
    }

    fn folded(&self) -> Result<Self> {
        Ok(Self { norm1: self.norm1.detached(), conv1: self.conv1.folded()?, conv2: self.conv2.detached() })
    }

    fn forward(&self, x: &Activation, train: bool) -> Result<Activation> {
        let y = self.norm1.forward(x, None, Act::Relu, train)?;
        self.conv2.forward(&self.conv1.forward(&y, None, Act::Relu, train)?)
    }
}
