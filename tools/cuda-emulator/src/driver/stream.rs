//! Streams and events.

use std::{collections::BTreeSet, ffi::c_uint, sync::Mutex};

use super::{Answer, Handle, Out, Refusal, Status, complain, lock, on_gpu, put, stream_of};
use crate::gpu::{EventId, Gpu};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;

/// Events that may be asked for times, with their devices: each numbers its own.
static TIMED: Mutex<BTreeSet<Handle>> = Mutex::new(BTreeSet::new());

/// The event of a handle.
fn event_of(gpu: &Gpu, event: Handle) -> Answer<EventId> {
    let id = event as EventId;
    gpu.reached(id).map(|_| id).ok_or(Refusal::INVALID_HANDLE)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: Out<'_, Handle>, flags: c_uint) -> Status {
    on_gpu(|gpu| {
        if flags != NON_BLOCKING {
            // Its work would wait for that of the default stream, and the other way round.
            complain("cuStreamCreate: only streams that ignore the default stream are here");
            return Err(Refusal::NOT_SUPPORTED);
        }
        put(stream, gpu.create_stream() as Handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    on_gpu(|gpu| match stream_of(gpu, stream)? {
        0 => Err(Refusal::INVALID_HANDLE),
        stream => {
            gpu.destroy_stream(stream);
            Ok(())
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    on_gpu(|gpu| {
        let stream = stream_of(gpu, stream)?;
        Ok(gpu.synchronize(stream)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> Status {
    on_gpu(|gpu| {
        let (stream, event) = (stream_of(gpu, stream)?, event_of(gpu, event)?);
        Ok(gpu.wait(stream, event)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: Out<'_, Handle>, flags: c_uint) -> Status {
    on_gpu(|gpu| {
        let id = gpu.create_event() as Handle;
        if flags & DISABLE_TIMING == 0 {
            lock(&TIMED).insert(id);
        }
        put(event, id)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    on_gpu(|gpu| {
        let id = event_of(gpu, event)?;
        lock(&TIMED).remove(&event);
        gpu.destroy_event(id);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Status {
    on_gpu(|gpu| {
        let (event, stream) = (event_of(gpu, event)?, stream_of(gpu, stream)?);
        Ok(gpu.record(event, stream)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    on_gpu(|gpu| {
        let event = event_of(gpu, event)?;
        Ok(gpu.synchronize_event(event)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime_v2(ms: Out<'_, f32>, start: Handle, end: Handle) -> Status {
    on_gpu(|gpu| {
        let events = [event_of(gpu, start)?, event_of(gpu, end)?];
        if ![start, end].iter().all(|&event| lock(&TIMED).contains(&event)) {
            complain("cuEventElapsedTime: an event was created without a time");
            return Err(Refusal::INVALID_HANDLE);
        }
        if !events.iter().all(|event| gpu.reached(*event) == Some(true)) {
            return Err(Refusal::NOT_READY);
        }
        // All that can be wrong now is an event that was never recorded.
        put(ms, gpu.elapsed_ms(events[0], events[1]).ok_or(Refusal::INVALID_HANDLE)?)
    })
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::driver::made;

    #[test]
    fn unknown_handles_are_refused() {
        let unknown = Refusal::INVALID_HANDLE.0;
        let stream = made(|to| cuStreamCreate(to, NON_BLOCKING));
        let event = made(|to| cuEventCreate(to, 0));
        assert_eq!(cuStreamSynchronize(event), unknown);
        assert_eq!(cuEventRecord(stream, stream), unknown);
        assert_eq!(cuEventRecord(event, 12345), unknown);
        assert_eq!(cuStreamWaitEvent(stream, 0, 0), unknown);
        assert_eq!(cuStreamDestroy_v2(0), unknown);
        assert_eq!(cuStreamDestroy_v2(stream), 0);
        assert_eq!(cuStreamDestroy_v2(stream), unknown);
        assert_eq!(cuEventDestroy_v2(event), 0);
        assert_eq!(cuEventDestroy_v2(event), unknown);
        assert_eq!(cuStreamCreate(None, NON_BLOCKING), Refusal::INVALID_VALUE.0);
    }

    #[test]
    fn times_are_of_events_that_the_gpu_has_come_to() {
        let stream = made(|to| cuStreamCreate(to, NON_BLOCKING));
        let [start, end] = [0, 0].map(|flags| made(|to| cuEventCreate(to, flags)));
        let mut ms = MaybeUninit::uninit();
        assert_eq!(
            cuEventElapsedTime_v2(Some(&mut ms), start, end),
            Refusal::INVALID_HANDLE.0,
            "never recorded"
        );
        for event in [start, end] {
            assert_eq!(cuEventRecord(event, stream), 0);
        }
        assert_eq!(cuEventElapsedTime_v2(Some(&mut ms), start, end), Refusal::NOT_READY.0);
        assert_eq!(cuStreamSynchronize(stream), 0);
        assert_eq!(cuEventElapsedTime_v2(Some(&mut ms), start, end), 0);
        // SAFETY: written by the call.
        assert!(unsafe { ms.assume_init() } >= 0.0);
        let untimed = made(|to| cuEventCreate(to, DISABLE_TIMING));
        assert_eq!(cuEventElapsedTime_v2(Some(&mut ms), start, untimed), Refusal::INVALID_HANDLE.0);
    }

    #[test]
    fn an_event_that_was_never_recorded_is_there() {
        let event = made(|to| cuEventCreate(to, DISABLE_TIMING));
        assert_eq!(cuEventSynchronize(event), 0);
    }
}
