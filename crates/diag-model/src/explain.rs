//! Where the network looked: maps of the evidence for one class.
//!
//! In: images and a class each. Out: a [`Map`] per head over the whole picture.
//! [`cams`] follows gradients to the outputs of the stages, [`occlusion`] changes
//! the picture and looks at the answer, so that each checks the other.
//!
//! What a map is not: a segmentation, a proof, or a statement about the disease.
//! Grad-CAM shows which features raised the class, at the resolution of the stage
//! that the head reads.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::Activation;

use crate::{Network, softmax};

/// A picture of evidence, row-major, over the whole image.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height * width` values; what they mean stands where the map is made.
    pub values: Vec<f64>,
}

impl Map {
    /// A map of zeros.
    pub fn zeros(height: usize, width: usize) -> Self {
        Self { height, width, values: vec![0.0; height * width] }
    }

    /// The map on a finer or coarser grid, bilinear between the centres of its
    /// cells, constant beyond the outermost ones. Values are densities: they keep their height.
    pub fn resized(&self, height: usize, width: usize) -> Self {
        if (self.height, self.width) == (height, width) || self.values.is_empty() {
            return self.clone();
        }
        // Position of a target cell's centre among the source's centres.
        let place = |i: usize, to: usize, from: usize| {
            let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, from as f64 - 1.0);
            let below = at.floor() as usize;
            (below, (below + 1).min(from - 1), at - below as f64)
        };
        let mut values = Vec::with_capacity(height * width);
        for row in 0..height {
            let (top, bottom, down) = place(row, height, self.height);
            for col in 0..width {
                let (left, right, along) = place(col, width, self.width);
                let at = |row: usize, col: usize| self.values[row * self.width + col];
                let upper = at(top, left) * (1.0 - along) + at(top, right) * along;
                let lower = at(bottom, left) * (1.0 - along) + at(bottom, right) * along;
                values.push(upper * (1.0 - down) + lower * down);
            }
        }
        Self { height, width, values }
    }

    fn add(&mut self, other: &Self) {
        let other = other.resized(self.height, self.width);
        self.values.iter_mut().zip(other.values).for_each(|(sum, value)| *sum += value);
    }

    fn rectified(mut self) -> Self {
        self.values.iter_mut().for_each(|value| *value = value.max(0.0));
        self
    }
}

/// The gradient maps of one head for one image.
#[derive(Clone, Debug)]
pub struct HeadCams {
    /// Name of the head.
    pub head: String,
    /// Probability of the class by this head.
    pub probability: f32,
    /// Grad-CAM, at least 0.
    pub grad_cam: Map,
    /// Grad-CAM++, at least 0.
    pub grad_cam_plus_plus: Map,
}

/// Grad-CAM (Selvaraju et al., ICCV 2017) and Grad-CAM++ (Chattopadhay et al.,
/// WACV 2018) of every head.
///
/// The layer looked at is the output of the stage that the head reads. The final
/// head reads several stages through the fusion: their maps are added before
/// the rectification, each scaled to logits per share of the picture, on the grid
/// of the finest. The running statistics are used and not moved.
///
/// # Shapes
/// - `image_nchw`: as [`Network::forward_t`]
/// - `class_n`: the class explained of each image
/// - result: `[N][heads]`, heads shallowest first
///
/// # Errors
/// Another shape, a class that the network does not have.
pub fn cams(network: &Network, image_nchw: &Tensor, class_n: &[usize]) -> Result<Vec<Vec<HeadCams>>> {
    let n_classes = network.spec().n_classes;
    let n_images = image_nchw.dims().first().copied().unwrap_or_default();
    if class_n.len() != n_images || class_n.iter().any(|&class| class >= n_classes) {
        candle_core::bail!("{n_images} images of {n_classes} classes cannot be explained for {class_n:?}");
    }
    // Cut off below: a gradient never needs to go deeper than the stages' outputs.
    let (mut leaves, mut stages) = (Vec::new(), Vec::new());
    for stage in network.stages(image_nchw)? {
        let leaf = Var::from_tensor(&stage.detach().to_nchw()?.detach())?;
        stages.push(Activation::from_nchw(leaf.as_tensor())?);
        leaves.push(leaf);
    }
    let logits = network.heads_of(&stages)?;
    let wanted = one_hot(class_n, n_classes, image_nchw.dtype())?;
    let mut of_image: Vec<Vec<HeadCams>> = vec![Vec::new(); n_images];
    for (head, logits_nk) in logits.iter() {
        let gradients = (logits_nk * &wanted)?.sum_all()?.backward()?;
        let mut read = Vec::new();
        for leaf in &leaves {
            if let Some(gradient) = gradients.get(leaf) {
                read.push((Planes::of(leaf.as_tensor())?, Planes::of(gradient)?));
            }
        }
        let rows = logits_nk.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for (n, of_image) in of_image.iter_mut().enumerate() {
            of_image.push(HeadCams {
                head: head.to_owned(),
                probability: softmax(&rows[n])[class_n[n]],
                grad_cam: added(&read, |activation, gradient| grad_cam(activation, gradient, n)),
                grad_cam_plus_plus: added(&read, |activation, gradient| {
                    grad_cam_plus_plus(activation, gradient, n)
                }),
            });
        }
    }
    Ok(of_image)
}

