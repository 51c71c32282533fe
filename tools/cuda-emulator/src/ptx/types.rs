//! The types of PTX, and how their values lie in a register of 64 bits.

/// A fundamental type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Predicate,
    Bits(u32),
    Unsigned(u32),
    Signed(u32),
    Float16,
    BFloat16,
    Float32,
    Float64,
}

impl Type {
    /// By what stands behind the dot in PTX.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Predicate,
            "f16" => Self::Float16,
            "bf16" => Self::BFloat16,
            "f32" => Self::Float32,
            "f64" => Self::Float64,
            _ => {
                let (kind, bits) = name.split_at_checked(1)?;
                let bits = bits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits))?;
                match kind {
                    "b" => Self::Bits(bits),
                    "u" => Self::Unsigned(bits),
                    "s" => Self::Signed(bits),
                    _ => return None,
                }
            }
        })
    }

    /// Width in bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::Predicate => 1,
            Self::Bits(bits) | Self::Unsigned(bits) | Self::Signed(bits) => bits,
            Self::Float16 | Self::BFloat16 => 16,
            Self::Float32 => 32,
            Self::Float64 => 64,
        }
    }

    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// The bits that a value of this type has.
    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The bits of a value, with those of its sign above it.
    pub fn extended(self, bits: u64) -> u64 {
        let unused = 64 - self.bits();
        match self {
            Self::Signed(_) => ((bits << unused) as i64 >> unused) as u64,
            _ => bits,
        }
    }
}

/// A type of numbers: a register holds its bits, zeros above them.
pub trait Number: Copy {
    fn of(register: u64) -> Self;
    fn register(self) -> u64;
}

macro_rules! integers {
    ($($type:ty as $unsigned:ty),*) => {
        $(impl Number for $type {
            fn of(register: u64) -> Self {
                register as $type
            }
            fn register(self) -> u64 {
                self as $unsigned as u64
            }
        })*
    };
}
integers!(u8 as u8, u16 as u16, u32 as u32, u64 as u64, i8 as u8, i16 as u16, i32 as u32, i64 as u64);

impl Number for f32 {
    fn of(register: u64) -> Self {
        Self::from_bits(register as u32)
    }
    fn register(self) -> u64 {
        self.to_bits().into()
    }
}

impl Number for f64 {
    fn of(register: u64) -> Self {
        Self::from_bits(register)
    }
    fn register(self) -> u64 {
        self.to_bits()
    }
}

/// A number of the type bf16, as f32 says it.
#[derive(Clone, Copy)]
pub struct BFloat16(pub f32);

impl Number for BFloat16 {
    fn of(register: u64) -> Self {
        Self(f32::from_bits((register as u32) << 16))
    }
    /// To the nearest, of two as near the even one.
    fn register(self) -> u64 {
        let bits = self.0.to_bits();
        if self.0.is_nan() {
            return 0x7fff;
        }
        ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).into()
    }
}
