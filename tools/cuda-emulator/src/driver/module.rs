//! Modules, functions and launches.

use std::{
    ffi::{CStr, c_char, c_uint, c_void},
    sync::{Arc, Mutex},
};

use super::{Answer, Handle, Out, Refusal, Status, Table, complain, lock, on_gpu, put, queue};
use crate::{
    gpu::Gpu,
    interpreter::Launch,
    ptx::{Function, Module},
};

/// Limits of a launch, which every GPU has.
const MOST_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
const MOST_BLOCK: [u32; 3] = [1024, 1024, 64];
const MOST_THREADS: u32 = 1024;
/// Shared memory of a block in bytes, unless its function asks for more, which none can here.
const MOST_SHARED: usize = 48 << 10;

static MODULES: Mutex<Table<Module>> = Mutex::new(Table::new(0x30d));
static FUNCTIONS: Mutex<Table<Known>> = Mutex::new(Table::new(0xf0c));

/// A function that was asked for.
struct Known {
    function: Arc<Function>,
    module: Handle,
}

/// # Safety
/// `text` ends with a null, or is null.
unsafe fn text<'a>(text: *const c_char) -> Answer<&'a str> {
    if text.is_null() {
        return Err(Refusal::INVALID_VALUE);
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| {
        complain("no text in UTF-8, as PTX and names have to be here");
        Refusal::INVALID_VALUE
    })
}

/// # Safety
/// `image` is a text that ends with a null, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: Out<'_, Handle>, image: *const c_char) -> Status {
    on_gpu(|_| {
        // SAFETY: as the caller says.
        let loaded = Module::load(unsafe { text(image)? }).map_err(|words| {
            complain(words);
            Refusal::INVALID_PTX
        })?;
        put(module, lock(&MODULES).add(loaded))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> Status {
    on_gpu(|_| {
        lock(&MODULES).remove(module).ok_or(Refusal::INVALID_HANDLE)?;
        lock(&FUNCTIONS).retain(|known| known.module != module);
        Ok(())
    })
}

/// # Safety
/// `name` ends with a null, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: Out<'_, Handle>,
    module: Handle,
    name: *const c_char,
) -> Status {
    on_gpu(|_| {
        // SAFETY: as the caller says.
        let name = unsafe { text(name)? };
        let modules = lock(&MODULES);
        let loaded = modules.get(module).ok_or(Refusal::INVALID_HANDLE)?;
        let read = loaded.function(name).ok_or(Refusal::NOT_FOUND)?.map_err(|words| {
            complain(format_args!("{name}: {words}"));
            Refusal::NOT_SUPPORTED
        })?;
        let mut functions = lock(&FUNCTIONS);
        let known = functions.find(|known| Arc::ptr_eq(&known.function, &read));
        put(function, known.unwrap_or_else(|| functions.add(Known { function: read, module })))
    })
}

/// # Safety
/// `parameters` points to as many addresses as the function has parameters, each of a value of
/// its parameter's size; or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> Status {
    on_gpu(|gpu| {
        let function = known(function)?;
        if !extra.is_null() {
            complain("cuLaunchKernel: parameters in one block are not here");
            return Err(Refusal::NOT_SUPPORTED);
        }
        // SAFETY: as the caller says.
        let parameters = unsafe { block_of_parameters(&function, parameters)? };
        let launch = Launch {
            function,
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared_bytes: shared_bytes as usize,
            parameters,
        };
        start(gpu, stream, launch)
    })
}

fn known(function: Handle) -> Answer<Arc<Function>> {
    let functions = lock(&FUNCTIONS);
    functions.get(function).map(|known| Arc::clone(&known.function)).ok_or(Refusal::INVALID_HANDLE)
}

fn start(gpu: &mut Gpu, stream: Handle, launch: Launch) -> Answer {
    let name = launch.function.name.clone();
    let check = |what: &str, given: [u32; 3], most: [u32; 3]| {
        if given.iter().zip(most).all(|(given, most)| (1..=most).contains(given)) {
            return Ok(());
        }
        complain(format_args!("{name}: a {what} of {given:?} is not within 1 and {most:?}"));
        Err(Refusal::INVALID_VALUE)
    };
    check("grid", launch.grid, MOST_GRID)?;
    check("block", launch.block, MOST_BLOCK)?;
    check("number of threads", [launch.block.iter().product(), 1, 1], [MOST_THREADS, 1, 1])?;
    let shared_bytes = launch.function.shared_bytes + launch.shared_bytes;
    if shared_bytes > MOST_SHARED {
        complain(format_args!(
            "{name}: a block may have {MOST_SHARED} bytes of shared memory, not {shared_bytes}"
        ));
        return Err(Refusal::INVALID_VALUE);
    }
    queue(gpu, stream, name, Box::new(move |memory| launch.run(memory)))
}