/// How to hide parts of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OcclusionSpec {
    /// Side of the window that is replaced, in pixels.
    pub window_px: usize,
    /// Distance between windows, in pixels, at least 1.
    pub stride_px: usize,
    /// What is put there, as the network sees it, in [-1, 1].
    pub fill: f32,
    /// Pictures of one pass.
    pub batch_size: usize,
}

/// What it costs the class, in probability by the final head, when a window of
/// the picture is replaced (Zeiler and Fergus, ECCV 2014). Positive: the class
/// loses; negative: it gains. One cell a window, whose centre is the cell's.
///
/// # Shapes
/// - `image`: `height * width` values in [-1, 1], row-major
/// - result: `height / stride` rows and `width / stride` columns, rounded up
///
/// # Errors
/// An image of another size, a class that the network does not have, a stride of 0.
pub fn occlusion(
    network: &Network,
    image: &[f32],
    (height, width): (usize, usize),
    spec: &OcclusionSpec,
    class: usize,
) -> Result<Map> {
    if image.len() != height * width || class >= network.spec().n_classes || spec.stride_px == 0 {
        candle_core::bail!("{} values of {height}x{width} cannot be occluded for class {class}", image.len());
    }
    let (rows, cols) = (height.div_ceil(spec.stride_px), width.div_ceil(spec.stride_px));
    // The window around the centre of a cell, cut at the border.
    let span = |cell: usize, end: usize| {
        let centre = cell * spec.stride_px + spec.stride_px / 2;
        let start = centre.saturating_sub(spec.window_px / 2);
        (start.min(end), (centre + spec.window_px.div_ceil(2)).min(end))
    };
    let cells: Vec<(usize, usize)> = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).collect();
    let whole = probabilities(network, image.to_vec(), (height, width), class)?[0];
    let mut values = Vec::with_capacity(cells.len());
    for batch in cells.chunks(spec.batch_size.max(1)) {
        let mut pictures = Vec::with_capacity(batch.len() * image.len());
        for &(row, col) in batch {
            let start = pictures.len();
            pictures.extend_from_slice(image);
            let ((top, bottom), (left, right)) = (span(row, height), span(col, width));
            for y in top..bottom {
                pictures[start + y * width + left..start + y * width + right].fill(spec.fill);
            }
        }
        let hidden = probabilities(network, pictures, (height, width), class)?;
        values.extend(hidden.into_iter().map(|p| f64::from(whole - p)));
    }
    Ok(Map { height: rows, width: cols, values })
}

/// Probability of a class by the final head.
fn probabilities(
    network: &Network,
    images: Vec<f32>,
    (height, width): (usize, usize),
    class: usize,
) -> Result<Vec<f32>> {
    let image_nchw = crate::input::from_scaled(images, height, width)?;
    let logits = network.forward_t(&image_nchw, false)?;
    let Some(logits_nk) = logits.get(crate::FINAL_HEAD) else {
        candle_core::bail!("the network has no final head");
    };
    Ok(logits_nk.detach().to_vec2::<f32>()?.iter().map(|row| softmax(row)[class]).collect())
}

