//! EfficientNet-Lite0 with the parameter names of EfficientNet-PyTorch.

use candle_core::Result;
use candle_train_ops::{Act, Activation};

use super::Features;
use crate::network::Pass;
use crate::parameters::{Builder, ConvNorm, Style};

/// One line of the architecture's table.
pub(super) struct Row {
    pub expand: usize,
    pub channels: usize,
    pub repeats: usize,
    pub stride: usize,
    pub kernel: usize,
    /// Which of our stages its blocks belong to, from 1.
    pub stage: usize,
}

const fn row(
    expand: usize,
    channels: usize,
    repeats: usize,
    stride: usize,
    kernel: usize,
    stage: usize,
) -> Row {
    Row { expand, channels, repeats, stride, kernel, stage }
}

pub(super) const TABLE: [Row; 7] = [
    row(1, 16, 1, 1, 3, 1),
    row(6, 24, 2, 2, 3, 1),
    row(6, 40, 2, 2, 5, 2),
    row(6, 80, 3, 2, 3, 3),
    row(6, 112, 3, 1, 5, 3),
    row(6, 192, 4, 2, 5, 4),
    row(6, 320, 1, 1, 3, 4),
];

const STEM_CHANNELS: usize = 32;
const HEAD_CHANNELS: usize = 1280;

pub(crate) struct EfficientNet {
    stem: ConvNorm,
    /// Our stage of each block, from 1, and the block.
    blocks: Vec<(usize, InvertedResidual)>,
    head: ConvNorm,
}

impl EfficientNet {
    pub fn new(builder: &mut Builder) -> Result<Self> {
        builder.style = Style::TensorFlow;
        builder.part = 0;
        let stem = builder.conv_norm(("_conv_stem", "_bn0"), (1, STEM_CHANNELS), 3, 2)?;
        let mut blocks = Vec::new();
        let mut inputs = STEM_CHANNELS;
        for row in &TABLE {
            builder.part = row.stage;
            for repeat in 0..row.repeats {
                let stride = if repeat == 0 { row.stride } else { 1 };
                let name = format!("_blocks.{}", blocks.len());
                blocks.push((row.stage, InvertedResidual::new(builder, &name, inputs, row, stride)?));
                inputs = row.channels;
            }
        }
        let head = builder.conv_norm(("_conv_head", "_bn1"), (inputs, HEAD_CHANNELS), 1, 1)?;
        builder.style = Style::Torch;
        Ok(Self { stem, blocks, head })
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        let fold = |(stage, block): &(usize, InvertedResidual)| Ok((*stage, block.folded()?));
        Ok(Self {
            stem: self.stem.folded()?,
            blocks: self.blocks.iter().map(fold).collect::<Result<_>>()?,
            head: self.head.folded()?,
        })
    }

    pub fn forward(&self, x: &Activation, pass: Pass) -> Result<Features> {
        let mut x = pass.cut(0, self.stem.forward(x, None, Act::Relu6, pass.trains(0))?);
        let mut stages = Vec::with_capacity(4);
        let next_stages = self.blocks.iter().skip(1).map(|(stage, _)| Some(*stage)).chain([None]);
        for ((stage, block), next) in self.blocks.iter().zip(next_stages) {
            x = block.forward(&x, pass.trains(*stage))?;
            if next != Some(*stage) {
                x = pass.cut(*stage, x);
                stages.push(x.clone());
            }
        }
        Ok(Features { stages, last: self.last(&x, pass)? })
    }

    /// What the final head reads, from the output of the last stage.
    pub fn last(&self, deepest: &Activation, pass: Pass) -> Result<Activation> {
        Ok(pass.cut(4, self.head.forward(deepest, None, Act::Relu6, pass.trains(4))?))
    }
}

/// Widen by 1x1, filter each channel, narrow by 1x1 (Sandler et al., CVPR 2018).
struct InvertedResidual {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    project: ConvNorm,
    skips: bool,
}

impl InvertedResidual {
    fn new(builder: &mut Builder, name: &str, inputs: usize, row: &Row, stride: usize) -> Result<Self> {
        let named = |conv: &str, norm: &str| (format!("{name}.{conv}"), format!("{name}.{norm}"));
        let wide = inputs * row.expand;
        let expand = match row.expand {
            1 => None,
            _ => {
                let (conv, norm) = named("_expand_conv", "_bn0");
                Some(builder.conv_norm((&conv, &norm), (inputs, wide), 1, 1)?)
            }
        };
        let (conv, norm) = named("_depthwise_conv", "_bn1");
        let depthwise = builder.depthwise_norm((&conv, &norm), wide, row.kernel, stride)?;
        let (conv, norm) = named("_project_conv", "_bn2");
        let project = builder.conv_norm((&conv, &norm), (wide, row.channels), 1, 1)?;
        Ok(Self { expand, depthwise, project, skips: stride == 1 && inputs == row.channels })
    }

    fn folded(&self) -> Result<Self> {
        Ok(Self {
            expand: self.expand.as_ref().map(ConvNorm::folded).transpose()?,
            depthwise: self.depthwise.folded()?,
            project: self.project.folded()?,
            skips: self.skips,
        })
    }

    fn forward(&self, x: &Activation, train: bool) -> Result<Activation> {
        let wide = match &self.expand {
            Some(expand) => expand.forward(x, None, Act::Relu6, train)?,
            None => x.clone(),
        };
        let filtered = self.depthwise.forward(&wide, None, Act::Relu6, train)?;
        self.project.forward(&filtered, self.skips.then_some(x), Act::Identity, train)
    }
}
