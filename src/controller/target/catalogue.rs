//! Looking through a target's bucket, as an errand: how many volumes and backups it holds, whose they are, which records
//! are damaged; what the dead left behind is cleared, and records without a Backup object are handed to discovery.
//!
//! Nothing is ever deleted, here or in Kubernetes, because a listing lacks it: a listing that failed ends the look, and one
//! that is short only makes smaller numbers (longhorn#9530 lost objects that way, and before that data).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::{sync::mpsc, time::Instant};

use super::{
    discovery::{Discovery, Found},
    errands::{Desk, ErrandKind, Lies, or_if_it_panics},
    lookup::Problem,
    removal::Lives,
    resolve::Resolved,
};
use crate::{
    api::{
        Cause, Claim, ClusterBackupTarget, ConditionType, Truth,
        target::{BackupCounts, Discover},
    },
    controller::{
        context::Context,
        error_chain,
        time::{later, whole_seconds},
    },
    model::{StoreLocation, VolumeName, limits},
    store::{
        catalogue::{self, Catalogue, Known, RecordState},
        client::Client,
        credentials::CredentialSource,
        error::StoreError,
        janitor,
        layout::VolumeLayout,
        tombstone::Tombstones,
    },
    telemetry,
};

/// Volumes looked at beside each other.
const VOLUMES_AT_ONCE: usize = 4;

/// What one look showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    pub time: Timestamp,
    pub took: Duration,
    pub outcome: Result<Counts, Problem>,
}

/// What a bucket holds, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    pub volumes: u64,
    /// Records, damaged ones among them.
    pub total: u64,
    pub foreign: u64,
    pub in_progress: u64,
    pub damaged: u64,
    /// The first of them, and what is wrong with it.
    pub damage: Option<String>,
    /// Keys the janitor cleared.
    pub cleared: u64,
    pub discovered: u64,
    /// What kept discovery or the janitor from their work.
    pub trouble: Option<String>,
    pub requests: u64,
}

impl Counts {
    fn add(&mut self, known: &Known, cluster: &str) {
        match &known.facts.state {
            RecordState::InProgress => self.in_progress += 1,
            RecordState::Complete => {
                self.total += 1;
                let is_own = known.facts.owner.as_ref().is_some_and(|owner| &*owner.cluster == cluster);
                self.foreign += u64::from(!is_own);
            }
            RecordState::Damaged(seen) => {
                self.total += 1;
                self.damaged += 1;
                self.damage.get_or_insert_with(|| seen.to_string());
            }
        }
    }

    pub fn for_status(&self) -> BackupCounts {
        let count = crate::api::common::count;
        BackupCounts { total: count(self.total), foreign: count(self.foreign), in_progress: count(self.in_progress) }
    }
}

/// What is remembered of each target, by its uid.
#[derive(Default)]
pub struct Books(Mutex<HashMap<String, Arc<Book>>>);

/// What is remembered of one target.
struct Book {
    records: Catalogue,
    /// When every volume was last cleared of what the dead left.
    cleared: Mutex<Option<Instant>>,
}

impl Books {
    fn of(&self, uid: &str) -> Arc<Book> {
        let new = || Book { records: Catalogue::new(limits::CATALOGUE_REMEMBERED_MAX), cleared: Mutex::default() };
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        books.entry(uid.to_owned()).or_insert_with(|| Arc::new(new())).clone()
    }

    pub fn retain(&self, lives: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| lives(uid));
    }
}

