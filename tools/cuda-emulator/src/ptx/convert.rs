//! The instruction `cvt`: from one type of numbers to another.

use super::types::{BFloat16, Number, Type};

/// A conversion.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    from: Type,
    to: Type,
    rounding: Rounding,
    /// To the range from 0 to 1.
    saturates: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// To the nearest number of the other type.
    Nearest,
    /// To integers.
    NearestInteger,
    TowardsZero,
    Down,
    Up,
}

impl Conversion {
    /// By the words behind `cvt.`; `None` for what is not there.
    pub fn named(words: &[&str]) -> Option<Self> {
        let (modifiers, types) = words.split_at_checked(words.len().checked_sub(2)?)?;
        let (to, from) = (Type::named(types[0])?, Type::named(types[1])?);
        let mut conversion = Self { from, to, rounding: Rounding::Nearest, saturates: false };
        let is_float = |type_| !matches!(type_, Type::Bits(_) | Type::Unsigned(_) | Type::Signed(_));
        for &modifier in modifiers {
            match modifier {
                "rn" | "ftz" => {}
                "rni" => conversion.rounding = Rounding::NearestInteger,
                "rzi" => conversion.rounding = Rounding::TowardsZero,
                "rmi" => conversion.rounding = Rounding::Down,
                "rpi" => conversion.rounding = Rounding::Up,
                "sat" if is_float(to) => conversion.saturates = true,
                _ => return None,
            }
        }
        let known = |type_| !matches!(type_, Type::Float16 | Type::Predicate);
        (known(from) && known(to)).then_some(conversion)
    }

    /// Of a register's value; above the bits of the type come those of its sign.
    pub fn apply(self, register: u64) -> u64 {
        self.to.extended(self.converted(register))
    }

    fn converted(self, register: u64) -> u64 {
        let float = match self.from {
            Type::Float32 => f32::of(register).into(),
            Type::Float64 => f64::of(register),
            Type::BFloat16 => BFloat16::of(register).0.into(),
            Type::Signed(_) => return self.integer_to((self.from.extended(register) as i64).into()),
            _ => return self.integer_to((register & self.from.mask()).into()),
        };
        self.float_to(float)
    }

    fn integer_to(self, value: i128) -> u64 {
        match self.to {
            Type::Float32 => (value as f32).register(),
            Type::Float64 => (value as f64).register(),
            Type::BFloat16 => BFloat16(value as f32).register(),
            _ => value as u64 & self.to.mask(),
        }
    }

    fn float_to(self, value: f64) -> u64 {
        let value = match self.rounding {
            Rounding::Nearest => value,
            Rounding::NearestInteger => value.round_ties_even(),
            Rounding::TowardsZero => value.trunc(),
            Rounding::Down => value.floor(),
            Rounding::Up => value.ceil(),
        };
        let value = match self.saturates {
            true if value.is_nan() => 0.0,
            true => value.clamp(0.0, 1.0),
            false => value,
        };
        let to_integer = matches!(self.to, Type::Bits(_) | Type::Unsigned(_) | Type::Signed(_));
        if to_integer && value.is_nan() && (self.from == Type::Float64 || self.to.bits() == 64) {
            return 1 << (self.to.bits() - 1);
        }
        // Rust's casts to integers end at their bounds and take any other NaN for 0, as PTX does.
        match self.to {
            Type::Float32 => (value as f32).register(),
            Type::Float64 => value.register(),
            Type::BFloat16 => BFloat16(value as f32).register(),
            Type::Signed(8) => (value as i8).register(),
            Type::Signed(16) => (value as i16).register(),
            Type::Signed(32) => (value as i32).register(),
            Type::Signed(_) => (value as i64).register(),
            Type::Unsigned(8) => (value as u8).register(),
            Type::Unsigned(16) => (value as u16).register(),
            Type::Unsigned(32) => (value as u32).register(),
            _ => (value as u64).register(),
        }
    }
}
