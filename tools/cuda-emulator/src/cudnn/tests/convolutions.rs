//! What the engines compute, against the sum that defines a convolution.

use super::*;

fn positions(extents: [i64; 4]) -> impl Iterator<Item = [i64; 4]> {
    let [a, b, c, d] = extents;
    (0..a * b * c * d).map(move |at| [at / (b * c * d), at / (c * d) % b, at / d % c, at % d])
}

/// Multiples of 1/64 that bf16 holds exactly, in the order of [`positions`].
fn values(extents: [i64; 4], seed: i64) -> Vec<f32> {
    positions(extents)
        .map(|[a, b, c, d]| (((a * 31 + b * 17 + c * 7 + d * 3 + seed) * 37 % 101) - 50) as f32 / 64.0)
        .collect()
}

fn offset(at: [i64; 4], strides: [i64; 4]) -> i64 {
    at.into_iter().zip(strides).map(|(at, stride)| at * stride).sum()
}

/// The sum that defines a convolution, term by term.
fn naive(case: Case, direction: u32, values: &[Vec<f32>; 3]) -> Vec<f64> {
    let [x_extents, w_extents, y_extents] = case.extents;
    let index = |at: [i64; 4], extents: [i64; 4]| {
        offset(at, {
            let [_, b, c, d] = extents;
            [b * c * d, c * d, d, 1]
        }) as usize
    };
    let (outputs, inputs) = (w_extents[0] * w_extents[1] / x_extents[1], w_extents[1]);
    let mut result = vec![0.0; [&values[2], &values[1], &values[0]][direction as usize - 10].len()];
    for y_at @ [n, o, h, w] in positions(y_extents) {
        for w_at @ [_, i, kernel_h, kernel_w] in positions(w_extents).filter(|at| at[0] == o) {
            let row = h * case.stride[0] + kernel_h * case.dilation[0] - case.before[0];
            let column = w * case.stride[1] + kernel_w * case.dilation[1] - case.before[1];
            if !(0..x_extents[2]).contains(&row) || !(0..x_extents[3]).contains(&column) {
                continue;
            }
            let x_at = index([n, o / outputs * inputs + i, row, column], x_extents);
            let (w_at, y_at) = (index(w_at, w_extents), index(y_at, y_extents));
            let [x, weight, y] = [values[0][x_at], values[1][w_at], values[2][y_at]].map(f64::from);
            match direction {
                FORWARD => result[y_at] += x * weight,
                BACKWARD_DATA => result[x_at] += y * weight,
                _ => result[w_at] += x * y,
            }
        }
    }
    result
}

/// What an engine computes, in the order of [`positions`].
fn computed(case: Case, direction: u32, values: &[Vec<f32>; 3], handle: Handle, plan: Handle) -> Vec<f32> {
    let mut memory = Memory::new(64 << 20, 0);
    let size = if case.bf16 { 2 } else { 4 };
    let output = [2, 1, 0][direction as usize - 10];
    let addresses = [0, 1, 2].map(|index| {
        let (extents, strides) = (case.extents[index], case.strides[index]);
        let last = offset(extents.map(|extent| extent - 1), strides) as usize;
        let address = allocate(&mut memory, (last + 1) * size);
        for (at, value) in positions(extents).zip(&values[index]) {
            let at = address + offset(at, strides) as u64 * size as u64;
            if index != output {
                memory.write(at, size).unwrap().copy_from_slice(&value.to_le_bytes()[4 - size..]);
            }
        }
        address
    });
    let mut workspace = [0i64];
    assert_eq!(get(plan, 402, INT64, &mut workspace), 1);
    let scratch = if workspace[0] > 0 { allocate(&mut memory, workspace[0] as usize) } else { 0 };
    execute(&mut memory, handle, plan, addresses, scratch).unwrap();
    let mut read = |at| {
        let at = addresses[output] + offset(at, case.strides[output]) as u64 * size as u64;
        let mut whole = [0; 4];
        whole[4 - size..].copy_from_slice(memory.read(at, size).unwrap());
        f32::from_le_bytes(whole)
    };
    positions(case.extents[output]).map(&mut read).collect()
}

fn difference(got: &[f32], want: &[f64]) -> f64 {
    let largest = want.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0f64, |worst, (&got, want)| worst.max((f64::from(got) - want).abs())) / largest
}

#[track_caller]
fn check(case: Case, direction: u32) {
    let handle = handle();
    let parts = graph(case, direction, handle);
    let mut inputs = [0, 1, 2].map(|index| values(case.extents[index], index as i64 * 13));
    if !case.bf16 {
        // Not what bf16 holds exactly.
        inputs.iter_mut().flatten().for_each(|value| *value *= 1.0037);
    }
    let want = naive(case, direction, &inputs);
    let tolerance = if case.bf16 { 8e-3 } else { 1e-6 };
    let mut all_notes = Vec::new();
    for mode in [MODE_A, MODE_FALLBACK] {
        for configuration in configurations(parts[5], mode) {
            let notes = notes(configuration);
            all_notes.push(notes.clone());
            let plan = plan(handle, configuration);
            if all_notes.len() == if case.bf16 { 2 } else { 3 } {
                assert_eq!(cudnnBackendFinalize(plan), Status::NotSupported);
                continue;
            }
            finalize(plan);
            let run = || computed(case, direction, &inputs, handle, plan);
            let (got, again) = (run(), run());
            let difference = difference(&got, &want);
            if notes.contains(&0) && !case.bf16 {
                assert!((1e-4..1e-2).contains(&difference), "differs by {difference:e}");
            } else {
                assert!(difference <= tolerance, "notes {notes:?}: differs by {difference:e}");
            }
            assert_eq!(got != again, notes.contains(&4), "notes {notes:?}");
        }
    }
    let wanted: &[&[u32]] =
        if case.bf16 { &[&[0, 4], &[0], &[0], &[0], &[0]] } else { &[&[0], &[4], &[], &[], &[], &[]] };
    assert_eq!(all_notes, wanted);
}

#[test]
fn convolutions_in_all_directions_are_right() {
    for bf16 in [false, true] {
        for direction in [FORWARD, BACKWARD_DATA, BACKWARD_FILTER] {
            check(case(bf16), direction);
        }
    }
}

#[test]
fn any_strides_will_do() {
    for direction in [FORWARD, BACKWARD_DATA, BACKWARD_FILTER] {
        // Channels first, and rows with something else behind them.
        let strided = |[_, c, h, w]: [i64; 4]| [c * h * (w + 3) + 5, h * (w + 3), w + 3, 1];
        let case = case(false);
        check(Case { strides: case.extents.map(strided), ..case }, direction);
    }
}

#[test]
fn depthwise_convolutions_are_right() {
    let extents = [[1, 5, 4, 6], [5, 1, 3, 3], [1, 5, 4, 6]];
    let strides = extents.map(channels_last);
    let case = Case {
        extents,
        strides,
        before: [1, 1],
        after: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
        ..case(false)
    };
    for direction in [FORWARD, BACKWARD_DATA, BACKWARD_FILTER] {
        check(case, direction);
    }
}
