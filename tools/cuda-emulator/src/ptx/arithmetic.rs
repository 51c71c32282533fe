//! What the arithmetic instructions compute: functions of registers, by instruction and type.

use super::types::{Number, Type};

pub type Unary = fn(u64) -> u64;
pub type Binary = fn(u64, u64) -> u64;
pub type Ternary = fn(u64, u64, u64) -> u64;
pub type Test = fn(u64, u64) -> bool;

/// Integers, which wrap around.
trait Integer: Number + Ord {
    const BITS: u32;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn low_product(self, other: Self) -> Self;
    fn high_product(self, other: Self) -> Self;
    /// In twice the bits.
    fn wide_product(self, other: Self) -> u64;
    /// All bits set where the divisor is 0, for which PTX names no result.
    fn quotient(self, other: Self) -> Self;
    fn remainder(self, other: Self) -> Self;
    fn negative(self) -> Self;
    fn magnitude(self) -> Self;
    /// By any number of bits; a signed one fills up with its sign.
    fn shifted_right(self, by: u32) -> Self;
}

macro_rules! integers {
    ($($type:ty, $wide:ty, $wide_bits:ty;)*) => {
        $(impl Integer for $type {
            const BITS: u32 = Self::BITS;
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn subtract(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            fn low_product(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn high_product(self, other: Self) -> Self {
                ((self as i128).wrapping_mul(other as i128) >> Self::BITS) as Self
            }
            fn wide_product(self, other: Self) -> u64 {
                (self as $wide).wrapping_mul(other as $wide) as $wide_bits as u64
            }
            fn quotient(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            fn remainder(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_rem(other) }
            }
            fn negative(self) -> Self {
                self.wrapping_neg()
            }
            fn magnitude(self) -> Self {
                if (self as i128) < 0 { self.wrapping_neg() } else { self }
            }
            fn shifted_right(self, by: u32) -> Self {
                match self.checked_shr(by) {
                    Some(shifted) => shifted,
                    None if (self as i128) < 0 => !0,
                    None => 0,
                }
            }
        })*
    };
}
integers! {
    u16, u32, u32;
    u32, u64, u64;
    u64, u64, u64;
    i16, i32, u32;
    i32, i64, u64;
    i64, i64, u64;
}

/// Floating point numbers.
trait Float: Number + PartialOrd {
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn product(self, other: Self) -> Self;
    fn quotient(self, other: Self) -> Self;
    fn fused(self, factor: Self, more: Self) -> Self;
    /// The other one where one is a NaN.
    fn smaller(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    fn negative(self) -> Self;
    fn magnitude(self) -> Self;
    fn root(self) -> Self;
    fn inverse(self) -> Self;
    fn with_sign_of(self, other: Self) -> Self;
    fn not_a_number(self) -> bool;
}

macro_rules! floats {
    ($($type:ty),*) => {
        $(impl Float for $type {
            fn add(self, other: Self) -> Self {
                self + other
            }
            fn subtract(self, other: Self) -> Self {
                self - other
            }
            fn product(self, other: Self) -> Self {
                self * other
            }
            fn quotient(self, other: Self) -> Self {
                self / other
            }
            fn fused(self, factor: Self, more: Self) -> Self {
                self.mul_add(factor, more)
            }
            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn negative(self) -> Self {
                -self
            }
            fn magnitude(self) -> Self {
                self.abs()
            }
            fn root(self) -> Self {
                self.sqrt()
            }
            fn inverse(self) -> Self {
                1.0 / self
            }
            fn with_sign_of(self, other: Self) -> Self {
                self.copysign(other)
            }
            fn not_a_number(self) -> bool {
                self.is_nan()
            }
        })*
    };
}
floats!(f32, f64);

/// Calls a generic function for the integer type of a PTX type.
macro_rules! for_integer {
    ($type:expr, $function:ident($($argument:expr),*)) => {
        match $type {
            Type::Unsigned(16) | Type::Bits(16) => $function::<u16>($($argument),*),
            Type::Unsigned(32) | Type::Bits(32) => $function::<u32>($($argument),*),
            Type::Unsigned(64) | Type::Bits(64) => $function::<u64>($($argument),*),
            Type::Signed(16) => $function::<i16>($($argument),*),
            Type::Signed(32) => $function::<i32>($($argument),*),
            Type::Signed(64) => $function::<i64>($($argument),*),
            _ => None,
        }
    };
}

/// Instructions of one argument: `neg`, `abs`, `not`, `sqrt` and so on.
pub fn unary(name: &str, type_: Type) -> Option<Unary> {
    fn integer<T: Integer>(name: &str) -> Option<Unary> {
        Some(match name {
            "neg" => |a| T::of(a).negative().register(),
            "abs" => |a| T::of(a).magnitude().register(),
            "clz" => |a| (T::of(a).register().leading_zeros() + T::BITS - 64).into(),
            "popc" => |a| T::of(a).register().count_ones().into(),
            _ => return None,
        })
    }
    fn float<T: Float>(name: &str) -> Option<Unary> {
        Some(match name {
            "neg" => |a| T::of(a).negative().register(),
            "abs" => |a| T::of(a).magnitude().register(),
            "sqrt" => |a| T::of(a).root().register(),
            "rcp" => |a| T::of(a).inverse().register(),
            "rsqrt" => |a| T::of(a).root().inverse().register(),
            _ => return None,
        })
    }
    match (name, type_) {
        // A mask follows: what is above the type's bits does not count.
        ("not", _) => Some(|a| !a),
        ("ex2", Type::Float32) => Some(|a| f32::of(a).exp2().register()),
        ("lg2", Type::Float32) => Some(|a| f32::of(a).log2().register()),
        ("sin", Type::Float32) => Some(|a| f32::of(a).sin().register()),
        ("cos", Type::Float32) => Some(|a| f32::of(a).cos().register()),
        ("tanh", Type::Float32) => Some(|a| f32::of(a).tanh().register()),
        (_, Type::Float32) => float::<f32>(name),
        (_, Type::Float64) => float::<f64>(name),
        _ => for_integer!(type_, integer(name)),
    }
}

/// Instructions of two arguments: `add`, `mul.wide`, `shl` and so on.
pub fn binary(name: &str, type_: Type) -> Option<Binary> {
    fn integer<T: Integer>(name: &str) -> Option<Binary> {
        Some(match name {
            "add" => |a, b| T::of(a).add(T::of(b)).register(),
            "sub" => |a, b| T::of(a).subtract(T::of(b)).register(),
            "mul.lo" => |a, b| T::of(a).low_product(T::of(b)).register(),
            "mul.hi" => |a, b| T::of(a).high_product(T::of(b)).register(),
            "mul.wide" => |a, b| T::of(a).wide_product(T::of(b)),
            "div" => |a, b| T::of(a).quotient(T::of(b)).register(),
            "rem" => |a, b| T::of(a).remainder(T::of(b)).register(),
            "min" => |a, b| T::of(a).min(T::of(b)).register(),
            "max" => |a, b| T::of(a).max(T::of(b)).register(),
            "shr" => |a, b| T::of(a).shifted_right(b as u32).register(),
            "shl" => |a, b| a.checked_shl(b as u32).filter(|_| (b as u32) < T::BITS).unwrap_or(0),
            _ => return None,
        })
    }
    fn float<T: Float>(name: &str) -> Option<Binary> {
        Some(match name {
            "add" => |a, b| T::of(a).add(T::of(b)).register(),
            "sub" => |a, b| T::of(a).subtract(T::of(b)).register(),
            "mul" => |a, b| T::of(a).product(T::of(b)).register(),
            "div" => |a, b| T::of(a).quotient(T::of(b)).register(),
            "min" => |a, b| T::of(a).smaller(T::of(b)).register(),
            "max" => |a, b| T::of(a).larger(T::of(b)).register(),
            // PTX names the sign first.
            "copysign" => |a, b| T::of(b).with_sign_of(T::of(a)).register(),
            _ => return None,
        })
    }
    match (name, type_) {
        ("and", _) => Some(|a, b| a & b),
        ("or", _) => Some(|a, b| a | b),
        ("xor", _) => Some(|a, b| a ^ b),
        (_, Type::Float32) => float::<f32>(name),
        (_, Type::Float64) => float::<f64>(name),
        _ => for_integer!(type_, integer(name)),
    }
}

/// Instructions of three arguments: `fma`, `mad.lo`, `prmt` and so on.
pub fn ternary(name: &str, type_: Type) -> Option<Ternary> {
    fn integer<T: Integer>(name: &str) -> Option<Ternary> {
        Some(match name {
            "mad.lo" => |a, b, c| T::of(a).low_product(T::of(b)).add(T::of(c)).register(),
            "mad.hi" => |a, b, c| T::of(a).high_product(T::of(b)).add(T::of(c)).register(),
            "mad.wide" => |a, b, c| T::of(a).wide_product(T::of(b)).wrapping_add(c),
            _ => return None,
        })
    }
    match (name, type_) {
        ("fma", Type::Float32) => Some(|a, b, c| f32::of(a).fused(f32::of(b), f32::of(c)).register()),
        ("fma.rm", Type::Float32) => Some(|a, b, c| {
            let [a, b, c] = [a, b, c].map(|register| f64::from(f32::of(register)));
            // The product is exact in f64, the sum is not: its error decides where f32 ends.
            let (product, sum) = (a * b, a * b + c);
            let of_c = sum - product;
            let error = (product - (sum - of_c)) + (c - of_c);
            rounded_down(sum, error).register()
        }),
        ("fma", Type::Float64) => Some(|a, b, c| f64::of(a).fused(f64::of(b), f64::of(c)).register()),
        ("prmt", Type::Bits(32)) => Some(permuted),
        _ => for_integer!(type_, integer(name)),
    }
}

/// The largest f32 that is not above `value + error`, the error being far smaller.
fn rounded_down(value: f64, error: f64) -> f32 {
    let nearest = value as f32;
    let apart = f64::from(nearest) - value;
    if apart > 0.0 || apart == 0.0 && error < 0.0 { nearest.next_down() } else { nearest }
}

/// Four bytes chosen out of eight; a choice above 7 spreads the byte's sign.
fn permuted(a: u64, b: u64, choices: u64) -> u64 {
    let bytes = ((b & 0xffff_ffff) << 32 | a & 0xffff_ffff).to_le_bytes();
    (0..4).fold(0, |result, place| {
        let choice = choices >> (4 * place) & 0xf;
        let byte = bytes[(choice & 7) as usize];
        let byte = match choice & 8 {
            0 => byte,
            _ => (byte as i8 >> 7) as u8,
        };
        result | u64::from(byte) << (8 * place)
    })
}

/// Comparisons, by the word in `setp` and `set`.
pub fn test(name: &str, type_: Type) -> Option<Test> {
    fn integer<T: Integer>(name: &str) -> Option<Test> {
        Some(match name {
            "eq" => |a, b| T::of(a) == T::of(b),
            "ne" => |a, b| T::of(a) != T::of(b),
            "lt" | "lo" => |a, b| T::of(a) < T::of(b),
            "le" | "ls" => |a, b| T::of(a) <= T::of(b),
            "gt" | "hi" => |a, b| T::of(a) > T::of(b),
            "ge" | "hs" => |a, b| T::of(a) >= T::of(b),
            _ => return None,
        })
    }
    /// A comparison that ends in `u` holds for NaNs too.
    fn float<T: Float>(name: &str) -> Option<Test> {
        fn unordered<T: Float>(a: u64, b: u64) -> bool {
            T::of(a).not_a_number() || T::of(b).not_a_number()
        }
        Some(match name {
            "eq" => |a, b| T::of(a) == T::of(b),
            "ne" => |a, b| !unordered::<T>(a, b) && T::of(a) != T::of(b),
            "lt" => |a, b| T::of(a) < T::of(b),
            "le" => |a, b| T::of(a) <= T::of(b),
            "gt" => |a, b| T::of(a) > T::of(b),
            "ge" => |a, b| T::of(a) >= T::of(b),
            "equ" => |a, b| unordered::<T>(a, b) || T::of(a) == T::of(b),
            "neu" => |a, b| T::of(a) != T::of(b),
            "ltu" => |a, b| unordered::<T>(a, b) || T::of(a) < T::of(b),
            "leu" => |a, b| unordered::<T>(a, b) || T::of(a) <= T::of(b),
            "gtu" => |a, b| unordered::<T>(a, b) || T::of(a) > T::of(b),
            "geu" => |a, b| unordered::<T>(a, b) || T::of(a) >= T::of(b),
            "num" => |a, b| !unordered::<T>(a, b),
            "nan" => |a, b| unordered::<T>(a, b),
            _ => return None,
        })
    }
    match type_ {
        Type::Float32 => float::<f32>(name),
        Type::Float64 => float::<f64>(name),
        _ => for_integer!(type_, integer(name)),
    }
}