impl Book {
    fn cleared(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is a look due? The interval grows with what a look costs: it takes at most a twentieth of the time.
pub fn is_due(lies: &Lies<Look>, interval: Duration) -> bool {
    match lies {
        Lies::Nothing => true,
        Lies::UnderWay => false,
        // One that failed was waiting, not work.
        Lies::Done { outcome: Look { outcome: Err(_), .. }, ago, .. } => *ago >= interval,
        Lies::Done { outcome, ago, .. } => *ago >= interval.max(outcome.took.saturating_mul(limits::CATALOGUE_SHARE)),
    }
}

/// Orders a look unless one is under way.
pub fn order(context: &Context, desk: &Arc<Desk<Look>>, books: &Books, target: &ClusterBackupTarget, seen: &Seen<'_>) {
    let uid = target.uid().unwrap_or_default();
    if !desk.begin(&uid) {
        return;
    }
    let discovery = match target.spec.imports.discover {
        Discover::OwnCluster => Some(Discovery::of(context, target)),
        Discover::None => None,
    };
    let errand = Errand {
        desk: desk.clone(),
        poke: context.poke_targets.clone(),
        target: ObjectRef::from_obj(target),
        book: books.of(&uid),
        uid,
        location: seen.resolved.location(),
        credentials: CredentialSource::Given(seen.resolved.credentials.clone()),
        clock_skew: seen.clock_skew,
        cluster: context.cluster.clone(),
        lives: Lives::of(context, None),
        discovery,
    };
    context.errands.order(ErrandKind::Catalogue, String::new(), errand.run());
}

/// What the last probe showed.
pub struct Seen<'a> {
    pub resolved: &'a Resolved,
    pub clock_skew: SignedDuration,
}

struct Errand {
    desk: Arc<Desk<Look>>,
    uid: String,
    poke: mpsc::Sender<ObjectRef<ClusterBackupTarget>>,
    target: ObjectRef<ClusterBackupTarget>,
    book: Arc<Book>,
    location: StoreLocation,
    credentials: CredentialSource,
    /// The store's clock less ours.
    clock_skew: SignedDuration,
    cluster: String,
    lives: Lives,
    discovery: Option<Discovery>,
}

impl Errand {
    async fn run(mut self) {
        let began = Instant::now();
        let discovery = self.discovery.take();
        let looking = async {
            let mut finds = Finds::begin(discovery).await;
            let mut counts = self.look(&mut finds).await.map_err(|e| Problem::of(&e))?;
            match finds.apply().await {
                Ok(made) => counts.discovered = made,
                Err(trouble) => counts.trouble = Some(trouble),
            }
            Ok(counts)
        };
        let outcome = or_if_it_panics(looking, || Err(Problem::bug("Looking through the bucket"))).await;
        let look = Look { time: whole_seconds(telemetry::now()), took: began.elapsed(), outcome };
        tracing::debug!(target = %self.target, ?look, "Bucket was looked through");
        self.desk.end(&self.uid, look);
        // A full channel loses the hint only: the target is looked at again by itself.
        drop(self.poke.try_send(self.target));
    }

    async fn look(&self, finds: &mut Finds) -> Result<Counts, StoreError> {
        let objects = crate::store::open(&self.location, self.credentials.clone())?;
        let client = Client::new(objects, limits::CATALOGUE_STALL, limits::CATALOGUE_DEADLINE);
        let volumes = catalogue::volumes(&client).await?;
        let mut counts = Counts { volumes: volumes.len() as u64, ..Counts::default() };
        let clears_all = self.book.cleared().is_none_or(|at| at.elapsed() >= limits::JANITOR_INTERVAL);
        let client = &client;
        let mut looks = stream::iter(volumes)
            .map(|volume| async move {
                let known = self.book.records.volume(client, &volume).await;
                known.map(|known| (volume, known))
            })
            .buffered(VOLUMES_AT_ONCE);
        while let Some(look) = looks.next().await {
            let (volume, known) = look?;
            for record in &known {
                counts.add(record, &self.cluster);
                finds.consider(record).await;
            }
            if let Finds::Going(_, found) = finds
                && found.has_candidates_of(&volume)
            {
                found.bury(&volume, &Tombstones::read(client, &VolumeLayout::new(&volume)).await?);
            }
            // Three more LISTs: only where somebody works or died, and everywhere now and then.
            if !clears_all && !known.iter().any(|k| k.facts.state == RecordState::InProgress) {
                continue;
            }
            match self.clear(client, &volume).await {
                Ok(cleared) => counts.cleared += cleared,
                Err(error) => counts.trouble = Some(format!("Remnants of {volume} could not be cleared: {error}")),
            }
        }
        drop(looks);
        self.book.records.end_pass();
        if clears_all {
            *self.book.cleared() = Some(Instant::now());
        }
        let r = client.requests();
        counts.requests = r.put + r.head + r.get + r.list + r.delete;
        Ok(counts)
    }

