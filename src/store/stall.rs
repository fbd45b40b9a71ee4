//! The stall clock: how long has a request been outstanding without the store acknowledging anything?
//!
//! It runs only while a request is outstanding or waits for its retry: hours of zeros, a slow source or a bandwidth
//! limit are no stall.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub struct StallClock {
    after: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    outstanding: u32,
    /// The later of the last success and the moment the first outstanding request began.
    base: Instant,
}

impl StallClock {
    pub fn new(after: Duration) -> Self {
        Self { after, state: Mutex::new(State { outstanding: 0, base: Instant::now() }) }
    }

    pub fn after(&self) -> Duration {
        self.after
    }

    /// A request is outstanding until the guard is dropped.
    pub fn begin(&self) -> Outstanding<'_> {
        let mut state = self.lock();
        if state.outstanding == 0 {
            state.base = Instant::now();
        }
        state.outstanding += 1;
        Outstanding(self)
    }

    /// The store answered well.
    pub fn succeeded(&self) {
        self.lock().base = Instant::now();
    }

    /// Ends when the clock has run out. To be awaited only beside an outstanding request.
    pub async fn stalled(&self) {
        loop {
            let deadline = self.lock().base + self.after;
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub struct Outstanding<'a>(&'a StallClock);

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.0.lock().outstanding -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn law_5_idle_time_is_no_stall() {
        let clock = StallClock::new(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_secs(600)).await;
        let _outstanding = clock.begin();
        let began = Instant::now();
        clock.stalled().await;
        assert_eq!(began.elapsed().as_secs(), 60, "counted from the request, not from the last success");
    }

    #[tokio::test(start_paused = true)]
    async fn law_5_a_success_of_another_request_starts_it_anew() {
        let clock = StallClock::new(Duration::from_secs(60));
        let _outstanding = clock.begin();
        let began = Instant::now();
        let other = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            clock.succeeded();
        };
        tokio::join!(clock.stalled(), other);
        assert_eq!(began.elapsed().as_secs(), 110);
    }
}