/// # Safety
/// As [`cuLaunchKernel`] says.
unsafe fn block_of_parameters(function: &Function, parameters: *const *const c_void) -> Answer<Vec<u8>> {
    let n_bytes = function.parameters.iter().map(|(offset, size)| offset + size).max().unwrap_or(0);
    let mut block = vec![0; n_bytes];
    if parameters.is_null() && n_bytes > 0 {
        return Err(Refusal::INVALID_VALUE);
    }
    for (index, &(offset, size)) in function.parameters.iter().enumerate() {
        // SAFETY: there is an address for each parameter.
        let from = unsafe { *parameters.add(index) };
        if from.is_null() {
            return Err(Refusal::INVALID_VALUE);
        }
        // SAFETY: the value there has the parameter's size.
        let value = unsafe { std::slice::from_raw_parts(from.cast(), size) };
        block[offset..offset + size].copy_from_slice(value);
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::driver::{CONTEXT, CURRENT, made};

    const KERNEL: &CStr = c".version 8.0
.target sm_80
.address_size 64

.visible .entry nothing(
\t.param .u32 nothing_param_0,
\t.param .u64 nothing_param_1
)
{
\tret;
}
";

    fn find(module: Handle, name: &CStr) -> Result<Handle, Status> {
        let mut function = MaybeUninit::new(0);
        // SAFETY: a C string, which ends with a null.
        match unsafe { cuModuleGetFunction(Some(&mut function), module, name.as_ptr()) } {
            // SAFETY: initialized above.
            0 => Ok(unsafe { function.assume_init() }),
            status => Err(status),
        }
    }

    fn launch(function: Handle, block: [u32; 3], shared_bytes: u32, stream: Handle) -> Status {
        let values = (7_u32, 9_u64);
        let parameters = [(&raw const values.0).cast::<c_void>(), (&raw const values.1).cast()];
        let [x, y, z] = block;
        // SAFETY: two values of the sizes that the kernel's text gives them.
        unsafe {
            let parameters = parameters.as_ptr();
            cuLaunchKernel(function, 2, 1, 1, x, y, z, shared_bytes, stream, parameters, std::ptr::null())
        }
    }

    #[test]
    fn a_kernel_is_found_by_its_name_and_launched_within_its_limits() {
        // SAFETY: a C string, which ends with a null.
        let module = made(|to| unsafe { cuModuleLoadData(to, KERNEL.as_ptr()) });
        let function = find(module, c"nothing").unwrap();
        assert_eq!(find(module, c"nothing"), Ok(function));
        assert_eq!(find(module, c"something"), Err(Refusal::NOT_FOUND.0));
        assert_eq!(find(function, c"nothing"), Err(Refusal::INVALID_HANDLE.0));

        let invalid = Refusal::INVALID_VALUE.0;
        assert_eq!(launch(function, [1, 1, 64], 0, 0), 0);
        assert_eq!(launch(function, [1, 1, 65], 0, 0), invalid);
        assert_eq!(launch(function, [0, 1, 1], 0, 0), invalid);
        assert_eq!(launch(function, [64, 32, 1], 0, 0), invalid);
        assert_eq!(launch(function, [1; 3], 0, 12345), Refusal::INVALID_HANDLE.0);
        assert_eq!(launch(module, [1; 3], 0, 0), Refusal::INVALID_HANDLE.0);
        assert_eq!(launch(function, [1; 3], 48 << 10, 0), 0);
        assert_eq!(launch(function, [1; 3], 49 << 10, 0), invalid);

        assert_eq!(cuModuleUnload(module), 0);
        assert_eq!(cuModuleUnload(module), Refusal::INVALID_HANDLE.0);
        assert_eq!(launch(function, [1; 3], 0, 0), Refusal::INVALID_HANDLE.0);
    }

    #[test]
    fn parameters_lie_where_the_function_says() {
        // SAFETY: a C string, which ends with a null.
        let module = made(|to| unsafe { cuModuleLoadData(to, KERNEL.as_ptr()) });
        let function = known(find(module, c"nothing").unwrap()).unwrap();
        let values = (7_u32, 9_u64);
        let parameters = [(&raw const values.0).cast::<c_void>(), (&raw const values.1).cast()];
        // SAFETY: two values of the sizes that the kernel's text gives them.
        let block = unsafe { block_of_parameters(&function, parameters.as_ptr()) }.unwrap();
        assert_eq!(block[..4], 7_u32.to_le_bytes());
        assert_eq!(block[8..], 9_u64.to_le_bytes());
    }

    #[test]
    fn another_text_is_no_module() {
        CURRENT.set(CONTEXT);
        // SAFETY: a C string, which ends with a null.
        let status = unsafe { cuModuleLoadData(Some(&mut MaybeUninit::uninit()), c"hello".as_ptr()) };
        assert_eq!(status, Refusal::INVALID_PTX.0);
        // SAFETY: null.
        let status = unsafe { cuModuleLoadData(Some(&mut MaybeUninit::uninit()), std::ptr::null()) };
        assert_eq!(status, Refusal::INVALID_VALUE.0);
    }
}
