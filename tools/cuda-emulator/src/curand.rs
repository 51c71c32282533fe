//! `libcurand`: generators that are made, seeded and ended, but make no numbers: candle has one
//! for every device, which our programs never ask.

use std::{
    ffi::{c_int, c_uint, c_ulonglong},
    sync::Mutex,
};

use crate::driver::{Handle, Out, Table, lock};

/// `curandStatus_t`.
type Status = c_int;

const SUCCESS: Status = 0;
const NOT_INITIALIZED: Status = 101;
const ALLOCATION_FAILED: Status = 102;

static GENERATORS: Mutex<Table<()>> = Mutex::new(Table::new(0x2a2d));

#[unsafe(no_mangle)]
pub extern "C" fn curandCreateGenerator(generator: Out<'_, Handle>, _kind: c_uint) -> Status {
    let Some(to) = generator else { return ALLOCATION_FAILED };
    to.write(lock(&GENERATORS).add(()));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn curandDestroyGenerator(generator: Handle) -> Status {
    lock(&GENERATORS).remove(generator).map_or(NOT_INITIALIZED, |()| SUCCESS)
}

#[unsafe(no_mangle)]
pub extern "C" fn curandSetStream(generator: Handle, _stream: Handle) -> Status {
    check(generator)
}

#[unsafe(no_mangle)]
pub extern "C" fn curandSetPseudoRandomGeneratorSeed(generator: Handle, _seed: c_ulonglong) -> Status {
    check(generator)
}

fn check(generator: Handle) -> Status {
    lock(&GENERATORS).get(generator).map_or(NOT_INITIALIZED, |()| SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::made;

    #[test]
    fn a_generator_is_known_until_its_end() {
        let generator = made(|to| curandCreateGenerator(to, 100));
        assert_eq!(curandSetStream(generator, 0), SUCCESS);
        assert_eq!(curandSetPseudoRandomGeneratorSeed(generator, 1), SUCCESS);
        assert_eq!(curandDestroyGenerator(generator), SUCCESS);
        assert_eq!(curandDestroyGenerator(generator), NOT_INITIALIZED);
        assert_eq!(curandSetStream(generator, 0), NOT_INITIALIZED);
        assert_eq!(curandCreateGenerator(None, 100), ALLOCATION_FAILED);
    }
}