    /// What the dead left behind in one volume.
    async fn clear(&self, client: &Client, volume: &VolumeName) -> Result<u64, StoreError> {
        let belongings = janitor::look(client, &VolumeLayout::new(volume)).await?;
        let skew = Duration::try_from(self.clock_skew.abs()).unwrap_or_default();
        let now = telemetry::now();
        // Ages are judged by the store's clock; where it is behind ours, things are younger than we think.
        let store_now = match self.clock_skew.is_negative() {
            true => now.checked_sub(skew).unwrap_or(now),
            false => later(now, skew),
        };
        janitor::apply(client, &janitor::plan(&belongings, &self.lives.on(&belongings), store_now)).await
    }
}

/// Discovery beside a look; what keeps it from its work does not keep the look from counting.
enum Finds {
    Unasked,
    Going(Box<Discovery>, Found),
    Troubled(String),
}

impl Finds {
    async fn begin(discovery: Option<Discovery>) -> Self {
        let Some(discovery) = discovery else { return Finds::Unasked };
        match discovery.begin().await {
            Ok(found) => Finds::Going(Box::new(discovery), found),
            Err(error) => Finds::Troubled(format!("Discovery: {}", error_chain(&error))),
        }
    }

    async fn consider(&mut self, record: &Known) {
        let Finds::Going(discovery, found) = self else { return };
        if let Err(error) = discovery.consider(record, found).await {
            *self = Finds::Troubled(format!("Discovery: {}", error_chain(&error)));
        }
    }

    async fn apply(self) -> Result<u64, String> {
        match self {
            Finds::Unasked => Ok(0),
            Finds::Going(discovery, found) => discovery.apply(found).await,
            Finds::Troubled(trouble) => Err(trouble),
        }
    }
}

/// The condition: everything was counted, or why not.
pub fn claim(outcome: &Result<Counts, Problem>) -> Claim {
    use {Cause as C, ConditionType::Catalogued, Truth::*};
    match outcome {
        Err(problem) => {
            let text = format!("The numbers are those of the look before: {}", problem.message);
            Claim::new(Catalogued, False, problem.reason, text)
        }
        Ok(Counts { damaged, damage: Some(damage), .. }) => {
            let text = format!("{damaged} records cannot be read and cannot be restored: {damage}");
            Claim::new(Catalogued, False, C::RecordsDamaged, text)
        }
        Ok(counts) => {
            let Counts { volumes, total, requests, .. } = counts;
            let mut text = format!("{total} backups of {volumes} volumes, counted with {requests} requests");
            if let Some(trouble) = &counts.trouble {
                text = format!("{text}. {trouble}");
            }
            Claim::new(Catalogued, True, C::Counted, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_9_a_look_takes_at_most_a_twentieth_of_the_time() {
        let interval = Duration::from_secs(60);
        let look = |took, outcome| Look { time: Timestamp::UNIX_EPOCH, took: Duration::from_secs(took), outcome };
        let lies = |outcome, ago| Lies::Done { outcome, ago: Duration::from_secs(ago), tries: 1 };
        let done = |took, ago| lies(look(took, Ok(Counts::default())), ago);
        assert!(is_due(&Lies::Nothing, interval) && !is_due(&Lies::UnderWay, interval));
        assert!(!is_due(&done(1, 59), interval) && is_due(&done(1, 60), interval));
        assert!(!is_due(&done(30, 599), interval) && is_due(&done(30, 600), interval));
        let failed = lies(look(30, Err(Problem::bug("A test"))), 60);
        assert!(is_due(&failed, interval), "a failed look was waiting, not work");
    }
}