/// A batch of feature maps as plain numbers.
struct Planes {
    values: Vec<f64>,
    n_channels: usize,
    height: usize,
    width: usize,
}

impl Planes {
    fn of(tensor_nchw: &Tensor) -> Result<Self> {
        let (_, n_channels, height, width) = tensor_nchw.dims4()?;
        let values = tensor_nchw.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        Ok(Self { values, n_channels, height, width })
    }

    fn channel(&self, n: usize, channel: usize) -> &[f64] {
        let size = self.height * self.width;
        &self.values[(n * self.n_channels + channel) * size..][..size]
    }
}

/// The maps of every stage that a head reads, on the finest grid, rectified.
fn added(read: &[(Planes, Planes)], of_stage: impl Fn(&Planes, &Planes) -> Map) -> Map {
    let Some(finest) = read.iter().map(|(stage, _)| stage).max_by_key(|stage| stage.height * stage.width)
    else {
        return Map::zeros(1, 1);
    };
    let mut sum = Map::zeros(finest.height, finest.width);
    for (activation, gradient) in read {
        sum.add(&of_stage(activation, gradient));
    }
    sum.rectified()
}

/// Sum of the channels, each weighted by its mean gradient. The number of cells
/// makes it logits per share of the picture, which is comparable between stages.
fn grad_cam(activation: &Planes, gradient: &Planes, n: usize) -> Map {
    let weight = |channel: usize| gradient.channel(n, channel).iter().sum::<f64>();
    weighted(activation, n, weight)
}

/// As Grad-CAM, with weights that favour pixels where the gradient is positive
/// (equation 19 of the paper, for the exponential of the logit).
fn grad_cam_plus_plus(activation: &Planes, gradient: &Planes, n: usize) -> Map {
    let weight = |channel: usize| {
        let sum: f64 = activation.channel(n, channel).iter().sum();
        let of_pixel = |&g: &f64| {
            let bottom = 2.0 * g * g + sum * g * g * g;
            if bottom == 0.0 { 0.0 } else { g * g / bottom * g.max(0.0) }
        };
        gradient.channel(n, channel).iter().map(of_pixel).sum()
    };
    weighted(activation, n, weight)
}

fn weighted(activation: &Planes, n: usize, weight: impl Fn(usize) -> f64) -> Map {
    let mut map = Map::zeros(activation.height, activation.width);
    for channel in 0..activation.n_channels {
        let weight = weight(channel);
        let plane = activation.channel(n, channel);
        map.values.iter_mut().zip(plane).for_each(|(sum, value)| *sum += weight * value);
    }
    map
}

fn one_hot(class_n: &[usize], n_classes: usize, dtype: DType) -> Result<Tensor> {
    let mut values = vec![0f64; class_n.len() * n_classes];
    for (n, class) in class_n.iter().enumerate() {
        values[n * n_classes + class] = 1.0;
    }
    Tensor::from_vec(values, (class_n.len(), n_classes), &Device::Cpu)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_resized(values: &[f64], want: &[f64]) {
        let map = Map { height: 1, width: values.len(), values: values.to_vec() };
        assert_eq!(map.resized(1, want.len()).values, want);
    }

    #[test]
    fn between_centres_is_linear_and_beyond_them_constant() {
        check_resized(&[0.0, 4.0], &[0.0, 1.0, 3.0, 4.0]);
        check_resized(&[0.0, 1.0, 3.0, 4.0], &[0.5, 3.5]);
        check_resized(&[2.0], &[2.0, 2.0, 2.0]);
    }

    #[test]
    fn equal_gradients_weigh_as_in_the_paper() {
        // g = 0.5 everywhere, sum of the activation 6: alpha = 1 / (2 + 0.5 * 6) = 0.2.
        let planes = |values: &[f64]| Planes { values: values.to_vec(), n_channels: 1, height: 1, width: 3 };
        let (activation, gradient) = (planes(&[1.0, 2.0, 3.0]), planes(&[0.5; 3]));
        let near = |map: Map, want: [f64; 3]| map.values.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(grad_cam_plus_plus(&activation, &gradient, 0), [0.3, 0.6, 0.9]));
        assert!(near(grad_cam(&activation, &gradient, 0), [1.5, 3.0, 4.5]));
    }
}
