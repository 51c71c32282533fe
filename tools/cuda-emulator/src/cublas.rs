//! `libcublas`: products of matrices of f32, number by number, each sum in f64.

use std::{
    ffi::{c_int, c_longlong},
    sync::Mutex,
};

use crate::{
    driver::{Handle, Out, Table, complain, lock, queue},
    gpu::gpu,
    memory::{Memory, Work, fault},
};

/// `cublasStatus_t`.
type Status = c_int;

const SUCCESS: Status = 0;
const NOT_INITIALIZED: Status = 1;
const INVALID_VALUE: Status = 7;
const EXECUTION_FAILED: Status = 13;
const NOT_SUPPORTED: Status = 15;

/// `CUDA_R_32F`.
const F32: c_int = 0;
/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: c_int = 68;

/// The stream of each handle.
static HANDLES: Mutex<Table<Handle>> = Mutex::new(Table::new(0xb1a5));

#[unsafe(no_mangle)]
pub extern "C" fn cublasCreate_v2(handle: Out<'_, Handle>) -> Status {
    let Some(to) = handle else { return INVALID_VALUE };
    to.write(lock(&HANDLES).add(0));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasDestroy_v2(handle: Handle) -> Status {
    lock(&HANDLES).remove(handle).map_or(NOT_INITIALIZED, |_| SUCCESS)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasSetStream_v2(handle: Handle, stream: Handle) -> Status {
    let mut handles = lock(&HANDLES);
    let Some(kept) = handles.get_mut(handle) else { return NOT_INITIALIZED };
    *kept = stream;
    SUCCESS
}

/// # Safety
/// `alpha` and `beta` point to numbers of the type that `compute` says, or are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGemmStridedBatchedEx(
    handle: Handle,
    operation_a: c_int,
    operation_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    type_a: c_int,
    leading_a: c_int,
    stride_a: c_longlong,
    b: u64,
    type_b: c_int,
    leading_b: c_int,
    stride_b: c_longlong,
    beta: *const f32,
    c: u64,
    type_c: c_int,
    leading_c: c_int,
    stride_c: c_longlong,
    n_batch: c_int,
    compute: c_int,
    _algorithm: c_int,
) -> Status {
    let types = [type_a, type_b, type_c];
    if types != [F32; 3] || compute != COMPUTE_F32 {
        complain(format_args!(
            "cuBLAS: a gemm of the types {types:?} that computes in {compute} is not here"
        ));
        return NOT_SUPPORTED;
    }
    let Some(&stream) = lock(&HANDLES).get(handle) else { return NOT_INITIALIZED };
    // SAFETY: f32, as was just found, or null.
    let (Some(&alpha), Some(&beta)) = (unsafe { (alpha.as_ref(), beta.as_ref()) }) else {
        return INVALID_VALUE;
    };
    // `CUBLAS_OP_N` or `CUBLAS_OP_T`.
    if !(0..=1).contains(&operation_a) || !(0..=1).contains(&operation_b) {
        return INVALID_VALUE;
    }
    let gemm = Gemm {
        sizes: [m, n, k],
        a: Matrix { address: a, transposed: operation_a == 1, leading: leading_a, stride: stride_a },
        b: Matrix { address: b, transposed: operation_b == 1, leading: leading_b, stride: stride_b },
        c: Matrix { address: c, transposed: false, leading: leading_c, stride: stride_c },
        alpha,
        beta,
        n_batch,
    };
    if !gemm.fits() {
        return INVALID_VALUE;
    }
    let queued = queue(&mut gpu(), stream, "cuBLAS gemm", Box::new(move |memory| gemm.run(memory)));
    queued.map_or(EXECUTION_FAILED, |()| SUCCESS)
}

/// `c = alpha * a * b + beta * c`, of a batch of matrices of m x k, k x n and m x n.
struct Gemm {
    /// m, n and k.
    sizes: [c_int; 3],
    a: Matrix,
    b: Matrix,
    c: Matrix,
    alpha: f32,
    beta: f32,
    n_batch: c_int,
}

/// One of the three matrices: column by column, or row by row if it is transposed.
struct Matrix {
    address: u64,
    transposed: bool,
    /// Numbers from a column (a row if transposed) to the next one, and from a matrix of the batch
    /// to the next one.
    leading: c_int,
    stride: c_longlong,
}

impl Gemm {
    /// Whether the sizes are sound and the matrices do not overlap themselves.
    fn fits(&self) -> bool {
        let [m, n, k] = self.sizes;
        let apart = |matrix: &Matrix, rows: c_int, columns: c_int| {
            matrix.leading >= 1.max(if matrix.transposed { columns } else { rows })
        };
        [m, n, k, self.n_batch].iter().all(|&size| size >= 0)
            && apart(&self.a, m, k)
            && apart(&self.b, k, n)
            && apart(&self.c, m, n)
    }

    fn run(&self, memory: &mut Memory) -> Work {
        let [m, n, k] = self.sizes;
        for index in 0..self.n_batch {
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let mut sum = 0.0;
                for inner in 0..k {
                    let a = read(memory, self.a.at(index, row, inner))?;
                    sum += a * read(memory, self.b.at(index, inner, column))?;
                }
                sum *= f64::from(self.alpha);
                let to = self.c.at(index, row, column);
                // Nobody may have written what is not asked for.
                if self.beta != 0.0 {
                    sum += f64::from(self.beta) * read(memory, to)?;
                }
                memory.write(aligned(to)?, 4)?.copy_from_slice(&(sum as f32).to_le_bytes());
            }
        }
        Ok(())
    }
}

