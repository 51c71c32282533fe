//! One image as planes of channel blocks, and the zeros around it.

use crate::{activation::Dims, element::Element};

/// One image of channel blocks.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub n_blocks: usize,
    pub channels: usize,
    pub h: usize,
    pub w: usize,
}

impl Blocks {
    pub(super) fn new(dims: Dims, channels: usize) -> Self {
        Self { n_blocks: dims.c / channels, channels, h: dims.h, w: dims.w }
    }

    pub(super) fn block_len(self) -> usize {
        self.h * self.w * self.channels
    }

    pub(super) fn len(self) -> usize {
        self.n_blocks * self.block_len()
    }
}

/// Zero pixels around an image.
#[derive(Clone, Copy)]
pub(super) struct Padding {
    pub top: usize,
    pub left: usize,
    pub bottom: usize,
    pub right: usize,
}

impl Padding {
    /// For tiles of `tile` pixels whose inner `step` cover `target`, `padding` zeros before `source`;
    /// with the numbers of tiles down and across. Tiles are whole: the source may end before the
    /// last of them.
    pub(super) fn of_tiles(
        (step, tile): (usize, usize),
        source: Blocks,
        target: Blocks,
        padding: usize,
    ) -> (Self, usize, usize) {
        let (tiles_y, tiles_x) = (target.h.div_ceil(step), target.w.div_ceil(step));
        let behind = |tiles: usize, extent: usize| tiles * step + tile - step - padding - extent;
        let (bottom, right) = (behind(tiles_y, source.h), behind(tiles_x, source.w));
        (Self { top: padding, left: padding, bottom, right }, tiles_y, tiles_x)
    }

    /// Whether there is any.
    pub(super) fn any(self) -> bool {
        self.top + self.left + self.bottom + self.right > 0
    }

    /// The image with its padding.
    pub(super) fn around(self, image: Blocks) -> Blocks {
        Blocks { h: image.h + self.top + self.bottom, w: image.w + self.left + self.right, ..image }
    }

    /// Copies one image, `inner`, into the middle of zeros.
    pub(super) fn pad<T: Element>(self, inner: Blocks, image: &[T], padded: &mut [T]) {
        let row_len = inner.w * inner.channels;
        let left = self.left * inner.channels;
        let outer = self.around(inner);
        for (outer_block, block) in
            padded.chunks_exact_mut(outer.block_len()).zip(image.chunks_exact(inner.block_len()))
        {
            let outer_rows = outer_block.chunks_exact_mut(outer.w * outer.channels);
            for (y, outer_row) in outer_rows.enumerate() {
                let row = y.checked_sub(self.top).filter(|y| *y < inner.h);
                let Some(row) = row.map(|y| &block[y * row_len..][..row_len]) else {
                    outer_row.fill(T::ZERO);
                    continue;
                };
                outer_row[..left].fill(T::ZERO);
                outer_row[left..left + row_len].copy_from_slice(row);
                outer_row[left + row_len..].fill(T::ZERO);
            }
        }
    }
}
