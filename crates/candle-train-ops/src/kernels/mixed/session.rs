//! The processor's means to multiply bf16: which there are, and the tile registers of AMX.

use std::{arch::asm, sync::OnceLock};

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// AMX-BF16: 16 x 16 sums of 32 products an instruction.
    Tiles,
    /// AVX512-BF16: 16 sums of two products an instruction.
    Dots,
}

/// The fastest engine of this processor, found once.
pub(crate) fn engine() -> Option<Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    *ENGINE.get_or_init(|| engines().last().copied())
}

/// All engines of this processor, the fastest last.
pub(crate) fn engines() -> Vec<Engine> {
    if !(is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16"))
    {
        return vec![];
    }
    if permit_tiles() { vec![Engine::Dots, Engine::Tiles] } else { vec![Engine::Dots] }
}

/// Asks Linux for the tile registers, which a process gets only on demand.
#[cfg(all(target_os = "linux", not(miri)))]
fn permit_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    if features & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE {
        return false;
    }
    let refused: i64;
    // SAFETY: the system call touches no memory of ours; the registers that the
    // kernel changes are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => refused,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    refused == 0
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn permit_tiles() -> bool {
    false
}

/// The tile registers of the calling thread, in use until dropped.
pub(crate) struct Session {
    pub(super) engine: Engine,
}

/// Shapes of the eight tile registers, in the processor's format.
#[repr(C, align(64))]
struct TileShapes([u8; 64]);

impl Session {
    pub(crate) fn start(engine: Engine) -> Self {
        if engine == Engine::Tiles {
            let mut shapes = TileShapes([0; 64]);
            shapes.0[0] = 1;
            for tile in 0..8 {
                shapes.0[16 + 2 * tile] = 64;
                shapes.0[48 + tile] = 16;
            }
            // SAFETY: the permission was given (`engines`), and the 64 bytes are a
            // valid description of eight tiles of 16 rows of 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack)) };
        }
        Self { engine }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.engine == Engine::Tiles {
            // SAFETY: gives the registers back; `start` took them.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Loads tile register `N`: 16 rows of 64 bytes, `stride` bytes apart.
#[inline(always)]
pub(super) unsafe fn load_tile<const N: usize>(from: *const u16, stride: usize) {
    macro_rules! load {
        ($tile:literal) => {
            // SAFETY: the caller's rows are readable and its session is open.
            unsafe {
                asm!(
                    concat!("tileloadd ", $tile, ", [{from} + {stride}*1]"),
                    from = in(reg) from,
                    stride = in(reg) stride,
                    options(nostack, readonly)
                )
            }
        };
    }
    match N {
        0 => load!("tmm0"),
        1 => load!("tmm1"),
        2 => load!("tmm2"),
        3 => load!("tmm3"),
        4 => load!("tmm4"),
        5 => load!("tmm5"),
        6 => load!("tmm6"),
        _ => load!("tmm7"),
    }
}

/// Stores tile register `N`, 0 to 3: 16 rows of 16 f32, one after the other.
#[inline(always)]
pub(super) unsafe fn store_tile<const N: usize>(to: *mut f32) {
    macro_rules! store {
        ($tile:literal) => {
            // SAFETY: the caller's 256 numbers are writable and its session is open.
            unsafe {
                asm!(
                    concat!("tilestored [{to} + {stride}*1], ", $tile),
                    to = in(reg) to,
                    stride = in(reg) 64usize,
                    options(nostack)
                )
            }
        };
    }
    match N {
        0 => store!("tmm0"),
        1 => store!("tmm1"),
        2 => store!("tmm2"),
        _ => store!("tmm3"),
    }
}