impl Matrix {
    /// Where an element of a matrix of the batch lies.
    fn at(&self, index: c_int, row: c_int, column: c_int) -> u64 {
        let (inner, outer) = if self.transposed { (column, row) } else { (row, column) };
        let [index, inner, outer, leading] = [index, inner, outer, self.leading].map(i64::from);
        self.address.wrapping_add_signed(4 * (index * self.stride + outer * leading + inner))
    }
}

fn read(memory: &mut Memory, address: u64) -> Work<f64> {
    let mut number = [0; 4];
    number.copy_from_slice(memory.read(aligned(address)?, 4)?);
    Ok(f32::from_le_bytes(number).into())
}

fn aligned(address: u64) -> Work<u64> {
    if address.is_multiple_of(4) {
        Ok(address)
    } else {
        Err(fault!("a number of 4 bytes lies at {address:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::made;

    /// Puts numbers into memory of their own.
    fn place(memory: &mut Memory, values: &[f32]) -> u64 {
        let address = memory.reserve(values.len() * 4).unwrap();
        memory.commit(address).unwrap();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        memory.write(address, bytes.len()).unwrap().copy_from_slice(&bytes);
        address
    }

    fn look(memory: &mut Memory, address: u64, len: u64) -> Vec<f64> {
        (0..len).map(|index| read(memory, address + 4 * index).unwrap()).collect()
    }

    /// What is in memory between columns.
    const G: f32 = 100.0;

    /// Two products in a batch: [1 2 3; 4 5 6] times [1 0; 0 1; 1 1], which is [4 5; 10 11], and
    /// the same times twice that.
    fn products(memory: &mut Memory, transposed: [bool; 2], alpha: f32, beta: f32) -> Gemm {
        let mut matrix = |values: &[f32], transposed, leading, stride| {
            let address = place(memory, values);
            Matrix { address, transposed, leading, stride }
        };
        let a = match transposed[0] {
            false => matrix(&[1., 4., G, 2., 5., G, 3., 6., G], false, 3, 0),
            true => matrix(&[1., 2., 3., G, 4., 5., 6., G], true, 4, 0),
        };
        let b = match transposed[1] {
            false => matrix(&[1., 0., 1., G, 0., 1., 1., G, 2., 0., 2., G, 0., 2., 2., G], false, 4, 8),
            true => matrix(&[1., 0., 0., 1., 1., 1., 2., 0., 0., 2., 2., 2.], true, 2, 6),
        };
        let c = matrix(&[1., 1., G, 1., 1., G, 1., 1., G, 1., 1., G], false, 3, 6);
        Gemm { sizes: [2, 2, 3], a, b, c, alpha, beta, n_batch: 2 }
    }

    #[track_caller]
    fn check(alpha: f32, beta: f32, want: [f32; 12]) {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            let mut memory = Memory::new(1 << 20, 0);
            let gemm = products(&mut memory, transposed, alpha, beta);
            assert!(gemm.fits());
            gemm.run(&mut memory).unwrap();
            assert_eq!(look(&mut memory, gemm.c.address, 12), want.map(f64::from), "{transposed:?}");
        }
    }

    #[test]
    fn products_follow_the_formula() {
        check(1.0, 0.0, [4., 10., G, 5., 11., G, 8., 20., G, 10., 22., G]);
        check(0.5, 3.0, [5., 8., G, 5.5, 8.5, G, 7., 13., G, 8., 14., G]);
    }

    #[test]
    fn a_result_that_nobody_wrote_is_not_read() {
        let mut memory = Memory::new(1 << 20, 0);
        let mut gemm = products(&mut memory, [false; 2], 1.0, 0.0);
        gemm.c.address = memory.reserve(48).unwrap();
        memory.commit(gemm.c.address).unwrap();
        gemm.run(&mut memory).unwrap();
        assert_eq!(look(&mut memory, gemm.c.address, 2), [4.0, 10.0]);
    }

    #[test]
    fn a_matrix_that_is_not_where_it_should_be_is_a_fault() {
        let mut memory = Memory::new(1 << 20, 0);
        let mut gemm = products(&mut memory, [false; 2], 1.0, 0.0);
        gemm.a.leading = 4;
        assert!(
            gemm.run(&mut memory).unwrap_err().0.contains("reads 4 bytes at byte 36 of an allocation of 36")
        );
        gemm.a.address += 1;
        assert!(gemm.run(&mut memory).unwrap_err().0.contains("a number of 4 bytes lies at"));
    }

    #[test]
    fn calls_go_to_the_stream_of_the_handle() {
        let handle = made(|to| cublasCreate_v2(to));
        let (stream, [a, b, c]) = {
            let mut gpu = gpu();
            (gpu.create_stream(), [2.0, 3.0, 1.0].map(|value| place(&mut gpu.memory, &[value])))
        };
        assert_eq!(cublasSetStream_v2(handle, stream as Handle), SUCCESS);
        let (one, two) = (1.0, 2.0);
        let call = |handle, m, type_a| {
            // SAFETY: factors in f32.
            unsafe {
                cublasGemmStridedBatchedEx(
                    handle,
                    0,
                    0,
                    m,
                    1,
                    1,
                    &one,
                    a,
                    type_a,
                    1,
                    0,
                    b,
                    F32,
                    1,
                    0,
                    &two,
                    c,
                    F32,
                    1,
                    0,
                    1,
                    COMPUTE_F32,
                    0,
                )
            }
        };
        assert_eq!(call(handle, 1, F32), SUCCESS);
        gpu().synchronize(stream).unwrap();
        assert_eq!(look(&mut gpu().memory, c, 1), [8.0]);

        assert_eq!(call(handle, 2, F32), INVALID_VALUE, "columns that overlap");
        assert_eq!(call(handle, -1, F32), INVALID_VALUE);
        assert_eq!(call(handle, 1, 2), NOT_SUPPORTED, "f16");
        assert_eq!(call(handle + 1, 1, F32), NOT_INITIALIZED);
        assert_eq!(cublasSetStream_v2(handle, 12345), SUCCESS);
        assert_eq!(call(handle, 1, F32), EXECUTION_FAILED, "no such stream");
        assert_eq!(cublasDestroy_v2(handle), SUCCESS);
        assert_eq!(cublasDestroy_v2(handle), NOT_INITIALIZED);
        assert_eq!(cublasCreate_v2(None), INVALID_VALUE);
    }
}
