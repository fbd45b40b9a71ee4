//! Memory that is paid for once: a fixed number of buffers, each given back when whatever holds it is dropped.
//!
//! A raw buffer travels with its block and is freed when its compressed body exists; a body is freed when its PUT was
//! answered, an object that was fetched when its block is written. So the bound holds by construction, not by a counter that somebody must remember (law 9).

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

#[derive(Debug, Clone)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    freed: Condvar,
    buffer_len: usize,
}

#[derive(Debug)]
struct State {
    free: Vec<Box<[u8]>>,
    /// Buffers that may still be made: memory is touched only when needed.
    unmade: usize,
    is_closed: bool,
}

/// One buffer, given back on drop.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    pool: Arc<Shared>,
}

impl Pool {
    pub fn new(count: usize, buffer_len: usize) -> Self {
        let state = State { free: Vec::with_capacity(count), unmade: count, is_closed: false };
        Self(Arc::new(Shared { state: Mutex::new(state), freed: Condvar::new(), buffer_len }))
    }

    /// Waits for a buffer; `None` once the pool is closed. For threads only.
    pub fn take(&self) -> Option<Buffer> {
        let mut state = self.0.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(bytes) = state.next(self.0.buffer_len) {
                return Some(Buffer { bytes, pool: Arc::clone(&self.0) });
            }
            state = self.0.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A buffer if one is free.
    pub fn try_take(&self) -> Option<Buffer> {
        let bytes = self.0.lock().next(self.0.buffer_len)?;
        Some(Buffer { bytes, pool: Arc::clone(&self.0) })
    }

    /// A buffer if one is free and so many bytes fit.
    pub fn try_take_for(&self, len: usize) -> Option<Buffer> {
        if len <= self.0.buffer_len { self.try_take() } else { None }
    }

    /// Wakes everybody who waits, with nothing.
    pub fn close(&self) {
        self.0.lock().is_closed = true;
        self.0.freed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self, buffer_len: usize) -> Option<Box<[u8]>> {
        self.free.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(vec![0; buffer_len].into_boxed_slice())
        })
    }
}

impl Buffer {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The first `len` bytes as a request body that gives the buffer back when the last clone is dropped.
    pub fn into_bytes(self, len: usize) -> Bytes {
        Bytes::from_owner(Body { buffer: self, len })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.lock().free.push(bytes);
        self.pool.freed.notify_one();
    }
}

struct Body {
    buffer: Buffer,
    len: usize,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_9_no_more_buffers_than_paid_for() {
        let pool = Pool::new(2, 8);
        let (one, two) = (pool.try_take().expect("first"), pool.try_take().expect("second"));
        assert!(pool.try_take().is_none());
        let body = one.into_bytes(3);
        let clone = body.clone();
        drop(body);
        assert!(pool.try_take().is_none(), "a clone of the body still holds it");
        drop(clone);
        assert!(pool.try_take().is_some());
        drop(two);
        pool.close();
        assert!(pool.take().is_none());
    }
}
