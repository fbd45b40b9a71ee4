//! Work for the store that outlives a reconcile: looking up a record, verifying it, removing a backup's data, looking through a bucket.
//!
//! A reconcile orders an errand and goes on; [`run`] carries errands out, a few of each kind at once and never two on one
//! volume; the outcome is laid on a [`Desk`] and the Backup is looked at again. Everything lives inside the leader's
//! future: when leadership is lost that future is dropped and every errand ends at its next await. Nothing is kept on disk:
//! each errand may be begun again from its start.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::model::limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrandKind {
    LookUp,
    Verify,
    Remove,
    Catalogue,
}

impl ErrandKind {
    const fn at_once(self) -> usize {
        match self {
            ErrandKind::LookUp => limits::LOOKUPS_AT_ONCE,
            ErrandKind::Verify => limits::IMPORTS_VERIFIED_AT_ONCE,
            ErrandKind::Remove => limits::REMOVALS_AT_ONCE,
            ErrandKind::Catalogue => limits::CATALOGUES_AT_ONCE,
        }
    }
}

struct Errand {
    kind: ErrandKind,
    /// What no two errands may hold at once, such as a volume; empty: nothing.
    exclusive: String,
    work: BoxFuture<'static, ()>,
}

/// Those that wait, in order. Its length is bounded by whoever orders: one errand for each Backup and target at most.
#[derive(Default)]
pub struct Errands {
    waiting: Mutex<VecDeque<Errand>>,
    ordered: Notify,
}

impl Errands {
    pub fn order(&self, kind: ErrandKind, exclusive: String, work: impl Future<Output = ()> + Send + 'static) {
        let errand = Errand { kind, exclusive, work: Box::pin(work) };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(errand);
        self.ordered.notify_one();
    }

    /// Carries errands out until told to stop; dropping it ends those that run.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut running = JoinSet::new();
        let mut held: HashMap<tokio::task::Id, (ErrandKind, String)> = HashMap::new();
        loop {
            for errand in self.next(held.values()) {
                let task = running.spawn(errand.work);
                held.insert(task.id(), (errand.kind, errand.exclusive));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ordered.notified() => {}
                Some(ended) = running.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            tracing::error!(%error, "Errand ended badly");
                            error.id()
                        }
                    };
                    held.remove(&id);
                }
            }
        }
    }

    /// Takes those that fit beside the ones that run.
    fn next<'a>(&self, running: impl Iterator<Item = &'a (ErrandKind, String)>) -> Vec<Errand> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts: HashMap<ErrandKind, usize> = HashMap::new();
        let mut taken: HashSet<String> = HashSet::new();
        for (kind, exclusive) in running {
            *counts.entry(*kind).or_default() += 1;
            taken.insert(exclusive.clone());
        }
        let (mut next, mut rest) = (Vec::new(), VecDeque::new());
        for errand in waiting.drain(..) {
            let count = counts.entry(errand.kind).or_default();
            let is_free = errand.exclusive.is_empty() || !taken.contains(&errand.exclusive);
            if *count < errand.kind.at_once() && is_free {
                *count += 1;
                taken.insert(errand.exclusive.clone());
                next.push(errand);
            } else {
                rest.push_back(errand);
            }
        }
        *waiting = rest;
        next
    }
}

/// Outcomes by the uid of the object they are about.
pub struct Desk<T> {
    places: Mutex<HashMap<String, Place<T>>>,
}

/// What lies on the desk for one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Lies<T> {
    Nothing,
    /// Ordered, not done yet.
    UnderWay,
    Done {
        outcome: T,
        ago: Duration,
        /// How often in a row it was ordered.
        tries: u32,
    },
}

struct Place<T> {
    tries: u32,
    outcome: Option<(T, Instant)>,
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        Self { places: Mutex::default() }
    }
}

impl<T: Clone> Desk<T> {
    pub fn look(&self, uid: &str) -> Lies<T> {
        match self.places().get(uid) {
            None => Lies::Nothing,
            Some(Place { outcome: None, .. }) => Lies::UnderWay,
            Some(Place { outcome: Some((outcome, at)), tries }) => {
                Lies::Done { outcome: outcome.clone(), ago: at.elapsed(), tries: *tries }
            }
        }
    }

    /// Notes that an errand is ordered. False: one is under way already.
    pub fn begin(&self, uid: &str) -> bool {
        let mut places = self.places();
        let place = places.entry(uid.to_owned()).or_insert(Place { tries: 0, outcome: None });
        if place.tries > 0 && place.outcome.is_none() {
            return false;
        }
        place.tries = place.tries.saturating_add(1);
        place.outcome = None;
        true
    }

    pub fn end(&self, uid: &str, outcome: T) {
        if let Some(place) = self.places().get_mut(uid) {
            place.outcome = Some((outcome, Instant::now()));
        }
    }

    pub fn clear(&self, uid: &str) {
        self.places().remove(uid);
    }

    /// Forgets every object that is no more; an errand under way for it ends into nothing.
    pub fn retain(&self, lives: &HashSet<String>) {
        self.places().retain(|uid, _| lives.contains(uid));
    }

    fn places(&self) -> MutexGuard<'_, HashMap<String, Place<T>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work's outcome, or this one if it panics: a fault of ours must not leave a Backup waiting for ever.
pub async fn or_if_it_panics<T>(work: impl Future<Output = T>, otherwise: impl FnOnce() -> T) -> T {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(_) => otherwise(),
    }
}

/// The wait before the next try: doubled from the first to the last.
pub fn backoff(tries: u32) -> Duration {
    limits::REMOVAL_BACKOFF_MIN.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(limits::REMOVAL_BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn law_9_two_removals_at_once_and_never_two_of_one_volume() {
        let errands = Arc::new(Errands::default());
        let (now, most, done) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let held: Arc<Mutex<HashSet<String>>> = Arc::default();
        for n in 0..12 {
            let volume = format!("v{}", n % 3);
            let (now, most, done, held, own) = (now.clone(), most.clone(), done.clone(), held.clone(), volume.clone());
            errands.order(ErrandKind::Remove, volume, async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                assert!(held.lock().expect("no panic").insert(own.clone()), "two on {own}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                held.lock().expect("no panic").remove(&own);
                now.fetch_sub(1, SeqCst);
                done.fetch_add(1, SeqCst);
            });
        }
        let stop = CancellationToken::new();
        tokio::select! {
            () = errands.run(&stop) => panic!("nobody stopped it"),
            () = tokio::time::sleep(Duration::from_secs(20)) => {}
        }
        assert_eq!((done.load(SeqCst), most.load(SeqCst)), (12, limits::REMOVALS_AT_ONCE));
    }

    #[tokio::test(start_paused = true)]
    async fn law_8_an_errand_ends_when_leadership_is_lost_and_one_that_panics_frees_its_place() {
        struct Told(Arc<AtomicUsize>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let (errands, ended) = (Errands::default(), Arc::new(AtomicUsize::new(0)));
        errands.order(ErrandKind::Remove, "v".into(), async { panic!("as a test") });
        let told = Told(ended.clone());
        errands.order(ErrandKind::Remove, "v".into(), async move {
            let _told = told;
            std::future::pending::<()>().await;
        });
        let stop = CancellationToken::new();
        tokio::select! {
            () = errands.run(&stop) => panic!("nobody stopped it"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ended.load(SeqCst), 1, "the second had begun, and was ended with its runner");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outcome_lies_until_it_is_cleared_and_an_errand_is_ordered_once() {
        let desk: Desk<u8> = Desk::default();
        assert_eq!(desk.look("a"), Lies::Nothing);
        assert!(desk.begin("a") && !desk.begin("a"));
        assert_eq!(desk.look("a"), Lies::UnderWay);
        desk.end("a", 7);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(desk.look("a"), Lies::Done { outcome: 7, ago: Duration::from_secs(3), tries: 1 });
        assert!(desk.begin("a"), "again");
        desk.end("a", 8);
        assert!(matches!(desk.look("a"), Lies::Done { outcome: 8, tries: 2, .. }));
        desk.retain(&HashSet::new());
        assert_eq!(desk.look("a"), Lies::Nothing);
        desk.end("a", 9);
        assert_eq!(desk.look("a"), Lies::Nothing, "what is forgotten stays forgotten");
        let waits: Vec<_> = (1..9).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
    }
}
